#pragma once
// All of mpq, in the order in which data flows: checkpoint tensors -> QuantizedWeights (host) ->
// Linear::load -> check_parameters -> prepare_params (device) -> plan -> launch -> y.

// clang-format off
#include "mpq/version.hpp"
#include "mpq/error.hpp"
#include "mpq/types.hpp"
#include "mpq/device.hpp"
#include "mpq/matrix.hpp"
#include "mpq/checkpoint.hpp"
#include "mpq/quantized_weights.hpp"
#include "mpq/mixed_weights.hpp"
#include "mpq/pack.hpp"
#include "mpq/quantize.hpp"
#include "mpq/checkpoint_writer.hpp"
#include "mpq/layout.hpp"
#include "mpq/column_order.hpp"
#include "mpq/plan.hpp"
#include "mpq/workspace.hpp"
#include "mpq/linear.hpp"
#include "mpq/model.hpp"
#include "mpq/quantized_model.hpp"
// clang-format on

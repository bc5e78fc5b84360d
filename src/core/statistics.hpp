#pragma once
// Scales and zeros of weights in plain form, whatever form they are stored in.

#include "mpq/quantized_weights.hpp"

namespace mpq::detail {

/// A copy of everything but the codes, with double-quantised statistics decompressed. The structure
/// of `weights` must have been checked.
WeightsData plain_statistics(const WeightsData& weights);

}  // namespace mpq::detail

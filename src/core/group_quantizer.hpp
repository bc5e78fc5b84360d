#pragma once
// What all methods of quantisation check, and the weights that they fill.

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/group_fit.hpp"
#include "mpq/quantize.hpp"
#include "mpq/types.hpp"

namespace mpq::detail {

// Error(invalid_argument) naming what is wrong.

void check_options(const QuantizeOptions& options);
void check_weight(std::span<const float> weight, std::int64_t n, std::int64_t k);
void check_finite(std::span<const float> row, std::int64_t channel);
[[noreturn]] void refuse_scale(std::int64_t channel, std::int64_t group, DType dtype);

/// Shape, kinds and sizes of what a method fills: qweight is left empty.
WeightsData begin_weights(std::int64_t n, std::int64_t k, const QuantizeOptions& options);
/// Stores scale and zero of element `at` of [G, N].
void store_group(WeightsData& data, std::size_t at, const GroupQuantizer& quantizer);

}  // namespace mpq::detail

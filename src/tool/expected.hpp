#pragma once
// What a layer's product must be: float64, and how far a result may be off.

#include <cstdint>
#include <vector>

#include "mpq/mixed_weights.hpp"
#include "mpq/quantized_weights.hpp"
#include "mpq/types.hpp"

namespace mpq::tool {

/// x [rows, k] in [-1, 1), the same each time, rounded to `dtype`.
std::vector<std::uint16_t> make_input(std::int64_t rows, std::int64_t k, DType dtype);

/// y = x w^T + bias in float64 and the sums of magnitudes, both [rows, out_features].
struct Expected {
  std::vector<double> y, magnitude;
  std::int64_t in_features = 0;
  DType dtype = DType::f16;
  bool mixed = false;

  /// x [rows, in_features] of `dtype`.
  Expected(const WeightsData& weights, const std::vector<float>& dense,
           const std::vector<std::uint16_t>& x, DType dtype);
  Expected(const MixedWeights& weights, const std::vector<float>& dense,
           const std::vector<std::uint16_t>& x, DType dtype);

  /// The largest |y - expected| as a share of its bound, for as many rows as `result` has: float32
  /// accumulation, one rounding of y, and where the device has tensor cores one of each weight.
  double largest_share(const std::vector<std::uint16_t>& result, bool weights_rounded) const;
};

}  // namespace mpq::tool

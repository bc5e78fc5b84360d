#pragma once
// From dense weights to quantised ones: round to nearest.

#include <cstdint>
#include <span>

#include "mpq/quantized_weights.hpp"

namespace mpq {

struct QuantizeOptions {
  int bits = 4;            ///< 1, 2, 4 or 8
  int group_size = 128;    ///< -1: one group per output channel
  bool symmetric = false;  ///< ZeroKind::none (zero 2^(bits-1)); else ZeroKind::integer
  DType scale_dtype = DType::f16;
};

/// Rounds weight [out_features, in_features] (row-major) to the nearest code, group by group.
/// Asymmetric: the group's range (with 0 in it) is spread over all codes. Symmetric: max |w| maps
/// to the largest code magnitude 2^(bits-1) (1 bit: codes stand for -s and 0, so s is best for
/// both). Scales are rounded to scale_dtype before codes are chosen, so that codes fit the stored
/// scale. Throws Error(invalid_argument) for bad shapes or options and for non-finite weights,
/// naming them.
AnyQuantizedWeights quantize(std::span<const float> weight, std::int64_t out_features,
                             std::int64_t in_features, const QuantizeOptions& options);

/// sqrt(sum (w - w')^2 / sum w^2) of a quantisation w' of `weight`.
double relative_error(std::span<const float> weight, const AnyQuantizedWeights& quantized);

}  // namespace mpq

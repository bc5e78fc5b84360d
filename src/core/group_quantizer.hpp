#pragma once
// One group of one output channel: scale, zero, and the code of a weight.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "mpq/quantize.hpp"
#include "mpq/types.hpp"

namespace mpq::detail {

struct GroupQuantizer {
  float scale = 0;  ///< exactly a value of the scale type; 0: all codes are the zero
  float zero = 0;   ///< an integer, but for ZeroKind::affine
  int largest = 0;  ///< code

  std::uint8_t code(float w) const {
    const float steps = scale == 0 ? std::round(zero) : std::nearbyint(w / scale + zero);
    return static_cast<std::uint8_t>(std::clamp(steps, 0.0f, static_cast<float>(largest)));
  }
  float weight(std::uint8_t code) const { return scale * (static_cast<float>(code) - zero); }
};

/// The range of `weights` over all codes (symmetric: see quantize()), with a scale that scale_dtype
/// holds; infinite if it has none so large. `scratch` is for reuse.
GroupQuantizer fit_range(std::span<const float> weights, const QuantizeOptions& options,
                         std::vector<float>& scratch);

/// `start` with the zero that half-quadratic optimisation finds for `weights`; with float_zeros a
/// real number, else an integer. `start` itself if that has the smaller loss.
GroupQuantizer optimize_zero(std::span<const float> weights, const GroupQuantizer& start,
                             const QuantizeOptions& options);

/// fit_range, and optimize_zero for QuantizeMethod::half_quadratic.
GroupQuantizer fit_group(std::span<const float> weights, const QuantizeOptions& options,
                         std::vector<float>& scratch);

// Checks that all methods share; Error(invalid_argument) naming what is wrong.

void check_options(const QuantizeOptions& options);
void check_weight(std::span<const float> weight, std::int64_t n, std::int64_t k);
void check_finite(std::span<const float> row, std::int64_t channel);
[[noreturn]] void refuse_scale(std::int64_t channel, std::int64_t group, DType dtype);

/// Shape, kinds and sizes of what a method fills: qweight is left empty.
WeightsData begin_weights(std::int64_t n, std::int64_t k, const QuantizeOptions& options);
/// Stores scale and zero of element `at` of [G, N].
void store_group(WeightsData& data, std::size_t at, const GroupQuantizer& quantizer);

}  // namespace mpq::detail

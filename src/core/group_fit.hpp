#pragma once
// One group of one output channel: scale, zero, and the code of a weight. The same operations in
// the same order on the host and, a thread a group, on a device: but for std::pow in the
// half-quadratic optimisation the results are the same bits.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "mpq/quantize.hpp"
#include "mpq/types.hpp"

#ifdef __CUDACC__
#define MPQ_HOST_DEVICE __host__ __device__
#else
#define MPQ_HOST_DEVICE
#endif

namespace mpq::detail {

struct GroupQuantizer {
  float scale = 0;  ///< exactly a value of the scale type; 0: all codes are the zero
  float zero = 0;   ///< an integer, but for ZeroKind::affine
  int largest = 0;  ///< code

  MPQ_HOST_DEVICE std::uint8_t code(float w) const {
    const float steps = scale == 0 ? std::round(zero) : std::nearbyint(w / scale + zero);
    return static_cast<std::uint8_t>(std::clamp(steps, 0.0f, static_cast<float>(largest)));
  }
  MPQ_HOST_DEVICE float weight(std::uint8_t code) const {
    return scale * (static_cast<float>(code) - zero);
  }
};

/// Where the groups of K input features begin and end.
struct Grouping {
  std::int64_t k, size, count;

  Grouping(std::int64_t in_features, std::int64_t group_size)
      : k(in_features),
        size(group_size == -1 ? in_features : group_size),
        count(ceil_div(in_features, size)) {}
  MPQ_HOST_DEVICE std::span<const float> of(const float* row, std::int64_t group) const {
    const std::int64_t begin = group * size;
    return {row + begin, static_cast<std::size_t>(std::min(size, k - begin))};
  }
};

/// To the scale type; not to zero, which would stand for no weight but zero.
MPQ_HOST_DEVICE inline float round_scale(double scale, DType dtype) {
  const auto narrow = static_cast<float>(scale);
  const float rounded = to_float(from_float(narrow, dtype), dtype);
  if (rounded != 0 || scale == 0) return rounded;
  return std::copysign(to_float(1, dtype), narrow);
}

/// The s with the least square error of weights that are 0 or -s: if the weights that are to be -s
/// are chosen, s is minus their mean and the error falls by (their sum)^2 / (their number); the
/// best choice is the largest or the smallest weights, as many as make the most of that. `sorted`
/// has room for the weights.
MPQ_HOST_DEVICE inline double best_step(std::span<const float> weights, float* sorted) {
  // std::copy comes to nothing in device code, and std::sort recurses, for which there is no room.
  const auto size = static_cast<std::int64_t>(weights.size());
  for (std::int64_t i = 0; i < size; ++i) sorted[i] = weights[static_cast<std::size_t>(i)];
  std::make_heap(sorted, sorted + size);
  std::sort_heap(sorted, sorted + size);
  double best_gain = 0, best = 0, sum = 0;
  const auto take = [&](float weight, std::int64_t count) {
    sum += weight;
    const double gain = sum * sum / static_cast<double>(count);
    if (gain > best_gain) best_gain = gain, best = -sum / static_cast<double>(count);
  };
  for (std::int64_t i = 0; i < size; ++i) take(sorted[i], i + 1);
  sum = 0;
  for (std::int64_t i = 0; i < size; ++i) take(sorted[size - 1 - i], i + 1);
  return best;
}

/// The range of `weights` over all codes (symmetric: see quantize()), with a scale that scale_dtype
/// holds; infinite if it has none so large. `scratch` has room for as many floats.
MPQ_HOST_DEVICE inline GroupQuantizer fit_range(std::span<const float> weights,
                                                const QuantizeOptions& options, float* scratch) {
  GroupQuantizer q{.scale = 0,
                   .zero = static_cast<float>(1 << (options.bits - 1)),
                   .largest = (1 << options.bits) - 1};
  float low = weights[0], high = weights[0];
  for (const float w : weights) low = std::min(low, w), high = std::max(high, w);
  if (!options.symmetric) {
    const double least = std::min(low, 0.0f), most = std::max(high, 0.0f);
    q.scale = round_scale((most - least) / q.largest, options.scale_dtype);
    q.zero = q.scale == 0 ? 0.0f
                          : static_cast<float>(std::clamp(std::nearbyint(-least / q.scale), 0.0,
                                                          static_cast<double>(q.largest)));
  } else if (options.bits == 1) {
    q.scale = round_scale(best_step(weights, scratch), options.scale_dtype);
  } else {
    // Codes reach one step further below zero than above: the scale takes the sign that puts the
    // largest magnitude there.
    const double extreme = -low > high ? low : high;
    q.scale = round_scale(-extreme / q.zero, options.scale_dtype);
  }
  return q;
}

/// Half-quadratic splitting for min over z of sum |w - s (q - z)|^p (Badri and Shaji,
/// "Half-Quadratic Quantization of Large Machine Learning Models", 2023). In steps, so that kBeta
/// means the same for every scale: with r = w / s - (q - z), e is r shrunk, and z the mean of q -
/// (w / s - e).
struct HalfQuadratic {
  static constexpr int kIterations = 20;
  static constexpr float kNorm = 0.7f;  // p: below 1, so that outliers do not pull
  static constexpr float kBeta = 10.0f, kBetaGrowth = 1.01f;
  static constexpr float kSettled = 1e-4f;  // change of a zero that is one no more

  /// One step of the optimisation: the loss at the quantizer's zero, and the zero after it.
  struct Step {
    double loss = 0;
    float zero = 0;
  };

  MPQ_HOST_DEVICE static Step step(std::span<const float> weights, const GroupQuantizer& quantizer,
                                   float beta) {
    Step result;
    double sum = 0;
    for (const float w : weights) {
      const auto q = static_cast<float>(quantizer.code(w));
      const float steps = w / quantizer.scale, r = steps - (q - quantizer.zero);
      const float size = std::abs(r), power = size == 0 ? 0 : std::pow(size, kNorm - 1);
      result.loss += size * power;
      sum += q - (steps - std::copysign(std::max(0.0f, size - power / beta), r));
    }
    result.zero = static_cast<float>(sum / static_cast<double>(weights.size()));
    return result;
  }

  /// `start` with the zero that the optimisation finds for `weights`; with float_zeros a real
  /// number, else an integer. `start` itself if that has the smaller loss.
  MPQ_HOST_DEVICE static GroupQuantizer optimize_zero(std::span<const float> weights,
                                                      const GroupQuantizer& start,
                                                      const QuantizeOptions& options) {
    if (start.scale == 0 || !std::isfinite(start.scale)) return start;
    GroupQuantizer best = start, now = start;
    double best_loss = std::numeric_limits<double>::infinity();
    float beta = kBeta, tried = std::numeric_limits<float>::quiet_NaN();
    for (int i = 0; i < kIterations; ++i, beta *= kBetaGrowth) {
      const Step here = step(weights, now, beta);
      GroupQuantizer candidate = now;
      double its_loss = here.loss;
      if (!options.float_zeros) {  // now.zero is real from the second step on
        candidate.zero =
            std::clamp(std::nearbyint(now.zero), 0.0f, static_cast<float>(now.largest));
        if (candidate.zero != now.zero && candidate.zero != tried) {
          its_loss = step(weights, candidate, beta).loss;
        } else if (candidate.zero != now.zero) {
          its_loss = best_loss;
        }
        tried = candidate.zero;
      }
      if (its_loss < best_loss) {
        best_loss = its_loss;
        best = candidate;
      }
      if (std::abs(here.zero - now.zero) < kSettled) break;
      now.zero = here.zero;
    }
    return best;
  }
};

/// fit_range, with the optimised zero for QuantizeMethod::half_quadratic.
MPQ_HOST_DEVICE inline GroupQuantizer fit_group(std::span<const float> weights,
                                                const QuantizeOptions& options, float* scratch) {
  const GroupQuantizer range = fit_range(weights, options, scratch);
  return options.method == QuantizeMethod::half_quadratic
             ? HalfQuadratic::optimize_zero(weights, range, options)
             : range;
}

}  // namespace mpq::detail

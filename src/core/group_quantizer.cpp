#include "core/group_quantizer.hpp"

#include <fmt/format.h>

#include <functional>
#include <limits>

#include "mpq/error.hpp"

namespace mpq::detail {

namespace {

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ErrorCode::invalid_argument, fmt::format(format, std::forward<Args>(args)...));
}

// To the scale type; not to zero, which would stand for no weight but zero.
float round_scale(double scale, DType dtype) {
  const auto narrow = static_cast<float>(scale);
  const float rounded = to_float(from_float(narrow, dtype), dtype);
  if (rounded != 0 || scale == 0) return rounded;
  return std::copysign(to_float(1, dtype), narrow);
}

// The s with the least square error of weights that are 0 or -s: if the weights that are to be -s
// are chosen, s is minus their mean and the error falls by (their sum)^2 / (their number); the best
// choice is the largest or the smallest weights, as many as make the most of that.
double best_step(std::vector<float>& sorted) {
  double best_gain = 0, best = 0;
  const auto scan = [&](auto order) {
    std::sort(sorted.begin(), sorted.end(), order);
    double sum = 0;
    for (std::size_t i = 0; i < sorted.size(); ++i) {
      sum += sorted[i];
      const auto count = static_cast<double>(i + 1);
      if (sum * sum / count > best_gain) {
        best_gain = sum * sum / count;
        best = -sum / count;
      }
    }
  };
  scan(std::less<>());
  scan(std::greater<>());
  return best;
}

// Half-quadratic splitting for min over z of sum |w - s (q - z)|^p (Badri and Shaji,
// "Half-Quadratic Quantization of Large Machine Learning Models", 2023). In steps, so that kBeta
// means the same for every scale: with r = w / s - (q - z), e is r shrunk, and z the mean of q - (w
// / s - e).
constexpr int kIterations = 20;
constexpr float kNorm = 0.7f;  // p: below 1, so that outliers do not pull
constexpr float kBeta = 10.0f, kBetaGrowth = 1.01f;

// From here on a zero has settled.
constexpr float kSettled = 1e-4f;

/// One step of the optimisation: the loss at the quantizer's zero, and the zero after it.
struct Step {
  double loss = 0;
  float zero = 0;
};

Step step(std::span<const float> weights, const GroupQuantizer& quantizer, float beta) {
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

}  // namespace

GroupQuantizer fit_range(std::span<const float> weights, const QuantizeOptions& options,
                         std::vector<float>& scratch) {
  GroupQuantizer q{.scale = 0,
                   .zero = static_cast<float>(1 << (options.bits - 1)),
                   .largest = (1 << options.bits) - 1};
  const auto [low, high] = std::minmax_element(weights.begin(), weights.end());
  if (!options.symmetric) {
    const double least = std::min(*low, 0.0f), most = std::max(*high, 0.0f);
    q.scale = round_scale((most - least) / q.largest, options.scale_dtype);
    q.zero = q.scale == 0 ? 0.0f
                          : static_cast<float>(std::clamp(std::nearbyint(-least / q.scale), 0.0,
                                                          static_cast<double>(q.largest)));
  } else if (options.bits == 1) {
    scratch.assign(weights.begin(), weights.end());
    q.scale = round_scale(best_step(scratch), options.scale_dtype);
  } else {
    // Codes reach one step further below zero than above: the scale takes the sign that puts the
    // largest magnitude there.
    const double extreme = -*low > *high ? *low : *high;
    q.scale = round_scale(-extreme / q.zero, options.scale_dtype);
  }
  return q;
}

GroupQuantizer optimize_zero(std::span<const float> weights, const GroupQuantizer& start,
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
      candidate.zero = std::clamp(std::nearbyint(now.zero), 0.0f, static_cast<float>(now.largest));
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

GroupQuantizer fit_group(std::span<const float> weights, const QuantizeOptions& options,
                         std::vector<float>& scratch) {
  const GroupQuantizer range = fit_range(weights, options, scratch);
  return options.method == QuantizeMethod::half_quadratic ? optimize_zero(weights, range, options)
                                                          : range;
}

void check_options(const QuantizeOptions& options) {
  if (!is_supported_bits(options.bits)) {
    refuse("bits is {}, expected 1, 2, 4 or 8", options.bits);
  }
  if (options.group_size < 1 && options.group_size != -1) {
    refuse("group_size is {}, expected -1 or at least 1", options.group_size);
  }
  if (options.symmetric && options.method == QuantizeMethod::half_quadratic) {
    refuse("half-quadratic optimisation is of the zero, which symmetric weights do not have");
  }
  if (options.float_zeros && options.method != QuantizeMethod::half_quadratic) {
    refuse("float_zeros come from half-quadratic optimisation only");
  }
}

void check_weight(std::span<const float> weight, std::int64_t n, std::int64_t k) {
  constexpr std::int64_t kMaxExtent = std::numeric_limits<std::int32_t>::max();
  if (n < 1 || k < 1 || n > kMaxExtent || k > kMaxExtent) {
    refuse("weight is [{}, {}], expected 1 to {} each", n, k, kMaxExtent);
  }
  if (weight.size() != static_cast<std::size_t>(n * k)) {
    refuse("weight has {} values, expected {} = {} x {}", weight.size(), n * k, n, k);
  }
}

void check_finite(std::span<const float> row, std::int64_t channel) {
  for (std::size_t i = 0; i < row.size(); ++i) {
    if (!std::isfinite(row[i])) {
      refuse("weight of output channel {}, input feature {} is {}, expected a finite value",
             channel, i, row[i]);
    }
  }
}

void refuse_scale(std::int64_t channel, std::int64_t group, DType dtype) {
  refuse("weights of output channel {}, group {} need a scale that {} cannot hold", channel, group,
         to_string(dtype));
}

WeightsData begin_weights(std::int64_t n, std::int64_t k, const QuantizeOptions& options) {
  WeightsData data;
  data.in_features = k;
  data.out_features = n;
  data.group_size = options.group_size;
  data.dtype = options.scale_dtype;
  data.zero_kind = options.symmetric     ? ZeroKind::none
                   : options.float_zeros ? ZeroKind::affine
                                         : ZeroKind::integer;
  data.scales.resize(static_cast<std::size_t>(data.groups() * n));
  if (data.zero_kind == ZeroKind::integer) data.zeros.resize(data.scales.size());
  if (data.zero_kind == ZeroKind::affine) data.affine_zeros.resize(data.scales.size());
  return data;
}

void store_group(WeightsData& data, std::size_t at, const GroupQuantizer& quantizer) {
  data.scales[at] = from_float(quantizer.scale, data.dtype);
  if (data.zero_kind == ZeroKind::integer) {
    data.zeros[at] = static_cast<std::uint16_t>(quantizer.zero);
  } else if (data.zero_kind == ZeroKind::affine) {
    data.affine_zeros[at] = -quantizer.scale * quantizer.zero;
  }
}

}  // namespace mpq::detail

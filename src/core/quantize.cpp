#include "mpq/quantize.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "cpu/thread_pool.hpp"
#include "mpq/error.hpp"
#include "mpq/pack.hpp"

namespace mpq {
namespace {

using detail::Range;

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ErrorCode::invalid_argument, fmt::format(format, std::forward<Args>(args)...));
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

// One group of one channel.
struct Quantizer {
  float scale = 0;  // exactly a value of the scale type; 0: all codes are the zero
  int zero = 0;
  int largest = 0;  // code

  std::uint8_t code(float w) const {
    if (scale == 0) return static_cast<std::uint8_t>(std::min(zero, largest));
    const float steps = std::nearbyint(w / scale) + static_cast<float>(zero);
    return static_cast<std::uint8_t>(std::clamp(steps, 0.0f, static_cast<float>(largest)));
  }
};

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

Quantizer fit(std::span<const float> weights, const QuantizeOptions& options,
              std::vector<float>& scratch) {
  Quantizer q{.scale = 0, .zero = 1 << (options.bits - 1), .largest = (1 << options.bits) - 1};
  const auto [low, high] = std::minmax_element(weights.begin(), weights.end());
  if (!options.symmetric) {
    const double least = std::min(*low, 0.0f), most = std::max(*high, 0.0f);
    q.scale = round_scale((most - least) / q.largest, options.scale_dtype);
    q.zero = q.scale == 0 ? 0
                          : static_cast<int>(std::clamp(std::nearbyint(-least / q.scale), 0.0,
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

}  // namespace

AnyQuantizedWeights quantize(std::span<const float> weight, std::int64_t out_features,
                             std::int64_t in_features, const QuantizeOptions& options) {
  const std::int64_t n = out_features, k = in_features;
  const int bits = options.bits;
  if (!is_supported_bits(bits)) refuse("bits is {}, expected 1, 2, 4 or 8", bits);
  if (options.group_size < 1 && options.group_size != -1) {
    refuse("group_size is {}, expected -1 or at least 1", options.group_size);
  }
  check_weight(weight, n, k);

  WeightsData data;
  data.in_features = k;
  data.out_features = n;
  data.group_size = options.group_size;
  data.dtype = options.scale_dtype;
  data.zero_kind = options.symmetric ? ZeroKind::none : ZeroKind::integer;
  const std::int64_t groups = data.groups(), per_word = 32 / bits;
  const std::int64_t size = options.group_size == -1 ? k : options.group_size;
  data.qweight.resize(static_cast<std::size_t>(ceil_div(k, per_word) * n));
  data.scales.resize(static_cast<std::size_t>(groups * n));
  if (!options.symmetric) data.zeros.resize(data.scales.size());

  // Several channels at a time: their words of a row of qweight are neighbours.
  constexpr std::int64_t kChannels = 16;
  detail::parallel_for(n, kChannels, [&](Range range) {
    std::vector<float> scratch;
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(kChannels * k));
    for (std::int64_t first = range.begin; first < range.end; first += kChannels) {
      const std::int64_t channels = std::min(kChannels, range.end - first);
      for (std::int64_t c = 0; c < channels; ++c) {
        const auto row =
            weight.subspan(static_cast<std::size_t>((first + c) * k), static_cast<std::size_t>(k));
        for (std::size_t i = 0; i < row.size(); ++i) {
          if (!std::isfinite(row[i])) {
            refuse("weight of output channel {}, input feature {} is {}, expected a finite value",
                   first + c, i, row[i]);
          }
        }
        for (std::int64_t g = 0; g < groups; ++g) {
          const auto begin = static_cast<std::size_t>(g * size);
          const auto group =
              row.subspan(begin, std::min(static_cast<std::size_t>(size), row.size() - begin));
          const Quantizer quantizer = fit(group, options, scratch);
          if (!std::isfinite(quantizer.scale)) {
            refuse("weights of output channel {}, group {} need a scale that {} cannot hold",
                   first + c, g, to_string(options.scale_dtype));
          }
          const auto at = static_cast<std::size_t>(g * n + first + c);
          data.scales[at] = from_float(quantizer.scale, options.scale_dtype);
          if (!options.symmetric) data.zeros[at] = static_cast<std::uint16_t>(quantizer.zero);
          std::uint8_t* target = codes.data() + static_cast<std::size_t>(c * k) + begin;
          for (std::size_t i = 0; i < group.size(); ++i) target[i] = quantizer.code(group[i]);
        }
      }
      for (std::int64_t i = 0; i < k; ++i) {
        std::uint32_t* words = data.qweight.data() + i / per_word * n + first;
        const auto shift = static_cast<int>(i % per_word) * bits;
        for (std::int64_t c = 0; c < channels; ++c) {
          words[c] |= static_cast<std::uint32_t>(codes[static_cast<std::size_t>(c * k + i)])
                      << shift;
        }
      }
    }
  });
  return make_quantized_weights(bits, std::move(data));
}

double relative_error(std::span<const float> weight, const AnyQuantizedWeights& quantized) {
  const WeightsData& data = data_of(quantized);
  const std::int64_t n = data.out_features, k = data.in_features;
  check_weight(weight, n, k);
  const std::vector<float> dense = dequantize(quantized);
  struct Sums {
    double error = 0, weight = 0;
  };
  // By row, so that the order of the additions does not depend on the number of threads.
  std::vector<Sums> rows(static_cast<std::size_t>(n));
  detail::parallel_for(n, 1, [&](Range range) {
    for (std::int64_t row = range.begin; row < range.end; ++row) {
      Sums& sums = rows[static_cast<std::size_t>(row)];
      for (std::int64_t i = row * k; i < (row + 1) * k; ++i) {
        const double w = weight[static_cast<std::size_t>(i)];
        const double error = w - static_cast<double>(dense[static_cast<std::size_t>(i)]);
        sums.error += error * error;
        sums.weight += w * w;
      }
    }
  });
  Sums total;
  for (const Sums& sums : rows) {
    total.error += sums.error;
    total.weight += sums.weight;
  }
  return total.error == 0 ? 0 : std::sqrt(total.error / total.weight);
}

}  // namespace mpq

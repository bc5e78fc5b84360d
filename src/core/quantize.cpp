#include "mpq/quantize.hpp"

#include <algorithm>
#include <cmath>

#include "core/group_quantizer.hpp"
#include "cpu/thread_pool.hpp"
#include "mpq/error.hpp"
#include "mpq/pack.hpp"

namespace mpq {

using detail::check_weight;
using detail::Range;

AnyQuantizedWeights quantize(std::span<const float> weight, std::int64_t out_features,
                             std::int64_t in_features, const QuantizeOptions& options) {
  const std::int64_t n = out_features, k = in_features;
  const int bits = options.bits;
  detail::check_options(options);
  check_weight(weight, n, k);
  WeightsData data = detail::begin_weights(n, k, options);
  const std::int64_t groups = data.groups(), per_word = 32 / bits;
  const std::int64_t size = options.group_size == -1 ? k : options.group_size;
  data.qweight.resize(static_cast<std::size_t>(ceil_div(k, per_word) * n));

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
        detail::check_finite(row, first + c);
        for (std::int64_t g = 0; g < groups; ++g) {
          const auto begin = static_cast<std::size_t>(g * size);
          const auto group =
              row.subspan(begin, std::min(static_cast<std::size_t>(size), row.size() - begin));
          const auto quantizer = detail::fit_group(group, options, scratch);
          if (!std::isfinite(quantizer.scale)) {
            detail::refuse_scale(first + c, g, options.scale_dtype);
          }
          detail::store_group(data, static_cast<std::size_t>(g * n + first + c), quantizer);
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

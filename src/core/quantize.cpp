#include "mpq/quantize.hpp"

#include <algorithm>
#include <cmath>

#include "core/cuda_runtime.hpp"
#include "core/group_quantizer.hpp"
#include "cpu/thread_pool.hpp"
#include "mpq/error.hpp"
#include "mpq/pack.hpp"

namespace mpq {

using detail::check_weight;
using detail::Grouping;
using detail::Range;

namespace {

void store(WeightsData& data, const detail::GroupQuantizer& quantizer, std::int64_t channel,
           std::int64_t group) {
  if (!std::isfinite(quantizer.scale)) detail::refuse_scale(channel, group, data.dtype);
  detail::store_group(data, static_cast<std::size_t>(group * data.out_features + channel),
                      quantizer);
}

void quantize_on_cpu(std::span<const float> weight, const Grouping& grouping,
                     const QuantizeOptions& options, WeightsData& data) {
  const std::int64_t n = data.out_features, k = grouping.k, per_word = 32 / options.bits;
  data.qweight.resize(static_cast<std::size_t>(ceil_div(k, per_word) * n));
  // Several channels at a time: their words of a row of qweight are neighbours.
  constexpr std::int64_t kChannels = 16;
  detail::parallel_for(n, kChannels, [&](Range range) {
    std::vector<float> scratch(static_cast<std::size_t>(std::min(grouping.size, k)));
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(kChannels * k));
    for (std::int64_t first = range.begin; first < range.end; first += kChannels) {
      const std::int64_t channels = std::min(kChannels, range.end - first);
      for (std::int64_t c = 0; c < channels; ++c) {
        const auto row =
            weight.subspan(static_cast<std::size_t>((first + c) * k), static_cast<std::size_t>(k));
        detail::check_finite(row, first + c);
        std::uint8_t* target = codes.data() + static_cast<std::size_t>(c * k);
        for (std::int64_t g = 0; g < grouping.count; ++g) {
          const auto group = grouping.of(row.data(), g);
          const auto quantizer = detail::fit_group(group, options, scratch.data());
          store(data, quantizer, first + c, g);
          for (const float w : group) *target++ = quantizer.code(w);
        }
      }
      for (std::int64_t i = 0; i < k; ++i) {
        std::uint32_t* words = data.qweight.data() + i / per_word * n + first;
        const auto shift = static_cast<int>(i % per_word) * options.bits;
        for (std::int64_t c = 0; c < channels; ++c) {
          words[c] |= static_cast<std::uint32_t>(codes[static_cast<std::size_t>(c * k + i)])
                      << shift;
        }
      }
    }
  });
}

void quantize_on_cuda(Device device, std::span<const float> weight, const Grouping& grouping,
                      const QuantizeOptions& options, WeightsData& data) {
  const std::int64_t n = data.out_features, k = grouping.k;
  const auto quantizers = detail::cuda_quantize(device, weight, n, grouping, options, data.qweight);
  for (std::int64_t c = 0; c < n; ++c) {
    for (std::int64_t g = 0; g < grouping.count; ++g) {
      const auto& quantizer = quantizers[static_cast<std::size_t>(g * n + c)];
      if (std::isnan(quantizer.scale)) {
        detail::check_finite(
            weight.subspan(static_cast<std::size_t>(c * k), static_cast<std::size_t>(k)), c);
      }
      store(data, quantizer, c, g);
    }
  }
}

}  // namespace

AnyQuantizedWeights quantize(std::span<const float> weight, std::int64_t out_features,
                             std::int64_t in_features, const QuantizeOptions& options,
                             Device device) {
  detail::check_options(options);
  check_weight(weight, out_features, in_features);
  WeightsData data = detail::begin_weights(out_features, in_features, options);
  const Grouping grouping(in_features, options.group_size);
  if (device.is_cpu()) {
    quantize_on_cpu(weight, grouping, options, data);
  } else {
    quantize_on_cuda(device, weight, grouping, options, data);
  }
  return make_quantized_weights(options.bits, std::move(data));
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

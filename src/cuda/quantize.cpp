#include "quantize.hpp"

#include <algorithm>

#include "core/cuda_runtime.hpp"
#include "cuda/cuda_error.hpp"
#include "cuda/device_arrays.hpp"

namespace mpq::detail {

std::vector<GroupQuantizer> cuda_quantize(Device device, std::span<const float> weight,
                                          std::int64_t n, const Grouping& grouping,
                                          const QuantizeOptions& options,
                                          std::vector<std::uint32_t>& qweight) {
  // So many channels at a time that their weights take this much memory, or one.
  constexpr std::int64_t kSlabBytes = std::int64_t{256} << 20;
  const std::int64_t k = grouping.k;
  const std::int64_t slab =
      std::clamp<std::int64_t>(kSlabBytes / (k * std::int64_t{sizeof(float)}), 1, n);
  DeviceArray<float> weights(device, slab, k), scratch;
  if (options.symmetric && options.bits == 1) scratch = DeviceArray<float>(device, slab, k);
  DeviceArray<GroupQuantizer> quantizers(device, grouping.count, n);
  DeviceArray<std::uint32_t> words(device, ceil_div(k, 32 / options.bits), n);

  const CurrentDevice current(device);
  for (std::int64_t first = 0; first < n; first += slab) {
    const std::int64_t channels = std::min(slab, n - first);
    weights.buffer().copy_from_host(weight.data() + first * k,
                                    static_cast<std::size_t>(channels * k) * sizeof(float));
    check_cuda(kernels::fit_groups(weights.data(), channels, grouping, options, scratch.data(), n,
                                   quantizers.data() + first, nullptr),
               "fit_groups");
    check_cuda(kernels::encode_groups(options.bits, weights.data(), channels, grouping,
                                      quantizers.data() + first, n, words.data() + first, nullptr),
               "encode_groups");
  }
  qweight.resize(static_cast<std::size_t>(words.size()));
  words.buffer().copy_to_host(qweight.data(), qweight.size() * sizeof(std::uint32_t));
  std::vector<GroupQuantizer> result(static_cast<std::size_t>(quantizers.size()));
  quantizers.buffer().copy_to_host(result.data(), result.size() * sizeof(GroupQuantizer));
  return result;
}

}  // namespace mpq::detail

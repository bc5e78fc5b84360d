#pragma once
// What device.cpp and quantize.cpp need of CUDA. Implemented in src/cuda, or by without_cuda.cpp,
// which throws Error(device_unavailable).

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/group_fit.hpp"
#include "mpq/device.hpp"
#include "mpq/quantize.hpp"

namespace mpq::detail {

int cuda_device_count() noexcept;
void* cuda_allocate(Device device, std::size_t bytes);
void cuda_free(Device device, void* data) noexcept;
enum class CopyDirection { host_to_device, device_to_host };
/// Ordered in the stream and finished, as far as host memory goes, on return.
void cuda_copy(Device device, void* target, const void* source, std::size_t bytes,
               CopyDirection direction, StreamRef stream);
void cuda_synchronize(Device device, StreamRef stream);
DeviceTraits cuda_traits(Device device);
std::string cuda_name(Device device);

/// weight [n, k] -> canonical words qweight [ceil(k * bits / 32), n] and the groups' quantizers [G,
/// n]; the scale is NaN where a group has a weight that is not finite. Options were checked.
std::vector<GroupQuantizer> cuda_quantize(Device device, std::span<const float> weight,
                                          std::int64_t n, const Grouping& grouping,
                                          const QuantizeOptions& options,
                                          std::vector<std::uint32_t>& qweight);

}  // namespace mpq::detail

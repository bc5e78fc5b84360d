#pragma once
// What device.cpp needs of CUDA. Implemented by src/cuda/runtime.cpp, or by without_cuda.cpp, which
// throws Error(device_unavailable).

#include <cstddef>
#include <string>

#include "mpq/device.hpp"

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

}  // namespace mpq::detail

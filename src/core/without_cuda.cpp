// Stands in for src/cuda in a build without CUDA: everything that needs a device says so.
#ifndef MPQ_WITH_CUDA

#include "core/backend.hpp"
#include "core/cuda_runtime.hpp"
#include "mpq/error.hpp"

namespace mpq::detail {
namespace {

[[noreturn]] void refuse(Device device) {
  throw Error(ErrorCode::device_unavailable,
              to_string(device) + ": this build of mpq has no CUDA (MPQ_ENABLE_CUDA=OFF)");
}

}  // namespace

int cuda_device_count() noexcept {
  return 0;
}
void* cuda_allocate(Device device, std::size_t) {
  refuse(device);
}
void cuda_free(Device, void*) noexcept {}
void cuda_copy(Device device, void*, const void*, std::size_t, CopyDirection, StreamRef) {
  refuse(device);
}
void cuda_synchronize(Device device, StreamRef) {
  refuse(device);
}
DeviceTraits cuda_traits(Device device) {
  refuse(device);
}
std::string cuda_name(Device device) {
  refuse(device);
}
std::vector<GroupQuantizer> cuda_quantize(Device device, std::span<const float>, std::int64_t,
                                          const Grouping&, const QuantizeOptions&,
                                          std::vector<std::uint32_t>&) {
  refuse(device);
}
std::unique_ptr<Backend> make_cuda_backend(int, const LinearConfig&, Device device) {
  refuse(device);
}

}  // namespace mpq::detail

#endif

#pragma once
// Every CUDA call's status becomes an Error; every call runs with the layer's device current.

#include <cuda_runtime_api.h>

#include "core/format.hpp"
#include "mpq/device.hpp"
#include "mpq/error.hpp"

namespace mpq::detail {

/// Throws Error(device_failure) naming the call.
inline void check_cuda(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  throw Error(ErrorCode::device_failure,
              detail::format("{} failed: {} ({})", call, cudaGetErrorString(status),
                             cudaGetErrorName(status)));
}

/// Makes a device current and puts the previous one back.
class CurrentDevice {
 public:
  explicit CurrentDevice(Device device) {
    check_cuda(cudaGetDevice(&previous_), "cudaGetDevice");
    if (previous_ == device.index()) return;
    const cudaError_t status = cudaSetDevice(device.index());
    if (status != cudaSuccess) {
      (void)cudaGetLastError();  // a missing device is our error, not the caller's next one
      throw Error(ErrorCode::device_unavailable,
                  detail::format("{}: {}, this machine has {} CUDA devices", to_string(device),
                                 cudaGetErrorString(status), Device::cuda_count()));
    }
    changed_ = true;
  }
  ~CurrentDevice() {
    if (changed_) (void)cudaSetDevice(previous_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

}  // namespace mpq::detail

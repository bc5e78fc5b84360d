#include <cuda_runtime_api.h>

#include "core/cuda_runtime.hpp"
#include "cuda/cuda_error.hpp"
#include "mpq/plan.hpp"
#include "occupancy.hpp"

namespace mpq::detail {
namespace {

// cudaGetDevice fails with no driver at all, in words of its own; say it in ours.
void require(Device device) {
  const int count = Device::cuda_count();
  if (device.is_cpu() || device.index() >= count) {
    throw Error(ErrorCode::device_unavailable,
                detail::format("{}: this machine has {} CUDA devices", to_string(device), count));
  }
}

int attribute(Device device, cudaDeviceAttr name) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, name, device.index()), "cudaDeviceGetAttribute");
  return value;
}

}  // namespace

int cuda_device_count() noexcept {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  (void)cudaGetLastError();  // no driver, no device: an answer, not an error
  return 0;
}

void* cuda_allocate(Device device, std::size_t bytes) {
  require(device);
  const CurrentDevice current(device);
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    std::size_t free = 0, total = 0;
    (void)cudaMemGetInfo(&free, &total);
    throw Error(ErrorCode::device_failure,
                detail::format("{}: no memory for {} bytes, {} of {} free", to_string(device),
                               bytes, free, total));
  }
  check_cuda(status, "cudaMalloc");
  return data;
}

void cuda_free(Device, void* data) noexcept {
  (void)cudaFree(data);
}

void cuda_copy(Device device, void* target, const void* source, std::size_t bytes,
               CopyDirection direction, StreamRef stream) {
  const CurrentDevice current(device);
  const auto kind =
      direction == CopyDirection::host_to_device ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost;
  check_cuda(cudaMemcpyAsync(target, source, bytes, kind, stream.get()), "cudaMemcpyAsync");
  check_cuda(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
}

void cuda_synchronize(Device device, StreamRef stream) {
  require(device);
  const CurrentDevice current(device);
  check_cuda(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
}

DeviceTraits cuda_traits(Device device) {
  require(device);
  DeviceTraits traits{
      .compute_capability = 10 * attribute(device, cudaDevAttrComputeCapabilityMajor) +
                            attribute(device, cudaDevAttrComputeCapabilityMinor),
      .sm90a_code = MPQ_SM90A_CODE == 1,
      .sm_count = attribute(device, cudaDevAttrMultiProcessorCount),
      .l2_bytes = attribute(device, cudaDevAttrL2CacheSize),
      .shared_bytes_per_block = attribute(device, cudaDevAttrMaxSharedMemoryPerBlockOptin),
  };
  // kHz and bits; two transfers a clock. Where the driver does not tell, as if it were an H200.
  const double memory = 2e-6 * attribute(device, cudaDevAttrMemoryClockRate) *
                        attribute(device, cudaDevAttrGlobalMemoryBusWidth) / 8;
  if (memory > 0) traits.memory_gb_per_s = memory;
  const CurrentDevice current(device);
  const auto count = [&](std::array<int, 7>& clusters, std::int64_t shared_bytes) {
    clusters = {};
    if (!runs_sm90a_code(traits)) return;
    for (std::size_t i = 0; i < clusters.size(); ++i) {
      check_cuda(kernels::resident_clusters(static_cast<int>(i) + 2, static_cast<int>(shared_bytes),
                                            &clusters[i]),
                 "cudaOccupancyMaxActiveClusters");
    }
  };
  count(traits.resident_clusters, traits.shared_bytes_per_block);
  count(traits.paired_clusters, pair_shared_bytes(traits));
  return traits;
}

std::string cuda_name(Device device) {
  require(device);
  cudaDeviceProp properties;
  check_cuda(cudaGetDeviceProperties(&properties, device.index()), "cudaGetDeviceProperties");
  return properties.name;
}

}  // namespace mpq::detail

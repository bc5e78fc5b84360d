#include <cuda_runtime.h>

#include "occupancy.hpp"

namespace mpq::kernels {
namespace {

__global__ void occupant() {}

}  // namespace

cudaError_t resident_clusters(int ctas, int shared_bytes, int* clusters) {
  const cudaError_t status =
      cudaFuncSetAttribute(occupant, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (status != cudaSuccess) return status;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(ctas), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(ctas));
  config.blockDim = dim3(32);
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaOccupancyMaxActiveClusters(clusters, occupant, &config);
}

}  // namespace mpq::kernels

// kernels/occupancy.cu: the emulated device has no GPCs.

#include "occupancy.hpp"

namespace mpq::kernels {

cudaError_t resident_clusters(int ctas, int shared_bytes, int* clusters) {
  int sms = 0, shared = 0;
  cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0);
  cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
  *clusters = sms * (shared / shared_bytes) / ctas;
  return cudaSuccess;
}

}  // namespace mpq::kernels

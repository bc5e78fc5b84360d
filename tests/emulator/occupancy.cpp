// kernels/occupancy.cu: the emulated device has no GPCs.

#include "occupancy.hpp"

namespace mpq::kernels {

cudaError_t resident_clusters(int ctas, int, int* clusters) {
  int sms = 0;
  cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0);
  *clusters = sms / ctas;
  return cudaSuccess;
}

}  // namespace mpq::kernels

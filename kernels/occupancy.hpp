#pragma once
// How many clusters a device runs at once.

#include <cuda_runtime_api.h>

namespace mpq::kernels {

/// Of `ctas` CTAs with `shared_bytes` of shared memory each, on the current device.
cudaError_t resident_clusters(int ctas, int shared_bytes, int* clusters);

}  // namespace mpq::kernels

#pragma once
// Kernels with a thread for each element.

#include <cuda_runtime.h>

#include <cstdint>

#include "mpq/layout.hpp"

namespace mpq::kernels {

inline constexpr int kElementThreads = 256;  // of a CTA

/// CTAs for so many elements.
inline dim3 grid_for(std::int64_t elements) {
  return dim3(static_cast<unsigned>(ceil_div(elements, kElementThreads)));
}

/// The thread's among all of them.
__device__ __forceinline__ std::int64_t thread_index() {
  return static_cast<std::int64_t>(blockIdx.x) * kElementThreads + threadIdx.x;
}

}  // namespace mpq::kernels

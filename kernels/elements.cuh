#pragma once
// Kernels with a thread for each element, or for every so many-th.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "mpq/layout.hpp"

namespace mpq::kernels {

inline constexpr int kElementThreads = 256;  // of a CTA

/// CTAs for so many elements.
inline dim3 grid_for(std::int64_t elements) {
  return dim3(static_cast<unsigned>(ceil_div(elements, kElementThreads)));
}

/// CTAs, not too many, for so many elements, of which each thread takes every thread_count()-th.
inline dim3 strided_grid_for(std::int64_t elements) {
  constexpr std::int64_t kMost = 1 << 12;
  return dim3(static_cast<unsigned>(std::min(ceil_div(elements, kElementThreads), kMost)));
}

/// The thread's among all of them.
__device__ __forceinline__ std::int64_t thread_index() {
  return static_cast<std::int64_t>(blockIdx.x) * kElementThreads + threadIdx.x;
}
__device__ __forceinline__ std::int64_t thread_count() {
  return std::int64_t{gridDim.x} * kElementThreads;
}

}  // namespace mpq::kernels

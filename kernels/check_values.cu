#include <cuda_runtime.h>

#include <cstdint>

#include "elements.cuh"
#include "launch.cuh"
#include "prepare.hpp"

namespace mpq::kernels {
namespace {

constexpr int kThreads = kElementThreads;

// Infinities and NaN have all the bits of `exponent`.
template <class Value>
__global__ void __launch_bounds__(kThreads)
    first_non_finite_kernel(const Value* values, Value exponent, std::int64_t count,
                            unsigned long long* first) {
  for (std::int64_t i = thread_index(); i < count; i += thread_count()) {
    if ((values[i] & exponent) != exponent) continue;
    atomicMin(first, static_cast<unsigned long long>(i));
    return;
  }
}

template <class Value>
cudaError_t find_first(const Value* values, Value exponent, std::int64_t count,
                       unsigned long long* first, cudaStream_t stream) {
  return launch_kernel(first_non_finite_kernel<Value>, strided_grid_for(count), kThreads, 0, stream,
                       values, exponent, count, first);
}

}  // namespace

cudaError_t first_non_finite(const std::uint16_t* values, DType dtype, std::int64_t count,
                             unsigned long long* first, cudaStream_t stream) {
  const auto exponent = static_cast<std::uint16_t>(dtype == DType::f16 ? 0x7c00 : 0x7f80);
  return find_first(values, exponent, count, first, stream);
}

cudaError_t first_non_finite(const float* values, DType /*of 16 bits*/, std::int64_t count,
                             unsigned long long* first, cudaStream_t stream) {
  return find_first(reinterpret_cast<const std::uint32_t*>(values), 0x7f800000u, count, first,
                    stream);
}

}  // namespace mpq::kernels

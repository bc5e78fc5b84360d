// What a layer's scales and zeros are as numbers, which tells how its weights can be made.

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "dequant.cuh"
#include "elements.cuh"
#include "general_weights.hpp"
#include "launch.cuh"
#include "prepare.hpp"

namespace mpq::kernels {
namespace {

constexpr int kThreads = kElementThreads;

__device__ std::uint16_t rounded_to(float value, bool is_bf16) {
  return is_bf16 ? bits_as<std::uint16_t>(round_to<DType::bf16>(value))
                 : bits_as<std::uint16_t>(round_to<DType::f16>(value));
}

// -b / s, to the nearest integer; 0 where s is 0.
__device__ float nearest_zero(float scale, float affine_zero) {
  return scale == 0 ? 0.f : rintf(-affine_zero / scale);
}

__global__ void __launch_bounds__(kThreads)
    other_numbers(float most, const std::uint16_t* __restrict__ scales, bool scales_are_bf16,
                  const float* __restrict__ affine_zeros, bool to_bf16, float scale_limit,
                  std::int64_t count, std::uint32_t* __restrict__ found) {
  const std::int64_t step = thread_count();
  std::uint32_t other = 0;
  for (std::int64_t i = thread_index(); i < count; i += step) {
    const auto is_number = [&](float value) {  // NaN is none
      return scale_to_float(rounded_to(value, to_bf16), to_bf16) == value;
    };
    const float scale = scale_to_float(scales[i], scales_are_bf16);
    if (!is_number(scale)) other |= kScaleOfOtherType;
    if (!(std::fabs(scale) < scale_limit)) other |= kScaleTooLarge;
    if (affine_zeros == nullptr) continue;
    const float affine = affine_zeros[i];
    if (!is_number(affine) || std::isinf(affine)) other |= kZeroOfOtherType;
    const float zero = nearest_zero(scale, affine);
    const bool is_integer = zero >= 0 && zero <= most && __fmaf_rn(scale, zero, affine) == 0;
    if (!is_integer) other |= kZeroNoInteger;
  }
  other = __reduce_or_sync(0xffffffffu, other);
  if (threadIdx.x % 32 == 0 && other != 0) atomicOr(found, other);
}

__global__ void __launch_bounds__(kThreads)
    convert(std::uint16_t* __restrict__ scales, bool from_bf16, bool to_bf16, std::int64_t count) {
  const std::int64_t i = thread_index();
  if (i < count) scales[i] = rounded_to(scale_to_float(scales[i], from_bf16), to_bf16);
}

__global__ void __launch_bounds__(kThreads)
    integer_zeros(const std::uint16_t* __restrict__ scales, bool is_bf16,
                  const float* __restrict__ affine_zeros, std::int64_t count,
                  std::uint16_t* __restrict__ zeros) {
  const std::int64_t i = thread_index();
  if (i >= count) return;
  const float zero = nearest_zero(scale_to_float(scales[i], is_bf16), affine_zeros[i]);
  zeros[i] = static_cast<std::uint16_t>(zero);
}

__global__ void __launch_bounds__(kThreads)
    affine_zeros_kernel(const std::uint16_t* __restrict__ scales, bool is_bf16,
                        const std::uint16_t* __restrict__ zeros, int middle, std::int64_t count,
                        float* __restrict__ affine_zeros) {
  const std::int64_t i = thread_index();
  if (i >= count) return;
  const int zero = zeros == nullptr ? middle : zeros[i];
  affine_zeros[i] = -scale_to_float(scales[i], is_bf16) * static_cast<float>(zero);
}

__global__ void __launch_bounds__(kThreads)
    round_kernel(const float* __restrict__ values, bool to_bf16, std::int64_t count,
                 std::uint16_t* __restrict__ rounded) {
  const std::int64_t i = thread_index();
  if (i < count) rounded[i] = rounded_to(values[i], to_bf16);
}

// A warp's part each.
template <class Zero>
__global__ void __launch_bounds__(kThreads)
    fused_parameters(const std::uint16_t* __restrict__ scales, bool is_bf16,
                     const Zero* __restrict__ zeros, const std::uint16_t* __restrict__ affine_zeros,
                     std::int64_t count, FusedParameters* __restrict__ parts) {
  FusedParameters found;
#pragma unroll 4
  for (std::int64_t i = thread_index(); i < count; i += kFusedParts * 32) {
    const std::uint32_t magnitude = scales[i] & 0x7fffu;
    found.largest = max(found.largest, magnitude);
    if (magnitude != 0) found.least = min(found.least, magnitude);
    if (affine_zeros != nullptr) {
      const std::uint32_t affine = affine_zeros[i] & 0x7fffu;
      if (affine != 0) found.least = min(found.least, affine);
    }
    if (zeros == nullptr) continue;
    const float product = static_cast<float>(zeros[i]) *
                          scale_to_float(static_cast<std::uint16_t>(magnitude), is_bf16);
    if (scale_to_float(rounded_to(product, is_bf16), is_bf16) != product) found.inexact = 1;
  }
  constexpr unsigned kAll = 0xffffffffu;
  found = {.largest = __reduce_max_sync(kAll, found.largest),
           .least = ~__reduce_max_sync(kAll, ~found.least),
           .inexact = __reduce_max_sync(kAll, found.inexact)};
  if (threadIdx.x % 32 == 0) parts[thread_index() / 32] = found;
}

}  // namespace

cudaError_t find_other_numbers(int bits, const std::uint16_t* scales, DType scale_dtype,
                               const float* affine_zeros, DType dtype, std::int64_t count,
                               std::uint32_t* found, cudaStream_t stream) {
  return launch_kernel(other_numbers, strided_grid_for(count), kThreads, 0, stream,
                       static_cast<float>(1 << bits), scales, scale_dtype == DType::bf16,
                       affine_zeros, dtype == DType::bf16, general_scale_limit(dtype), count,
                       found);
}

cudaError_t convert_scales(std::uint16_t* scales, DType from, DType to, std::int64_t count,
                           cudaStream_t stream) {
  return launch_kernel(convert, grid_for(count), kThreads, 0, stream, scales, from == DType::bf16,
                       to == DType::bf16, count);
}

cudaError_t find_integer_zeros(const std::uint16_t* scales, DType dtype, const float* affine_zeros,
                               std::int64_t count, std::uint16_t* zeros, cudaStream_t stream) {
  return launch_kernel(integer_zeros, grid_for(count), kThreads, 0, stream, scales,
                       dtype == DType::bf16, affine_zeros, count, zeros);
}

cudaError_t find_affine_zeros(const std::uint16_t* scales, DType dtype, const std::uint16_t* zeros,
                              int middle, std::int64_t count, float* affine_zeros,
                              cudaStream_t stream) {
  return launch_kernel(affine_zeros_kernel, grid_for(count), kThreads, 0, stream, scales,
                       dtype == DType::bf16, zeros, middle, count, affine_zeros);
}

cudaError_t round_values(const float* values, DType dtype, std::int64_t count,
                         std::uint16_t* rounded, cudaStream_t stream) {
  return launch_kernel(round_kernel, grid_for(count), kThreads, 0, stream, values,
                       dtype == DType::bf16, count, rounded);
}

template <class Zero>
cudaError_t find_fused_parameters(const std::uint16_t* scales, DType dtype, const Zero* zeros,
                                  const std::uint16_t* affine_zeros, std::int64_t count,
                                  FusedParameters* parts, cudaStream_t stream) {
  static_assert(kFusedParts * 32 % kThreads == 0);
  return launch_kernel(fused_parameters<Zero>, dim3(kFusedParts * 32 / kThreads), kThreads, 0,
                       stream, scales, dtype == DType::bf16, zeros, affine_zeros, count, parts);
}
template cudaError_t find_fused_parameters(const std::uint16_t*, DType, const std::uint8_t*,
                                           const std::uint16_t*, std::int64_t, FusedParameters*,
                                           cudaStream_t);
template cudaError_t find_fused_parameters(const std::uint16_t*, DType, const std::uint16_t*,
                                           const std::uint16_t*, std::int64_t, FusedParameters*,
                                           cudaStream_t);

}  // namespace mpq::kernels

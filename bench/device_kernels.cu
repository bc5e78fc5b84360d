// The reference here is deliberately the plainest code that can be right: one block per sampled
// element, float64, weights decoded from the canonical arrays as quantized_weights.hpp states them.
// It shares nothing with the library's layout, packing or kernels.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>

#include "cuda_support.hpp"
#include "device_kernels.hpp"

namespace mpq::bench {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): every bit depends on every input
// bit.
__device__ std::uint64_t mix(std::uint64_t v) {
  v += 0x9e3779b97f4a7c15ull;
  v = (v ^ (v >> 30)) * 0xbf58476d1ce4e5b9ull;
  v = (v ^ (v >> 27)) * 0x94d049bb133111ebull;
  return v ^ (v >> 31);
}

__device__ float value_of(std::uint16_t bits, DType dtype) {
  return dtype == DType::f16 ? __half2float(__ushort_as_half(bits))
                             : __bfloat162float(__ushort_as_bfloat16(bits));
}

__device__ std::uint16_t bits_of(float value, DType dtype) {
  return dtype == DType::f16 ? __half_as_ushort(__float2half_rn(value))
                             : __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

__device__ std::int64_t first_index() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ std::int64_t index_step() {
  return static_cast<std::int64_t>(gridDim.x) * blockDim.x;
}

__global__ void fill_random_kernel(std::uint16_t* data, std::int64_t count, DType dtype,
                                   std::uint64_t seed) {
  for (std::int64_t i = first_index(); i < count; i += index_step()) {
    const auto random = static_cast<std::uint32_t>(mix(seed + static_cast<std::uint64_t>(i)) >> 40);
    const float unit = static_cast<float>(random) * 0x1p-23f - 1.0f;  // 24 bits over [-1, 1)
    data[i] = bits_of(unit, dtype);
  }
}

__global__ void hold_kernel(long long cycles) {
  const long long begin = clock64();
  while (clock64() - begin < cycles) {
  }
}

__device__ unsigned long long warp_sum(unsigned long long value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_down_sync(kAllLanes, value, step);
  return value;
}

__device__ double warp_sum(double value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_down_sync(kAllLanes, value, step);
  return value;
}

__global__ void scan_kernel(const std::uint16_t* y, std::int64_t count, std::int64_t guard,
                            unsigned exponent_mask, ScanResult* result) {
  unsigned long long not_finite = 0, overwritten = 0, checksum = 0;
  for (std::int64_t i = first_index(); i < count + guard; i += index_step()) {
    const unsigned bits = y[i];
    if (i < count) {
      not_finite += (bits & exponent_mask) == exponent_mask;
      // A sum of whole numbers is the same in any order, so the atomics below do not blur it.
      checksum += mix((static_cast<std::uint64_t>(i) << 16) | bits);
    } else {
      overwritten += bits != 0xffffu;
    }
  }
  not_finite = warp_sum(not_finite);
  overwritten = warp_sum(overwritten);
  checksum = warp_sum(checksum);
  if (threadIdx.x % kWarp == 0) {
    if (not_finite != 0) atomicAdd(&result->not_finite, not_finite);
    if (overwritten != 0) atomicAdd(&result->overwritten, overwritten);
    atomicAdd(&result->checksum, checksum);
  }
}

// The exact weight of column k and channel n, but for the one rounding of an affine sum.
__device__ double weight_at(const CanonicalWeights& w, std::int64_t k, std::int64_t n) {
  const int per_word = 32 / w.bits;
  const std::uint32_t word = w.qweight[k / per_word * w.n + n];
  const std::uint32_t mask = (1u << w.bits) - 1u;
  const auto code = static_cast<double>((word >> (w.bits * static_cast<int>(k % per_word))) & mask);
  std::int64_t group = 0;
  if (w.g_idx != nullptr) {
    group = w.g_idx[k];
  } else if (w.group_size != -1) {
    group = k / w.group_size;
  }
  const std::int64_t at = group * w.n + n;
  const double scale = value_of(w.scales[at], w.scale_dtype);
  if (w.zero_kind == ZeroKind::integer) return scale * (code - static_cast<double>(w.zeros[at]));
  if (w.zero_kind == ZeroKind::affine)
    return scale * code + static_cast<double>(w.affine_zeros[at]);
  return scale * (code - static_cast<double>(1 << (w.bits - 1)));
}

// Half of the distance between neighbours of |value| in the output type.
__device__ double half_ulp(double magnitude, DType dtype) {
  const int digits = dtype == DType::f16 ? 11 : 8;
  const int least_exponent = dtype == DType::f16 ? -14 : -126;
  const int exponent = magnitude > 0 ? max(ilogb(magnitude), least_exponent) : least_exponent;
  return ldexp(1.0, exponent - digits);
}

// Block (channel, row) of the sample.
__global__ void __launch_bounds__(kThreads)
    reference_kernel(CanonicalWeights w, const std::uint16_t* x, const std::uint16_t* y,
                     DType dtype, Sample sample, ErrorBound bound, double* ratios) {
  const std::int64_t m = sample.rows[blockIdx.y], n = sample.channels[blockIdx.x];
  double sum = 0, magnitude = 0;
  for (std::int64_t k = threadIdx.x; k < w.k; k += kThreads) {
    const double product =
        static_cast<double>(value_of(x[m * w.k + k], dtype)) * weight_at(w, k, n);
    sum += product;
    magnitude += fabs(product);
  }
  __shared__ double sums[kThreads / kWarp], magnitudes[kThreads / kWarp];
  sum = warp_sum(sum);
  magnitude = warp_sum(magnitude);
  if (threadIdx.x % kWarp == 0) {
    sums[threadIdx.x / kWarp] = sum;
    magnitudes[threadIdx.x / kWarp] = magnitude;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  sum = 0;
  magnitude = 0;
  for (int i = 0; i < kThreads / kWarp; ++i) {
    sum += sums[i];
    magnitude += magnitudes[i];
  }
  if (w.bias != nullptr) sum += static_cast<double>(w.bias[n]);
  const double got = value_of(y[m * w.n + n], dtype);
  const double computed = bound.per_product * magnitude;
  // The computed value may round in the binade above the exact one's.
  const double allowed = computed + half_ulp(fabs(sum) + computed, dtype);
  const double ratio = fabs(got - sum) / allowed;
  ratios[static_cast<std::int64_t>(blockIdx.y) * gridDim.x + blockIdx.x] =
      isfinite(got) ? ratio : static_cast<double>(INFINITY);
}

unsigned blocks_for(std::int64_t count) {
  constexpr std::int64_t kMost = 132 * 16;
  const std::int64_t blocks = ceil_div(count, kThreads);
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks > kMost ? kMost : blocks);
}

}  // namespace

void fill_random(void* data, std::int64_t count, DType dtype, std::uint64_t seed,
                 cudaStream_t stream) {
  fill_random_kernel<<<blocks_for(count), kThreads, 0, stream>>>(static_cast<std::uint16_t*>(data),
                                                                 count, dtype, seed);
  check(cudaGetLastError());
}

void hold_stream(cudaStream_t stream) {
  constexpr long long kCycles = 350'000;  // 0.18 ms at 1.98 GHz
  hold_kernel<<<1, 1, 0, stream>>>(kCycles);
  check(cudaGetLastError());
}

void scan(const void* y, std::int64_t count, std::int64_t guard, DType dtype, ScanResult* result,
          cudaStream_t stream) {
  const unsigned exponent_mask = dtype == DType::f16 ? 0x7c00u : 0x7f80u;
  scan_kernel<<<blocks_for(count + guard), kThreads, 0, stream>>>(
      static_cast<const std::uint16_t*>(y), count, guard, exponent_mask, result);
  check(cudaGetLastError());
}

void compare_with_reference(const CanonicalWeights& weights, const void* x, const void* y,
                            DType dtype, const Sample& sample, ErrorBound bound, double* ratios,
                            cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(sample.channel_count),
                  static_cast<unsigned>(sample.row_count));
  reference_kernel<<<grid, kThreads, 0, stream>>>(weights, static_cast<const std::uint16_t*>(x),
                                                  static_cast<const std::uint16_t*>(y), dtype,
                                                  sample, bound, ratios);
  check(cudaGetLastError());
}

}  // namespace mpq::bench

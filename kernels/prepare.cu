#include <cuda_runtime.h>
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>

#include <cstdint>
#include <cub/device/device_reduce.cuh>

#include "dequant.cuh"
#include "launch.cuh"
#include "mpq/layout.hpp"
#include "prepare.hpp"
#include "ptx/cluster.cuh"

namespace mpq::kernels {
namespace {

constexpr int kThreads = 256;

dim3 grid_for(std::int64_t items) {
  return dim3(static_cast<unsigned>(ceil_div(items, kThreads)));
}

__device__ __forceinline__ std::int64_t thread_index() {
  return static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

// One word of the kernel layout per thread.
template <int WBits>
__global__ void __launch_bounds__(kThreads)
    repack(const std::uint32_t* __restrict__ canonical, std::int64_t k, std::int64_t n,
           const std::int32_t* __restrict__ source, std::int64_t k_padded, std::int64_t n_padded,
           std::uint32_t* __restrict__ out) {
  using Layout = KernelLayout<WBits>;
  constexpr int kCodesPerWord = 32 / WBits;
  const std::int64_t word = thread_index();
  if (word >= Layout::words(k_padded, n_padded)) return;
  std::uint32_t packed = 0;
#pragma unroll
  for (int i = 0; i < kCodesPerWord; ++i) {
    const int shift = WBits * i;
    const auto c = Layout::coordinate({word, shift}, k_padded);
    const std::int64_t column = source != nullptr ? source[c.k] : c.k < k ? c.k : -1;
    if (column < 0 || c.n >= n) continue;
    const std::uint32_t from = canonical[column / kCodesPerWord * n + c.n];
    const std::uint32_t code = from >> (WBits * (column % kCodesPerWord)) & ((1u << WBits) - 1);
    packed |= code << shift;
  }
  out[word] = packed;
}

template <class In, class Out>
__global__ void __launch_bounds__(kThreads)
    spread(const In* __restrict__ in, std::int64_t n, const std::int32_t* __restrict__ group,
           std::int64_t kernel_groups, std::int64_t n_padded, Out* __restrict__ out) {
  const std::int64_t i = thread_index();
  if (i >= kernel_groups * n_padded) return;
  const std::int64_t from = group[i / n_padded], channel = parameter_channel(i % n_padded);
  out[i] = from >= 0 && channel < n ? static_cast<Out>(in[from * n + channel]) : Out{};
}

// (code - zero) * scale in the layer's type: each operation rounded.
template <DType T>
__device__ float decode_statistic(int code, std::uint16_t zero, std::uint16_t scale) {
  constexpr bool kIsBf16 = T == DType::bf16;
  const auto difference = round_to<T>(static_cast<float>(code) - scale_to_float(zero, kIsBf16));
  const auto product = round_to<T>(scale_to_float(bits_as<std::uint16_t>(difference), kIsBf16) *
                                   scale_to_float(scale, kIsBf16));
  return scale_to_float(bits_as<std::uint16_t>(product), kIsBf16);
}

template <DType T>
__global__ void __launch_bounds__(kThreads)
    decompress_kernel(const Statistics s, std::uint16_t* __restrict__ scales,
                      float* __restrict__ affine_zeros) {
  const std::int64_t i = thread_index();
  if (i >= s.groups * s.n) return;
  const std::int64_t g = i / s.n, channel = i % s.n;
  const std::int64_t at =
      s.per_channel ? channel : g * (s.n / s.dq_group_size) + channel / s.dq_group_size;
  const int code = s.codes[i];
  const bool with_zero = s.zero_scales != nullptr;
  const float scale =
      decode_statistic<T>(with_zero ? code >> 4 : code, s.scale_zeros[at], s.scale_scales[at]);
  scales[i] = bits_as<std::uint16_t>(round_to<T>(scale));
  if (with_zero) {
    affine_zeros[i] = -decode_statistic<T>(code & 15, s.zero_zeros[at], s.zero_scales[at]);
  }
}

// Eight columns of one row per thread; k_padded is a multiple of 64.
__global__ void __launch_bounds__(kThreads)
    gather(const std::uint16_t* __restrict__ x, std::int64_t ldx, std::int64_t m,
           const std::int32_t* __restrict__ source, std::int64_t k_padded,
           std::uint16_t* __restrict__ out) {
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();
  const std::int64_t i = thread_index();
  if (i >= m * (k_padded / 8)) return;
  const std::int64_t row = i / (k_padded / 8), column = i % (k_padded / 8) * 8;
  std::uint16_t values[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const std::int32_t from = source[column + j];
    values[j] = from >= 0 ? x[row * ldx + from] : std::uint16_t{0};
  }
  *reinterpret_cast<uint4*>(out + row * k_padded + column) = bits_as<uint4>(values);
}

struct Minimum {
  __host__ __device__ std::int64_t operator()(std::int64_t a, std::int64_t b) const {
    return a < b ? a : b;
  }
};

// Maps an index to itself if the value there has all the bits of `exponent`, else to count.
template <class Value>
struct IndexOfNonFinite {
  const Value* values;
  Value exponent;
  std::int64_t count;
  __host__ __device__ std::int64_t operator()(std::int64_t i) const {
    return (values[i] & exponent) == exponent ? i : count;
  }
};

template <class Value>
cudaError_t reduce_non_finite(const Value* values, Value exponent, std::int64_t count,
                              void* temporary, std::size_t& temporary_bytes, std::int64_t* result,
                              cudaStream_t stream) {
  const auto indices =
      thrust::make_transform_iterator(thrust::make_counting_iterator(std::int64_t{0}),
                                      IndexOfNonFinite<Value>{values, exponent, count});
  return cub::DeviceReduce::Reduce(temporary, temporary_bytes, indices, result, count, Minimum{},
                                   count, stream);
}

template <int WBits>
cudaError_t launch_repack(const std::uint32_t* canonical, std::int64_t k, std::int64_t n,
                          const std::int32_t* source, std::int64_t k_padded, std::int64_t n_padded,
                          std::uint32_t* out, cudaStream_t stream) {
  return launch_kernel(repack<WBits>, grid_for(KernelLayout<WBits>::words(k_padded, n_padded)),
                       kThreads, 0, stream, canonical, k, n, source, k_padded, n_padded, out);
}

}  // namespace

cudaError_t repack_codes(int bits, const std::uint32_t* canonical, std::int64_t k, std::int64_t n,
                         const std::int32_t* source, std::int64_t k_padded, std::int64_t n_padded,
                         std::uint32_t* out, cudaStream_t stream) {
  const auto launch = bits == 1   ? launch_repack<1>
                      : bits == 2 ? launch_repack<2>
                      : bits == 4 ? launch_repack<4>
                                  : launch_repack<8>;
  return launch(canonical, k, n, source, k_padded, n_padded, out, stream);
}

template <class In, class Out>
cudaError_t spread_groups(const In* in, std::int64_t n, const std::int32_t* group,
                          std::int64_t kernel_groups, std::int64_t n_padded, Out* out,
                          cudaStream_t stream) {
  return launch_kernel(spread<In, Out>, grid_for(kernel_groups * n_padded), kThreads, 0, stream, in,
                       n, group, kernel_groups, n_padded, out);
}
template cudaError_t spread_groups(const std::uint16_t*, std::int64_t, const std::int32_t*,
                                   std::int64_t, std::int64_t, std::uint16_t*, cudaStream_t);
template cudaError_t spread_groups(const std::uint16_t*, std::int64_t, const std::int32_t*,
                                   std::int64_t, std::int64_t, std::uint8_t*, cudaStream_t);
template cudaError_t spread_groups(const float*, std::int64_t, const std::int32_t*, std::int64_t,
                                   std::int64_t, float*, cudaStream_t);

cudaError_t decompress_statistics(const Statistics& statistics, DType dtype, std::uint16_t* scales,
                                  float* affine_zeros, cudaStream_t stream) {
  const auto kernel =
      dtype == DType::f16 ? decompress_kernel<DType::f16> : decompress_kernel<DType::bf16>;
  return launch_kernel(kernel, grid_for(statistics.groups * statistics.n), kThreads, 0, stream,
                       statistics, scales, affine_zeros);
}

cudaError_t gather_columns(const std::uint16_t* x, std::int64_t ldx, std::int64_t m,
                           const std::int32_t* source, std::int64_t k_padded, std::uint16_t* out,
                           bool programmatic, cudaStream_t stream) {
  return launch_kernel(gather, grid_for(m * (k_padded / 8)), kThreads, 0,
                       Launch{.programmatic = programmatic, .stream = stream}, x, ldx, m, source,
                       k_padded, out);
}

cudaError_t first_non_finite(const std::uint16_t* values, DType dtype, std::int64_t count,
                             void* temporary, std::size_t& temporary_bytes, std::int64_t* result,
                             cudaStream_t stream) {
  const auto exponent = static_cast<std::uint16_t>(dtype == DType::f16 ? 0x7c00 : 0x7f80);
  return reduce_non_finite(values, exponent, count, temporary, temporary_bytes, result, stream);
}

cudaError_t first_non_finite(const float* values, std::int64_t count, void* temporary,
                             std::size_t& temporary_bytes, std::int64_t* result,
                             cudaStream_t stream) {
  return reduce_non_finite(reinterpret_cast<const std::uint32_t*>(values), 0x7f800000u, count,
                           temporary, temporary_bytes, result, stream);
}

}  // namespace mpq::kernels

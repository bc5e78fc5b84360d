#include <cuda_runtime.h>

#include <cstdint>

#include "launch.cuh"
#include "quantize.hpp"

namespace mpq::kernels {
namespace {

using detail::Grouping;
using detail::GroupQuantizer;

constexpr int kThreads = 128;

cudaError_t launch(auto kernel, std::int64_t items, cudaStream_t stream, const auto&... arguments) {
  const dim3 grid(static_cast<unsigned>(ceil_div(items, kThreads)));
  return launch_kernel(kernel, grid, kThreads, 0, stream, arguments...);
}

__device__ __forceinline__ std::int64_t thread_index() {
  return static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

// A thread a group, so that sums are added in the order of the host. Copying the weights here takes
// many times as long.
__global__ void __launch_bounds__(kThreads)
    fit_kernel(const float* weight, std::int64_t channels, Grouping grouping,
               QuantizeOptions options, float* scratch, std::int64_t n, GroupQuantizer* out) {
  const std::int64_t index = thread_index();
  if (index >= channels * grouping.count) return;
  const std::int64_t channel = index / grouping.count, group = index % grouping.count;
  const auto weights = grouping.of(weight + channel * grouping.k, group);
  bool finite = true;
  for (const float w : weights) finite = finite && std::isfinite(w);
  GroupQuantizer quantizer{.scale = std::numeric_limits<float>::quiet_NaN()};
  if (finite) {
    float* sorted = scratch == nullptr ? nullptr : scratch + (weights.data() - weight);
    quantizer = detail::fit_group(weights, options, sorted);
  }
  out[group * n + channel] = quantizer;
}

template <int WBits>
__global__ void __launch_bounds__(kThreads)
    encode_kernel(const float* weight, std::int64_t channels, Grouping grouping,
                  const GroupQuantizer* quantizers, std::int64_t n, std::uint32_t* out) {
  constexpr int kCodes = 32 / WBits;
  const std::int64_t index = thread_index();
  if (index >= channels * ceil_div(grouping.k, kCodes)) return;
  const std::int64_t row = index / channels, channel = index % channels;
  const std::int64_t begin = row * kCodes, end = min(begin + kCodes, grouping.k);
  std::uint32_t word = 0;
  std::int64_t group = begin / grouping.size;
  GroupQuantizer quantizer = quantizers[group * n + channel];
  for (std::int64_t i = begin; i < end; ++i) {
    if (i == (group + 1) * grouping.size) quantizer = quantizers[++group * n + channel];
    const std::uint32_t code = quantizer.code(weight[channel * grouping.k + i]);
    word |= code << (WBits * static_cast<int>(i - begin));
  }
  out[row * n + channel] = word;
}

}  // namespace

cudaError_t fit_groups(const float* weight, std::int64_t channels, const Grouping& grouping,
                       const QuantizeOptions& options, float* scratch, std::int64_t n,
                       GroupQuantizer* out, cudaStream_t stream) {
  return launch(fit_kernel, channels * grouping.count, stream, weight, channels, grouping, options,
                scratch, n, out);
}

cudaError_t encode_groups(int bits, const float* weight, std::int64_t channels,
                          const Grouping& grouping, const GroupQuantizer* quantizers,
                          std::int64_t n, std::uint32_t* out, cudaStream_t stream) {
  const auto kernel = bits == 1   ? encode_kernel<1>
                      : bits == 2 ? encode_kernel<2>
                      : bits == 4 ? encode_kernel<4>
                                  : encode_kernel<8>;
  return launch(kernel, channels * ceil_div(grouping.k, 32 / bits), stream, weight, channels,
                grouping, quantizers, n, out);
}

}  // namespace mpq::kernels

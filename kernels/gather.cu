// Two bytes at a time from anywhere in a row: a warp's load touches 32 lines, so L1 gives an
// element a cycle. With few elements that is nothing beside a latency, if all multiprocessors share
// it; with many, rows are brought to shared memory, which gives a warp's in 3 or 4 cycles.

#include <algorithm>

#include "dequant.cuh"
#include "gather.hpp"
#include "launch.cuh"
#include "mpq/layout.hpp"
#include "ptx/cluster.cuh"
#include "ptx/memory.cuh"

namespace mpq::kernels {
namespace {

constexpr int kFewThreads = 128, kFewColumns = 2;  // of a thread

// Where columns are is known before the kernel that writes x has ended.
__global__ void __launch_bounds__(kFewThreads) gather_few(const Gather args) {
  ptx::griddepcontrol_launch_dependents();
  const auto column = static_cast<int>(kFewColumns * (blockIdx.x * kFewThreads + threadIdx.x));
  if (column >= args.k_padded) return;
  const int2 from = __ldg(reinterpret_cast<const int2*>(args.source + column));
  ptx::griddepcontrol_wait();
  for (auto row = static_cast<int>(blockIdx.y); row < args.m; row += static_cast<int>(gridDim.y)) {
    const std::uint16_t* x = args.x + row * args.ldx;
    const std::uint32_t low = from.x >= 0 ? x[from.x] : 0, high = from.y >= 0 ? x[from.y] : 0;
    auto* out = args.out + static_cast<std::int64_t>(row) * args.k_padded + column;
    *reinterpret_cast<std::uint32_t*>(out) = low | high << 16;
  }
}

constexpr int kThreads = 256, kColumns = 8;  // of a thread at a time

// From row to row in shared memory: whole pieces of 16 bytes.
constexpr int staged_elements(int k) {
  return (k + 7) / 8 * 8;
}

__device__ __forceinline__ std::uint16_t* staged_row(const Gather& args, int row) {
  auto* rows = reinterpret_cast<std::uint16_t*>(ptx::dynamic_shared_memory());
  return rows + row * staged_elements(args.k);
}

__device__ __forceinline__ void stage(const std::uint16_t* x, int k, std::uint16_t* to) {
  const auto thread = static_cast<int>(threadIdx.x);
  int done = 0;
  if (reinterpret_cast<std::uintptr_t>(x) % 16 == 0) {
    for (int i = thread; i < k / 8; i += kThreads) {
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(x)[i];
    }
    done = k / 8 * 8;
  }
  for (int i = done + thread; i < k; i += kThreads) to[i] = x[i];
}

// `rows` rows at a time, so that places of columns are read once for all of them; a part of the
// columns for each CTA along x.
__global__ void __launch_bounds__(kThreads) gather_rows(const Gather args, int rows) {
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();
  const auto step = static_cast<int>(gridDim.y) * rows;
  for (int first = static_cast<int>(blockIdx.y) * rows; first < args.m; first += step) {
    const int count = min(rows, args.m - first);
    for (int row = 0; row < count; ++row) {
      stage(args.x + (first + row) * args.ldx, args.k, staged_row(args, row));
    }
    __syncthreads();
    const auto columns = static_cast<int>(gridDim.x) * kThreads * kColumns;
    for (auto column = static_cast<int>((blockIdx.x * kThreads + threadIdx.x) * kColumns);
         column < args.k_padded; column += columns) {
      const auto* source = reinterpret_cast<const int4*>(args.source + column);
      const int4 low = __ldg(source), high = __ldg(source + 1);
      const int from[kColumns] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      for (int row = 0; row < count; ++row) {
        const std::uint16_t* x = staged_row(args, row);
        std::uint16_t values[kColumns];
#pragma unroll
        for (int i = 0; i < kColumns; ++i) values[i] = from[i] >= 0 ? x[from[i]] : 0;
        auto* out = args.out + static_cast<std::int64_t>(first + row) * args.k_padded + column;
        *reinterpret_cast<uint4*>(out) = bits_as<uint4>(values);
      }
    }
    __syncthreads();
  }
}

constexpr int kMostRows = 65535;  // of a grid

}  // namespace

cudaError_t prepare_gather(int most_shared_bytes) {
  return cudaFuncSetAttribute(gather_rows, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              most_shared_bytes);
}

cudaError_t gather_columns(const Gather& gather, int sm_count, int most_shared_bytes,
                           bool programmatic, cudaStream_t stream) {
  constexpr int kFewElements = 1024;  // of a multiprocessor
  const Launch launch{.programmatic = programmatic, .stream = stream};
  const std::int64_t row_bytes = std::int64_t{2} * staged_elements(gather.k);
  const auto elements = std::int64_t{gather.m} * gather.k_padded;
  if (elements <= std::int64_t{sm_count} * kFewElements || row_bytes > most_shared_bytes) {
    const auto ctas = ceil_div(gather.k_padded, kFewThreads * kFewColumns);
    const dim3 grid(static_cast<unsigned>(ctas),
                    static_cast<unsigned>(std::min(gather.m, kMostRows)));
    return launch_kernel(gather_few, grid, kFewThreads, 0, launch, gather);
  }
  // Several rows at a time where that leaves enough CTAs, and several CTAs a multiprocessor.
  constexpr int kRowsAtOnce = 4, kSharedBytes = 72 << 10, kCtasPerSm = 2;
  const int wanted = kCtasPerSm * sm_count;
  const int rows = std::clamp(
      std::min({gather.m / wanted, kSharedBytes / static_cast<int>(row_bytes), kRowsAtOnce}), 1,
      kRowsAtOnce);
  const auto row_groups = static_cast<int>(ceil_div(gather.m, rows));
  const auto parts =
      std::min(ceil_div(wanted, row_groups), ceil_div(gather.k_padded, kThreads * kColumns));
  const dim3 grid(static_cast<unsigned>(parts),
                  static_cast<unsigned>(std::min(row_groups, kMostRows)));
  return launch_kernel(gather_rows, grid, kThreads, static_cast<std::size_t>(rows * row_bytes),
                       launch, gather, rows);
}

}  // namespace mpq::kernels

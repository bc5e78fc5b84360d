#pragma once
// x in the decode kernel: its way to shared memory, and from there to operand B.

#include <cstdint>

#include "arguments.hpp"
#include "decode_storage.cuh"
#include "ptx/cluster.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "ptx/tma.cuh"

namespace mpq::kernels {

/// The CTA's slice of x in shared memory: rows as they are in memory, x_pitch bytes apart, which
/// spreads the eight rows that ldmatrix reads together over the banks. kAnew: as in TileReduction.
template <KernelConfig C, bool kAnew>
class ActivationSlice {
 public:
  __device__ __forceinline__ ActivationSlice(const ForwardArguments& args,
                                             DecodeStorage<C>& storage, unsigned char* shared)
      : args_(args), arrived_(&storage.x_arrived), shared_(shared) {}

  /// Waits for the kernel before, and has columns [first, first + columns) copied: for the CTA's
  /// first warp, when the slice before has been read. What can be is computed ahead of the wait.
  __device__ __forceinline__ void start(int first, int columns) const {
#if __CUDA_ARCH__ >= 900
    const int count = rows(), bytes = ptx::opaque(2 * whole_columns(first, columns));
    if (bytes == 0) return;
    const std::uint16_t* from = ptx::opaque(row_of_x(first));
    unsigned char* to = shared_;
    __syncwarp();
    if (!ptx::elect_one()) return;
    ptx::mbarrier_arrive_expect_tx(arrived_, count * bytes);
    ptx::griddepcontrol_wait();
#pragma unroll 1
    for (int row = 0; row < count; ++row, from += args_.ldx, to += args_.x_pitch) {
      ptx::cp_async_bulk(to, from, bytes, arrived_);
    }
#endif
  }
  /// The same by all threads, a group of cp.async of each: sooner there than a bulk copy where
  /// slices are long and weights have not been asked for yet. For one slice.
  __device__ __forceinline__ void start_by_threads(int first, int columns) const {
    const int whole = whole_columns(first, columns), count = rows();
    const auto thread = static_cast<int>(threadIdx.x);
    const std::uint16_t* from = row_of_x(first) + 8 * thread;
    unsigned char* to = shared_ + 16 * thread;
#pragma unroll 1
    for (int i = 8 * thread; i < whole; i += 8 * C.threads()) {
      ptx::cp_async_16(to, from);
      if (count > 1) copy_further_rows(to, from, count);
      from += 8 * C.threads(), to += 16 * C.threads();
    }
    ptx::cp_async_commit_group();
  }
  /// For all threads: waits for the kernel before, and for x. by_threads: if they started it, and
  /// C.stages groups of other copies since.
  __device__ __forceinline__ void complete(int first, int columns, bool by_threads = false) {
    const int whole = ptx::opaque(whole_columns(first, columns));
    ptx::griddepcontrol_wait();
    if (whole < columns) [[unlikely]]
      fill(row_of_x(first), whole, min(max(args_.k - first, 0), columns), columns);
    if (by_threads) ptx::cp_async_wait_group<C.stages>();
#if __CUDA_ARCH__ >= 900
    __syncthreads();
    if (whole > 0 && !by_threads) await_copy();
#else
    if (!by_threads) copy(row_of_x(first), whole);
    __syncthreads();
#endif
  }

  /// Where a lane's ldmatrix of the first pair of k-steps begins, for n = 8 tile m. Rows past x are
  /// its last one: what comes of that reaches only rows of y that are not there.
  __device__ __forceinline__ const unsigned char* of_lane(int lane, int m) const {
    if constexpr (kAnew) lane = ptx::opaque(lane);
    return shared_ + min(8 * m + lane % 8, rows() - 1) * args_.x_pitch + lane / 8 * 16;
  }

 private:
  // 16 bytes of each row behind the first.
  __device__ __forceinline__ void copy_further_rows(unsigned char* to, const std::uint16_t* from,
                                                    int count) const {
    const std::int64_t stride = ptx::opaque(args_.ldx);
#pragma unroll 1
    for (int row = 1; row < count; ++row) {
      from += stride, to += args_.x_pitch;
      ptx::cp_async_16(to, from);
    }
  }
  __device__ __forceinline__ int first_row() const {
    const auto tile = static_cast<int>(blockIdx.y);
    return (kAnew ? ptx::opaque(tile) : tile) * args_.tile_rows;
  }
  __device__ __forceinline__ int rows() const {
    return min(args_.m - first_row(), args_.tile_rows);
  }
  __device__ __forceinline__ const std::uint16_t* row_of_x(int first) const {
    return static_cast<const std::uint16_t*>(args_.x) +
           std::int64_t{static_cast<unsigned>(first_row())} * args_.ldx +
           first;  // a shorter product
  }
  // Columns that are copied 16 bytes and more at a time: all but what is past x, if rows are
  // aligned.
  __device__ __forceinline__ int whole_columns(int first, int columns) const {
    return args_.x_is_aligned ? min(max(args_.k - first, 0), columns) & ~7 : 0;
  }
  // Columns [from, to), of which those below `valid` are of x.
  __device__ __forceinline__ void fill(const std::uint16_t* x, int from, int valid, int to) const {
    const int count = rows();
    for (int row = 0; row < count; ++row) {
#pragma unroll 4
      for (int i = from + static_cast<int>(threadIdx.x); i < to; i += C.threads()) {
        *reinterpret_cast<std::uint16_t*>(shared_ + row * args_.x_pitch + 2 * i) =
            i < valid ? __ldcg(x + row * args_.ldx + i) : std::uint16_t{0};
      }
    }
  }
#if __CUDA_ARCH__ >= 900
  __device__ __forceinline__ void await_copy() {
    ptx::mbarrier_wait(arrived_, phase_);
    phase_ ^= 1u;
  }
#else
  __device__ __forceinline__ void copy(const std::uint16_t* x, int columns) const {
    const int count = rows();
    for (int row = 0; row < count; ++row) {
#pragma unroll 4
      for (int i = static_cast<int>(threadIdx.x); i < columns / 8; i += C.threads()) {
        *reinterpret_cast<uint4*>(shared_ + row * args_.x_pitch + 16 * i) =
            __ldcg(reinterpret_cast<const uint4*>(x + row * args_.ldx) + i);
      }
    }
  }
#endif
  const ForwardArguments& args_;
  std::uint64_t* arrived_;
  unsigned char* shared_;
  std::uint32_t phase_ = 0;
};

}  // namespace mpq::kernels

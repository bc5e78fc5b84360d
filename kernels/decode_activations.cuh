#pragma once
// x in the decode kernel: its way to shared memory, and from there to operand B.

#include <cstdint>

#include "arguments.hpp"
#include "decode_storage.cuh"
#include "dequant.cuh"
#include "ptx/cluster.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "ptx/tma.cuh"

namespace mpq::kernels {

/// The CTA's slice of x in shared memory: rows as they are in memory, x_pitch bytes apart, which
/// spreads the eight rows that ldmatrix reads together over the banks.
template <KernelConfig C>
class ActivationSlice {
 public:
  static constexpr int kTilesM = C.tile_m / 8;

  __device__ __forceinline__ ActivationSlice(const ForwardArguments& args,
                                             DecodeStorage<C>& storage, unsigned char* shared,
                                             int m0)
      : args_(args),
        arrived_(&storage.x_arrived),
        shared_(shared),
        m0_(m0),
        rows_(min(args.m - m0, C.tile_m)) {}

  /// Columns [first, first + columns), zero past x; for all threads of the CTA, when the slice
  /// before has been read.
  __device__ __forceinline__ void stage(int first, int columns) {
    const auto* x = static_cast<const std::uint16_t*>(args_.x) + m0_ * args_.ldx + first;
    const int valid = min(max(args_.k - first, 0), columns);
    const bool aligned =
        reinterpret_cast<std::uintptr_t>(args_.x) % 16 == 0 && (args_.ldx % 8 == 0 || args_.m == 1);
    const int whole = aligned ? valid & ~7 : 0;
    if (whole > 0) copy(x, whole);
    if (whole < columns) [[unlikely]]
      fill(x, whole, valid, columns);
    __syncthreads();
    if (whole > 0) await_copy();
  }

  /// Where a lane's ldmatrix of the first pair of k-steps begins, for n = 8 tile m. Rows past x are
  /// its last one: what comes of that reaches only rows of y that are not there.
  __device__ __forceinline__ const unsigned char* of_lane(int lane, int m) const {
    return shared_ + min(8 * m + lane % 8, rows_ - 1) * args_.x_pitch + lane / 8 * 16;
  }

 private:
  // Columns [from, to), of which those below `valid` are of x, one by one.
  __device__ __forceinline__ void fill(const std::uint16_t* x, int from, int valid, int to) const {
    for (int row = 0; row < rows_; ++row) {
#pragma unroll 1
      for (int i = from + static_cast<int>(threadIdx.x); i < to; i += C.threads()) {
        *reinterpret_cast<std::uint16_t*>(shared_ + row * args_.x_pitch + 2 * i) =
            i < valid ? __ldcg(x + row * args_.ldx + i) : std::uint16_t{0};
      }
    }
    ptx::fence_proxy_async();  // what is written here may be copied to next
  }
  __device__ __forceinline__ void copy(const std::uint16_t* x, int columns) {
#if __CUDA_ARCH__ >= 900
    static_assert(C.tile_m <= 32);  // a lane a row
    if (threadIdx.x >= 32) return;
    if (threadIdx.x == 0) ptx::mbarrier_arrive_expect_tx(arrived_, rows_ * columns * 2);
    __syncwarp();
    const int row = static_cast<int>(threadIdx.x);
    if (row < rows_) {
      ptx::cp_async_bulk(shared_ + row * args_.x_pitch, x + row * args_.ldx, 2 * columns, arrived_);
    }
#else
    for (int row = 0; row < rows_; ++row) {
#pragma unroll 4
      for (int i = static_cast<int>(threadIdx.x); i < columns / 8; i += C.threads()) {
        *reinterpret_cast<uint4*>(shared_ + row * args_.x_pitch + 16 * i) =
            __ldcg(reinterpret_cast<const uint4*>(x + row * args_.ldx) + i);
      }
    }
#endif
  }
  __device__ __forceinline__ void await_copy() {
#if __CUDA_ARCH__ >= 900
    ptx::mbarrier_wait(arrived_, phase_);
    phase_ ^= 1u;
#endif
  }
  const ForwardArguments& args_;
  std::uint64_t* arrived_;
  unsigned char* shared_;
  int m0_, rows_;
  std::uint32_t phase_ = 0;
};

}  // namespace mpq::kernels

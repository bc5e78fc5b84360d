#pragma once
// Decode: few batch rows. Weights go from memory straight into registers as operand A of
// mma.m16n8k16 (batch rows are its n = 8), 16 bytes per lane and load, several loads in flight per
// warp. The warps of a CTA split K; their sums are added in a fixed order through shared memory.
// Scales are applied to the accumulators, once per group: y = sum_g s_g (sum_k (q - z_g) x), and
// for affine zeros + b_g sum_k x, with sum_k x from one more mma whose operand A is all ones.

#include <cuda_runtime.h>

#include <cstdint>

#include "arguments.hpp"
#include "dequant.cuh"
#include "group_parameters.cuh"
#include "mpq/layout.hpp"
#include "mpq/plan.hpp"
#include "ptx/memory.cuh"
#include "ptx/mma.cuh"

namespace mpq::kernels {

/// Activations of one batch row, as operand B wants them: pairs of neighbouring columns.
template <DType T>
class ActivationRow {
 public:
  ActivationRow() = default;
  __device__ __forceinline__ ActivationRow(const ForwardArguments& args, int row)
      : valid_(row < args.m),
        data_(static_cast<const std::uint16_t*>(args.x) + (valid_ ? row : 0) * args.ldx) {}

  /// Columns column and column + 1 (column is even), both inside x, which is 4-byte aligned there.
  __device__ __forceinline__ std::uint32_t aligned_pair(int column) const {
    return valid_ ? __ldg(reinterpret_cast<const std::uint32_t*>(data_ + column)) : 0;
  }
  /// The same anywhere: zero past column k.
  __device__ __forceinline__ std::uint32_t any_pair(int column, int k) const {
    const std::uint32_t low = valid_ && column < k ? __ldg(data_ + column) : 0;
    const std::uint32_t high = valid_ && column + 1 < k ? __ldg(data_ + column + 1) : 0;
    return low | high << 16;
  }

 private:
  bool valid_;
  const std::uint16_t* data_;
};

template <int WBits, DType T, KernelConfig C>
class DecodeWarp {
 public:
  using Layout = KernelLayout<WBits>;
  static constexpr int kTilesN = C.tile_n / 16;
  static constexpr int kTilesM = C.tile_m / 8;
  static constexpr int kSteps = Layout::kStepsPerBlock;
  static constexpr int kBatch = kSteps < 4 ? kSteps : 4;  // steps whose x is loaded together
  static_assert(C.family == KernelFamily::decode && Layout::kBlockN % C.tile_n == 0);

  __device__ __forceinline__ DecodeWarp(const ForwardArguments& args, int n0, int lane)
      : args_(args),
        channel_(n0 + lane / 4),
        blocks_k_(args.k_padded / Layout::kBlockK),
        x_is_aligned_(reinterpret_cast<std::uintptr_t>(args.x) % 4 == 0 && args.ldx % 2 == 0),
        weights_(args.qweight +
                 (static_cast<std::int64_t>(n0 / Layout::kBlockN) * blocks_k_ * 4 +
                  n0 % Layout::kBlockN / 16) *
                     32 +
                 lane) {}

  /// Accumulates blocks [begin, end) of K.
  __device__ __forceinline__ void run(int begin, int end, const ActivationRow<T> (&x)[kTilesM],
                                      int lane) {
    if (begin >= end) return;
    uint4 ring[C.stages][kTilesN];
#pragma unroll
    for (int i = 0; i < C.stages; ++i) {
      if (begin + i < end) load(ring[i], begin + i);
    }
    const int first_group = group_of_step(args_, begin * kSteps);
    const int last_group = group_of_step(args_, end * kSteps - 1);
    next_.load(args_, first_group, channel_);
    group_ = first_group;
    begin_group(last_group);

    for (int base = begin; base < end; base += C.stages) {
#pragma unroll
      for (int i = 0; i < C.stages; ++i) {
        const int block = base + i;
        if (block >= end) break;
        uint4 words[kTilesN];
#pragma unroll
        for (int t = 0; t < kTilesN; ++t) words[t] = ring[i][t];
        if (block + C.stages < end) load(ring[i], block + C.stages);
#pragma unroll
        for (int s = 0; s < kSteps; s += kBatch) {
          std::uint32_t b[kBatch][kTilesM][2];
          load_x(b, (block * kSteps + s) * Layout::kStepK, x, lane);
#pragma unroll
          for (int i = 0; i < kBatch; ++i) {
            if ((block > begin || s + i > 0) && starts_group(args_, block * kSteps + s + i)) {
              finish_group();
              begin_group(last_group);
            }
            multiply(words, s + i, b[i]);
          }
        }
      }
    }
    finish_group();
  }

  float total[kTilesN][kTilesM][4] = {};

 private:
  __device__ __forceinline__ void load(uint4 (&words)[kTilesN], int block) const {
#pragma unroll
    for (int t = 0; t < kTilesN; ++t) {
      words[t] =
          ptx::ld_global_nc_no_allocate(weights_ + (static_cast<std::int64_t>(block) * 4 + t) * 32);
    }
  }

  // Takes over the parameters fetched before and fetches the next group's.
  __device__ __forceinline__ void begin_group(int last_group) {
    current_ = next_;
    if (group_ < last_group) next_.load(args_, ++group_, channel_);
#pragma unroll
    for (int t = 0; t < kTilesN; ++t) {
      zero_[t][0] = current_.code_zero(args_, t, 0);
      zero_[t][1] = current_.code_zero(args_, t, 1);
    }
  }

  __device__ __forceinline__ void finish_group() {
#pragma unroll
    for (int t = 0; t < kTilesN; ++t) {
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float scale = current_.scale_as_float(args_, t, i / 2);
          const float offset = current_.affine(args_, t, i / 2) * sum_[m][i % 2];
          total[t][m][i] += __fmaf_rn(scale, sums_[t][m][i], offset);
          sums_[t][m][i] = 0.f;
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum_[m][i] = 0.f;
    }
  }

  // Which way to load is the same for the whole warp, so that loads are not behind divergent
  // branches.
  __device__ __forceinline__ void load_x(std::uint32_t (&b)[kBatch][kTilesM][2], int column,
                                         const ActivationRow<T> (&x)[kTilesM], int lane) const {
    const bool aligned = x_is_aligned_ && column + kBatch * Layout::kStepK <= args_.k;
    column += 2 * (lane % 4);
    if (aligned) {
#pragma unroll
      for (int i = 0; i < 2 * kBatch * kTilesM; ++i) {
        const int s = i / (2 * kTilesM), m = i / 2 % kTilesM, h = i % 2;
        b[s][m][h] = x[m].aligned_pair(column + Layout::kStepK * s + 8 * h);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 2 * kBatch * kTilesM; ++i) {
        const int s = i / (2 * kTilesM), m = i / 2 % kTilesM, h = i % 2;
        b[s][m][h] = x[m].any_pair(column + Layout::kStepK * s + 8 * h, args_.k);
      }
    }
  }

  __device__ __forceinline__ void multiply(const uint4 (&words)[kTilesN], int s,
                                           const std::uint32_t (&b)[kTilesM][2]) {
#pragma unroll
    for (int t = 0; t < kTilesN; ++t) {
      std::uint32_t a[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        a[e] = bits_as<std::uint32_t>(
            Codes<WBits, T>::fragment(word_of(words[t], e), s, zero_[t][e % 2]));
      }
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) ptx::mma_m16n8k16<T>(sums_[t][m], a, b[m][0], b[m][1]);
    }
    if (args_.affine_zeros != nullptr) {
      const auto one = bits_as<std::uint32_t>(round_to_pair<T>(1.f, 1.f));
      const std::uint32_t ones[4] = {one, one, one, one};
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) ptx::mma_m16n8k16<T>(sum_[m], ones, b[m][0], b[m][1]);
    }
  }

  const ForwardArguments& args_;
  int channel_;
  int blocks_k_;
  bool x_is_aligned_;
  const uint4* weights_;
  int group_ = 0;
  GroupParameters<WBits, T, kTilesN> current_, next_;
  typename Codes<WBits, T>::Zero zero_[kTilesN][2];
  float sums_[kTilesN][kTilesM][4] = {};  // of (q - z) x over the current group
  float sum_[kTilesM][4] = {};            // of x, for affine zeros
};

/// One row of kKernelTable. (A row, because nvcc cannot name a class-type argument of a __global__
/// template in the host code that it writes.)
template <int WBits, DType T, int Row>
__global__ void __launch_bounds__(kKernelTable[Row].threads(),
                                  kKernelTable[Row].tile_m <= 8 ? 2 : 1)
    decode(const __grid_constant__ ForwardArguments args) {
  constexpr KernelConfig C = kKernelTable[Row];
  using Warp = DecodeWarp<WBits, T, C>;
  const int n0 = static_cast<int>(blockIdx.x) * C.tile_n;
  const int m0 = static_cast<int>(blockIdx.y) * C.tile_m;
  const int warp_index = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;

  // Accumulate: each warp its share of K.
  const std::int64_t blocks_k = args.k_padded / KernelLayout<WBits>::kBlockK;
  const int begin = static_cast<int>(blocks_k * warp_index / C.warps_k);
  const int end = static_cast<int>(blocks_k * (warp_index + 1) / C.warps_k);
  Warp warp(args, n0, lane);
  {
    ActivationRow<T> rows[Warp::kTilesM];
#pragma unroll
    for (int m = 0; m < Warp::kTilesM; ++m) rows[m] = {args, m0 + 8 * m + lane / 4};
    warp.run(begin, end, rows, lane);
  }

  // Reduce over the warps, in their order.
  __shared__ float partial[C.warps_k][C.tile_m][C.tile_n + 1];
#pragma unroll
  for (int t = 0; t < Warp::kTilesN; ++t) {
#pragma unroll
    for (int m = 0; m < Warp::kTilesM; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        partial[warp_index][8 * m + 2 * (lane % 4) + i % 2][16 * t + lane / 4 + 8 * (i / 2)] =
            warp.total[t][m][i];
      }
    }
  }
  __syncthreads();

  // Epilogue: bias, one rounding, coalesced along N.
  for (int i = static_cast<int>(threadIdx.x); i < C.tile_n * C.tile_m; i += C.threads()) {
    const int n = i % C.tile_n, m = i / C.tile_n;
    if (n0 + n >= args.n || m0 + m >= args.m) continue;
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < C.warps_k; ++w) sum += partial[w][m][n];
    if (args.bias != nullptr) sum += args.bias[n0 + n];
    static_cast<Scalar<T>*>(args.y)[static_cast<std::int64_t>(m0 + m) * args.ldy + n0 + n] =
        round_to<T>(sum);
  }
}

}  // namespace mpq::kernels

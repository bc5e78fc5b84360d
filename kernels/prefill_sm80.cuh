#pragma once
// Prefill: many batch rows, with Ampere's instructions. y^T = W x^T: weights are operand A of
// mma.m16n8k16, loaded from memory in fragment order and dequantised in registers to the
// activations' type (one rounding of s * (q - z) or s * q + b), scales and all; x is operand B,
// brought to shared memory by cp.async in stages of 64 columns, swizzled so that ldmatrix has no
// bank conflicts.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "arguments.hpp"
#include "dequant.cuh"
#include "group_parameters.cuh"
#include "mpq/kernel_shape.hpp"
#include "mpq/layout.hpp"
#include "ptx/cluster.cuh"
#include "ptx/memory.cuh"
#include "ptx/mma.cuh"

namespace mpq::kernels {

/// x tiles and, after the main loop, the tile of y on its way out.
template <KernelConfig C>
union PrefillStorage {
  static constexpr int kStageK = 64;
  static constexpr int kPadN =
      8;  // spreads the rows of y over the banks, keeps them 16-byte aligned
  alignas(128) std::uint16_t x[C.stages][C.tile_m][kStageK];
  std::uint16_t y[C.tile_m][C.tile_n + kPadN];
};

/// Where 16-byte chunk `chunk` (of 8) of tile row `row` lies in its 128-byte row.
__device__ __forceinline__ int swizzled_chunk(int row, int chunk) {
  return chunk ^ (row % 8);
}

/// Fills stages of x in shared memory: the whole CTA takes part, each thread with the same 16 bytes
/// of some rows.
template <DType T, KernelConfig C>
class ActivationLoader {
 public:
  static constexpr int kStageK = PrefillStorage<C>::kStageK;
  static constexpr int kChunksPerRow = kStageK / 8;
  static constexpr int kRowStep = C.threads() / kChunksPerRow;
  static constexpr int kRows = C.tile_m / kRowStep;
  static_assert(C.tile_m % kRowStep == 0 && kRowStep % 8 == 0);

  __device__ __forceinline__ ActivationLoader(const ForwardArguments& args, int m0)
      : row_(static_cast<int>(threadIdx.x) / kChunksPerRow),
        column_(static_cast<int>(threadIdx.x) % kChunksPerRow * 8),
        k_(args.k),
        rows_(args.m - m0),
        vectors_(reinterpret_cast<std::uintptr_t>(args.x) % 16 == 0 && args.ldx % 8 == 0) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = min(m0 + row_ + i * kRowStep, args.m - 1);
      source_[i] = static_cast<const std::uint16_t*>(args.x) + row * args.ldx + column_;
    }
  }

  /// Columns [k0, k0 + 64) of all tile rows; zero beyond x. Asynchronous where x is aligned.
  __device__ __forceinline__ void load(std::uint16_t (&stage)[C.tile_m][kStageK], int k0) const {
    const int columns = min(max(k_ - k0 - column_, 0), 8);
    std::uint16_t* target = &stage[row_][8 * swizzled_chunk(row_, column_ / 8)];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int valid = row_ + i * kRowStep < rows_ ? columns : 0;
      if (vectors_) {
        ptx::cp_async_16_zfill(target + i * kRowStep * kStageK, source_[i] + k0, 2 * valid);
      } else {
        std::uint16_t values[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) values[j] = j < valid ? __ldg(source_[i] + k0 + j) : 0;
        *reinterpret_cast<uint4*>(target + i * kRowStep * kStageK) = bits_as<uint4>(values);
      }
    }
  }

 private:
  int row_, column_, k_, rows_;
  bool vectors_;
  const std::uint16_t* source_[kRows];
};

template <int WBits, DType T, KernelConfig C>
class PrefillWarp {
 public:
  using Layout = KernelLayout<WBits>;
  static constexpr int kWarpN = C.tile_n / C.warps_n, kWarpM = C.tile_m / C.warps_m;
  static constexpr int kTilesN = kWarpN / 16, kTilesM = kWarpM / 8;
  static constexpr int kStageK = PrefillStorage<C>::kStageK;
  static constexpr int kStageSteps = kStageK / Layout::kStepK;
  /// Weights are fetched a round ahead: as many columns as a stage and a block have at least.
  static constexpr int kRoundK = Layout::kBlockK < kStageK ? kStageK : Layout::kBlockK;
  static constexpr int kStagesPerRound = kRoundK / kStageK;
  static constexpr int kBlocksPerRound = kRoundK / Layout::kBlockK;
  static_assert(kTilesM % 2 == 0 && Layout::kBlockN % kWarpN == 0);

  /// n0: the warp's first channel, m0: its first row in the tile.
  __device__ __forceinline__ PrefillWarp(const ForwardArguments& args, int n0, int m0, int lane)
      : args_(args),
        lane_(lane),
        m0_(m0),
        // A tile may end past the last channel strip; what is computed there is not stored.
        channel_(min(n0, args.n_padded - kWarpN) + lane / 4),
        blocks_k_(args.k_padded / Layout::kBlockK),
        wide_(args.zeros == nullptr || args.scales_are_bf16 != (T == DType::bf16)),
        plain_(!wide_ && (1u << args.group_shift) >= kStageK) {
    const int n = min(n0, args.n_padded - kWarpN);
    weights_ = args.qweight +
               (static_cast<std::int64_t>(n / Layout::kBlockN) * blocks_k_ * 4 +
                n % Layout::kBlockN / 16) *
                   32 +
               lane;
    next_.load(args, 0, channel_);
    fetch(0);
  }

  /// Takes the fetched weights and fetches the next round's.
  __device__ __forceinline__ void begin_round(int round) {
#pragma unroll
    for (int b = 0; b < kBlocksPerRound; ++b) {
#pragma unroll
      for (int t = 0; t < kTilesN; ++t) words_[b][t] = fetched_[b][t];
    }
    if ((round + 1) * kBlocksPerRound < blocks_k_) fetch(round + 1);
  }

  /// Multiplies stage `stage_of_round` of round `round`, lying in `x`.
  __device__ __forceinline__ void multiply(const std::uint16_t (&x)[C.tile_m][kStageK], int round,
                                           int stage_of_round) {
    if (plain_) {
      multiply_as<true>(x, round, stage_of_round);
    } else {
      multiply_as<false>(x, round, stage_of_round);
    }
  }

  // kPlain: no step but a stage's first starts a group, so that a stage is one straight piece of
  // code whose loads, conversions and products the compiler can overlap; and weights are formed in
  // type T.
  template <bool kPlain>
  __device__ __forceinline__ void multiply_as(const std::uint16_t (&x)[C.tile_m][kStageK],
                                              int round, int stage_of_round) {
#pragma unroll
    for (int s = 0; s < kStageSteps; ++s) {
      const int step_of_round = stage_of_round * kStageSteps + s;
      const int step = round * (kRoundK / Layout::kStepK) + step_of_round;
      if ((!kPlain || s == 0) && starts_group(args_, step)) begin_group(group_of_step(args_, step));
      std::uint32_t b[kTilesM][2];
#pragma unroll
      for (int m = 0; m < kTilesM; m += 2) {
        const int row = m0_ + 8 * m + lane_ % 8 + lane_ / 16 * 8;
        const int chunk = 2 * s + lane_ / 8 % 2;
        std::uint32_t r[4];
        ptx::ldmatrix_x4(r, &x[row][8 * swizzled_chunk(row, chunk)]);
        b[m][0] = r[0], b[m][1] = r[1], b[m + 1][0] = r[2], b[m + 1][1] = r[3];
      }
#pragma unroll
      for (int t = 0; t < kTilesN; ++t) {
        const uint4& words = words_[step_of_round / Layout::kStepsPerBlock][t];
        std::uint32_t a[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          a[e] = weight_pair<kPlain>(word_of(words, e), step_of_round % Layout::kStepsPerBlock, t,
                                     e % 2);
        }
#pragma unroll
        for (int m = 0; m < kTilesM; ++m) ptx::mma_m16n8k16<T>(sums_[t][m], a, b[m][0], b[m][1]);
      }
    }
  }

  /// Rounds the warp's part of the tile, bias added, into shared memory; n: its first column there.
  __device__ __forceinline__ void store(
      std::uint16_t (&y)[C.tile_m][C.tile_n + PrefillStorage<C>::kPadN], int n) const {
#pragma unroll
    for (int t = 0; t < kTilesN; ++t) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int channel = channel_ + 16 * t + 8 * h;
        const float bias =
            args_.bias != nullptr && channel < args_.n ? __ldg(args_.bias + channel) : 0.f;
#pragma unroll
        for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
          for (int p = 0; p < 2; ++p) {
            y[m0_ + 8 * m + 2 * (lane_ % 4) + p][n + 16 * t + lane_ / 4 + 8 * h] =
                bits_as<std::uint16_t>(round_to<T>(sums_[t][m][2 * h + p] + bias));
          }
        }
      }
    }
  }

 private:
  __device__ __forceinline__ void fetch(int round) {
#pragma unroll
    for (int b = 0; b < kBlocksPerRound; ++b) {
#pragma unroll
      for (int t = 0; t < kTilesN; ++t) {
        const std::int64_t block = static_cast<std::int64_t>(round) * kBlocksPerRound + b;
        fetched_[b][t] = __ldg(weights_ + (block * 4 + t) * 32);
      }
    }
  }

  __device__ __forceinline__ void begin_group(int group) {
    current_ = next_;
    current_.decode(args_);
    const int groups = group_of_step(args_, args_.k_padded / Layout::kStepK - 1) + 1;
    if (group + 1 < groups) next_.load(args_, group + 1, channel_);
#pragma unroll
    for (int t = 0; t < kTilesN; ++t) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        zero_[t][h] = current_.code_zero(args_, t, h);
        const std::uint32_t scale = current_.tile[t].scale_bits(h);
        scale_[t][h] = Codes<WBits, T>::scale(bits_as<Pair<T>>(scale | scale << 16));
      }
    }
  }

  // Two weights of one channel, rounded once to the activations' type.
  template <bool kPlain>
  __device__ __forceinline__ std::uint32_t weight_pair(std::uint32_t word, int step, int t, int h) {
    const Pair<T> codes = Codes<WBits, T>::fragment(word, step, zero_[t][h]);
    if (kPlain || !wide_) return bits_as<std::uint32_t>(__hmul2(codes, scale_[t][h]));
    const float2 wide = to_float2<T>(codes);
    const float scale = Codes<WBits, T>::scale(current_.scale_as_float(args_, t, h));
    const float affine = current_.affine(args_, t, h);
    return bits_as<std::uint32_t>(
        round_to_pair<T>(__fmaf_rn(scale, wide.x, affine), __fmaf_rn(scale, wide.y, affine)));
  }

  const ForwardArguments& args_;
  int lane_, m0_, channel_, blocks_k_;
  bool wide_;   // scales are not of type T, or zeros are affine: weights are formed in float32
  bool plain_;  // not wide, and groups are not smaller than a stage
  const uint4* weights_;
  uint4 fetched_[kBlocksPerRound][kTilesN], words_[kBlocksPerRound][kTilesN];
  GroupParameters<WBits, T, kTilesN> current_, next_;
  typename Codes<WBits, T>::Zero zero_[kTilesN][2];
  Pair<T> scale_[kTilesN][2];
  float sums_[kTilesN][kTilesM][4] = {};
};

/// Copies the finished tile of y from shared to global memory, 16 bytes at a time where y allows.
template <KernelConfig C>
__device__ __forceinline__ void write_tile(const ForwardArguments& args,
                                           const PrefillStorage<C>& storage, int n0, int m0) {
  const bool vectors = reinterpret_cast<std::uintptr_t>(args.y) % 16 == 0 && args.ldy % 8 == 0;
  constexpr int kChunksPerRow = C.tile_n / 8;
  for (int i = static_cast<int>(threadIdx.x); i < C.tile_m * kChunksPerRow; i += C.threads()) {
    const int row = i / kChunksPerRow, column = i % kChunksPerRow * 8;
    if (m0 + row >= args.m) break;
    auto* target = static_cast<std::uint16_t*>(args.y) + (m0 + row) * args.ldy + n0 + column;
    const std::uint16_t* source = &storage.y[row][column];
    if (vectors && n0 + column + 8 <= args.n) {
      *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(source);
    } else {
      for (int j = 0; j < 8 && n0 + column + j < args.n; ++j) target[j] = source[j];
    }
  }
}

/// One row of kKernelTable.
template <int WBits, DType T, int Row>
__global__ void __launch_bounds__(kKernelTable[Row].threads(),
                                  kKernelTable[Row].threads() <= 128 ? 3 : 1)
    prefill(const __grid_constant__ ForwardArguments args) {
  constexpr KernelConfig C = kKernelTable[Row];
  static_assert(C.family == KernelFamily::prefill && C.warps_k == 1);
  using Warp = PrefillWarp<WBits, T, C>;
  unsigned char* shared = ptx::dynamic_shared_memory();
  auto& storage = *reinterpret_cast<PrefillStorage<C>*>(shared);

  const int n0 = static_cast<int>(blockIdx.x) * C.tile_n;
  const int m0 = static_cast<int>(blockIdx.y) * C.tile_m;
  const int warp_index = static_cast<int>(threadIdx.x) / 32;
  const int warp_n = warp_index % C.warps_n * Warp::kWarpN;
  const int warp_m = warp_index / C.warps_n * Warp::kWarpM;

  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();

  // Fill the pipeline.
  const int stages = args.k_padded / Warp::kStageK;
  const ActivationLoader<T, C> loader(args, m0);
#pragma unroll
  for (int i = 0; i < C.stages - 1; ++i) {
    if (i < stages) loader.load(storage.x[i], i * Warp::kStageK);
    ptx::cp_async_commit_group();
  }
  Warp warp(args, n0 + warp_n, warp_m, static_cast<int>(threadIdx.x) % 32);

  // Main loop. Refilling a stage comes after the barrier that tells that all have left it.
  int slot = 0;
  const int rounds = args.k_padded / Warp::kRoundK;
  for (int round = 0; round < rounds; ++round) {
    warp.begin_round(round);
#pragma unroll
    for (int i = 0; i < Warp::kStagesPerRound; ++i) {
      ptx::cp_async_wait_group<C.stages - 2>();
      __syncthreads();
      const int refill = round * Warp::kStagesPerRound + i + C.stages - 1;
      if (refill < stages) {
        loader.load(storage.x[slot == 0 ? C.stages - 1 : slot - 1], refill * Warp::kStageK);
      }
      ptx::cp_async_commit_group();
      warp.multiply(storage.x[slot], round, i);
      slot = slot == C.stages - 1 ? 0 : slot + 1;
    }
  }

  // Epilogue: y goes out through the shared memory that held x.
  ptx::cp_async_wait_group<0>();
  __syncthreads();
  warp.store(storage.y, warp_n);
  __syncthreads();
  write_tile<C>(args, storage, n0, m0);
}

}  // namespace mpq::kernels

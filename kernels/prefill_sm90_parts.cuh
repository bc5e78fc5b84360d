#pragma once
// What the parts of the Hopper prefill kernel share: its arguments, its memory, and who works on
// what.

#include <cuda.h>

#include <cstdint>

#include "arguments.hpp"
#include "dequant.cuh"
#include "mpq/layout.hpp"
#include "mpq/plan.hpp"

namespace mpq::kernels {

/// One launch; a __grid_constant__ parameter.
struct HopperPrefillArguments {
  CUtensorMap x;        ///< [m, k] halves, boxes [tile_m / multicast][64], 128-byte swizzle
  CUtensorMap weights;  ///< [strips of 64 channels][KiB along K][256] words, a tile's chunk a box
  ForwardArguments forward;
  int tiles_n, tiles_m;  ///< tiles of a cluster (multicast * tile_n channels) and of tile_m rows
  int multicast, split;  ///< CTAs of a cluster
  bool x_by_tma;         ///< else x's rows are not 16-byte aligned, and multicast is 1
};

/// What the kernel's parts agree on.
template <int WBits, KernelConfig C>
struct HopperPrefillShape {
  using Layout = KernelLayout<WBits>;
  static constexpr int kStageK = 64, kStageSteps = kStageK / Layout::kStepK;
  static constexpr int kChunkK = Layout::kAlignK;
  static constexpr int kStagesPerChunk = kChunkK / kStageK;
  static constexpr int kBlocksPerChunk = kChunkK / Layout::kBlockK;
  static constexpr int kWeightStages =
      (C.stages + kStagesPerChunk - 1) / kStagesPerChunk + (kStagesPerChunk > 1 ? 1 : 0);
  static constexpr int kConsumers = C.warps_n / 4;  // warpgroups
  static constexpr int kThreads = 128 * (1 + kConsumers);
  static constexpr int kStrips = C.tile_n / Layout::kBlockN;  // of the CTA
  static constexpr int kTiles = kStrips / kConsumers;         // of 64 channels, per consumer
  static constexpr int kPassRows = 32;  // batch rows that a consumer writes at a time
  static constexpr int kPasses = C.tile_m / kPassRows;
  static constexpr int kWeightBytes = kStrips * kBlocksPerChunk * Layout::kWordsPerBlock * 4;
  static_assert(C.family == KernelFamily::prefill && C.isa == Isa::sm90a);
  static_assert(kStageSteps == 4);
  // Of a thread, when the warpgroups have their roles. A multiprocessor has 65536.
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = kConsumers == 2 ? 232 : 152;
  static_assert(128 * (kProducerRegisters + kConsumers * kConsumerRegisters) <= 65536);
  static_assert(C.threads() == 128 * kConsumers && (kConsumers == 2 || kConsumers == 3));
  static_assert(kStrips % kConsumers == 0 && C.tile_m % kPassRows == 0 && C.tile_m <= 256);
};

/// kGeneral: affine zeros, scales that are not of the activations' type, groups of 16 columns.
template <int WBits, KernelConfig C, bool kGeneral>
struct HopperPrefillStorage {
  using Shape = HopperPrefillShape<WBits, C>;
  /// Groups that begin in a stage.
  static constexpr int kParameterRows = Shape::kStageK / (kGeneral ? 16 : 32);
  /// In the order of parameter_position, like the memory that they come from.
  struct alignas(16) Parameters {
    std::uint16_t scales[kParameterRows][C.tile_n];
    union {
      ZeroCode<WBits> zeros[kParameterRows][C.tile_n];
      float affine_zeros[kGeneral ? kParameterRows : 1][kGeneral ? C.tile_n : 1];
    };
  };
  struct Rings {
    alignas(1024) std::uint16_t x[C.stages][C.tile_m][Shape::kStageK];
    alignas(128) uint4 weights[Shape::kWeightStages][Shape::kStrips][Shape::kBlocksPerChunk][4][32];
    Parameters parameters[C.stages];  // in step with x
  };
  union {
    Rings rings;
    // Fragments of the sums of a slice of K, four floats a thread.
    float4 sums[Shape::kConsumers][Shape::kTiles][C.tile_m / 8][128];
  };
  /// Part of y on its way out: 16-byte pieces permuted as in x.
  alignas(128) std::uint16_t y[Shape::kConsumers][Shape::kPassRows][Shape::Layout::kBlockN];
  std::uint64_t x_full[C.stages], x_empty[C.stages];
  std::uint64_t weights_full[Shape::kWeightStages], weights_empty[Shape::kWeightStages];
};

/// Where 16-byte piece `piece` (of 8) of row `row` lies in its 128 bytes: the 128-byte swizzle.
__device__ __forceinline__ int swizzled_piece(int row, int piece) {
  return piece ^ (row % 8);
}

/// Barriers of parts of the CTA (0 is __syncthreads).
enum NamedBarrier : int {
  kProducerBarrier = 1,
  kConsumersBarrier,
  kStaggerBarrier,
  kConsumerBarrier
};

template <int kStages>
struct RingCursor {
  int slot = 0;
  std::uint32_t phase = 0;
  __device__ __forceinline__ void advance() {
    if (++slot == kStages) slot = 0, phase ^= 1u;
  }
};

/// The tiles of a CTA one after the other, and its slice of K.
template <int WBits, KernelConfig C>
class TileWalk {
 public:
  using Shape = HopperPrefillShape<WBits, C>;
  int n0, m0;                    ///< first channel and row of the tile
  int chunk_begin, chunk_count;  ///< of the slice
  int member;                    ///< of the CTAs that share x
  int leader;                    ///< rank in the cluster of the first of them
  int slice;

  __device__ __forceinline__ explicit TileWalk(const HopperPrefillArguments& args) : args_(args) {
    const int cluster = args.multicast * args.split;
    const int rank = static_cast<int>(blockIdx.x) % cluster;
    slice = rank / args.multicast;
    const int chunks = args.forward.k_padded / Shape::kChunkK;
    member = rank % args.multicast;
    leader = rank - member;
    chunk_begin = chunks * slice / args.split;
    chunk_count = chunks * (slice + 1) / args.split - chunk_begin;
    tile_ = static_cast<int>(blockIdx.x) / cluster;
    step_ = static_cast<int>(gridDim.x) / cluster;
    locate();
  }
  __device__ __forceinline__ bool valid() const { return tile_ < args_.tiles_n * args_.tiles_m; }
  /// Whether the CTA has more than one tile.
  __device__ __forceinline__ bool repeats() const { return step_ < args_.tiles_n * args_.tiles_m; }
  __device__ __forceinline__ void next() {
    tile_ += step_;
    locate();
  }

 private:
  static constexpr int kGroupRows = 2048;  // of x, what stays in L2 while W passes
  static constexpr int kGroupTiles = kGroupRows / C.tile_m;

  __device__ __forceinline__ void locate() {
    const int group = tile_ / (kGroupTiles * args_.tiles_n);
    const int in_group = tile_ - group * kGroupTiles * args_.tiles_n;
    const int rows = min(args_.tiles_m - group * kGroupTiles, kGroupTiles);
    m0 = (group * kGroupTiles + in_group % rows) * C.tile_m;
    n0 = (in_group / rows * args_.multicast + member) * C.tile_n;
  }

  const HopperPrefillArguments& args_;
  int tile_, step_;
};

}  // namespace mpq::kernels

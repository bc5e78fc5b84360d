#pragma once
// Prefill on Hopper: many batch rows, y^T = W x^T on wgmma. Weights are operand A from registers,
// dequantised there to the activations' type (one rounding of s * (q - z) or s * q + b); x is
// operand B, brought by TMA into swizzled shared memory.
//
// A CTA is a producer warpgroup and two or three consumer warpgroups, each with its share of the
// tile's channels and all of its batch rows. K goes by in chunks of weights (KernelLayout::kAlignK
// columns, as many as the smallest whole number of blocks and stages) and stages of x (64 columns);
// each has a ring of its own in shared memory. A consumer turns a step (16 columns) of codes into
// fragments while the two steps before it are multiplied, each a group of wgmma. (With three groups
// left in flight ptxas 13.0 serialises them all, warning C7513.)
//
//   cluster  `multicast` CTAs side by side along N share x: each fetches a part for all; times
//            `split` slices of K, whose sums are added through distributed shared memory in the
//            order of the slices
//   grid     clusters walk over the tiles, batch tiles of a group first, so that a group's x stays
//            in L2 while all of W passes
//   stagger  the first consumer starts a little earlier: while one writes its part of y, the tensor
//            cores belong to another

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "arguments.hpp"
#include "dequant.cuh"
#include "mpq/layout.hpp"
#include "mpq/plan.hpp"
#include "ptx/cluster.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"

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

/// Fills the rings. One thread where x comes by TMA, else the whole warpgroup.
template <int WBits, KernelConfig C, bool kGeneral, bool kXByTma>
class PrefillProducer {
 public:
  using Shape = HopperPrefillShape<WBits, C>;
  using Storage = HopperPrefillStorage<WBits, C, kGeneral>;

  __device__ __forceinline__ PrefillProducer(const HopperPrefillArguments& args, Storage& storage)
      : args_(args), storage_(storage), thread_(static_cast<int>(threadIdx.x) % 128) {}

  __device__ __forceinline__ void load_tile(const TileWalk<WBits, C>& tile) {
    for (int chunk = 0; chunk < tile.chunk_count; ++chunk) {
      load_weights(tile, tile.chunk_begin + chunk);
#pragma unroll 1  // the producer has few registers
      for (int s = 0; s < Shape::kStagesPerChunk; ++s) {
        load_stage(tile, (tile.chunk_begin + chunk) * Shape::kChunkK + s * Shape::kStageK,
                   chunk + s == 0);
      }
    }
  }

 private:
  __device__ __forceinline__ void load_weights(const TileWalk<WBits, C>& tile, int chunk) {
    const int slot = weights_cursor_.slot;
    // Nobody but the thread that fills the slot may wait for it: the consumers can have taken the
    // weights, and ended the next phase, before another thread looks at this one.
    if (thread_ == 0) {
      ptx::mbarrier_wait(&storage_.weights_empty[slot], weights_cursor_.phase ^ 1u);
      constexpr int kKiBPerChunk = Shape::kBlocksPerChunk * Shape::Layout::kWordsPerBlock / 256;
      ptx::mbarrier_arrive_expect_tx(&storage_.weights_full[slot], Shape::kWeightBytes);
      ptx::cp_async_bulk_tensor_3d(storage_.rings.weights[slot], &args_.weights, 0,
                                   chunk * kKiBPerChunk, tile.n0 / Shape::Layout::kBlockN,
                                   &storage_.weights_full[slot]);
    }
    if constexpr (!kXByTma) __syncwarp();
    weights_cursor_.advance();
  }

  // Columns [k0, k0 + 64) of x, and the parameters of groups that begin there or, with the slice,
  // `first`.
  __device__ __forceinline__ void load_stage(const TileWalk<WBits, C>& tile, int k0, bool first) {
    const int slot = x_cursor_.slot;
    ptx::mbarrier_wait(&storage_.x_empty[slot], x_cursor_.phase ^ 1u);
    if constexpr (!kXByTma) {
      copy_x(storage_.rings.x[slot], tile.m0, k0);
      ptx::fence_proxy_async();
      ptx::bar_sync(kProducerBarrier, 128);
    }
    if (thread_ == 0) {
      const ForwardArguments& args = args_.forward;
      std::uint64_t* full = &storage_.x_full[slot];
      const int shift = args.group_shift;
      const bool begins = first || (k0 & ((1u << shift) - 1u)) == 0u;
      const int rows = shift < 6 ? Shape::kStageK >> shift : begins ? 1 : 0;
      const int channels = max(min(args.n_padded - tile.n0, C.tile_n), 0);
      const int zero_bytes =
          kGeneral && args.affine_zeros != nullptr ? 4 : static_cast<int>(sizeof(ZeroCode<WBits>));
      constexpr int kXBytes = kXByTma ? C.tile_m * Shape::kStageK * 2 : 0;
      ptx::mbarrier_arrive_expect_tx(full, kXBytes + rows * channels * (2 + zero_bytes));
      if constexpr (kXByTma) load_x(slot, tile, k0);
      auto& to = storage_.rings.parameters[slot];
      for (int row = 0; row < rows && channels != 0; ++row) {
        const std::int64_t group = (static_cast<std::uint32_t>(k0) >> shift) + row;
        const std::int64_t at = group * args.n_padded + tile.n0;
        ptx::cp_async_bulk(to.scales[row], args.scales + at, 2 * channels, full);
        if (kGeneral && args.affine_zeros != nullptr) {
          ptx::cp_async_bulk(to.affine_zeros[row], args.affine_zeros + at, 4 * channels, full);
        } else {
          ptx::cp_async_bulk(
              to.zeros[row],
              static_cast<const ZeroCode<WBits>*>(args.zeros) + group * args.zeros_stride + tile.n0,
              zero_bytes * channels, full);
        }
      }
    }
    x_cursor_.advance();
  }

  __device__ __forceinline__ void load_x(int slot, const TileWalk<WBits, C>& tile, int k0) {
    std::uint64_t* full = &storage_.x_full[slot];
    if (args_.multicast == 1) {
      ptx::cp_async_bulk_tensor_2d(storage_.rings.x[slot], &args_.x, k0, tile.m0, full);
    } else {
      const int row = tile.member * (C.tile_m / args_.multicast);
      const auto ctas = static_cast<std::uint16_t>(((1 << args_.multicast) - 1) << tile.leader);
      ptx::cp_async_bulk_tensor_2d_multicast(storage_.rings.x[slot][row], &args_.x, k0,
                                             tile.m0 + row, full, ctas);
    }
  }

  // Element by element, for any alignment; only for the sake of being right.
  __device__ __forceinline__ void copy_x(std::uint16_t (&stage)[C.tile_m][Shape::kStageK], int m0,
                                         int k0) const {
    const ForwardArguments& args = args_.forward;
    const int piece = thread_ % 8, column = k0 + 8 * piece;
#pragma unroll 1
    for (int row = thread_ / 8; row < C.tile_m; row += 128 / 8) {
      const auto* source =
          static_cast<const std::uint16_t*>(args.x) + (m0 + row) * args.ldx + column;
      const int valid = m0 + row < args.m ? args.k - column : 0;
      std::uint16_t values[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) values[j] = j < valid ? __ldg(source + j) : std::uint16_t{0};
      *reinterpret_cast<uint4*>(&stage[row][8 * swizzled_piece(row, piece)]) =
          bits_as<uint4>(values);
    }
  }

  const HopperPrefillArguments& args_;
  Storage& storage_;
  int thread_;
  RingCursor<C.stages> x_cursor_;
  RingCursor<Shape::kWeightStages> weights_cursor_;
};

/// A warpgroup's channels of the tile: kTiles times 64.
template <int WBits, DType T, KernelConfig C, bool kGeneral>
class PrefillConsumer {
 public:
  using Shape = HopperPrefillShape<WBits, C>;
  using Storage = HopperPrefillStorage<WBits, C, kGeneral>;
  using Layout = typename Shape::Layout;
  static constexpr int kTiles = Shape::kTiles;

  __device__ __forceinline__ PrefillConsumer(const HopperPrefillArguments& args, Storage& storage,
                                             int warpgroup, const TileWalk<WBits, C>& first)
      : args_(args.forward),
        cluster_(args),
        storage_(storage),
        warpgroup_(warpgroup),
        warp_(static_cast<int>(threadIdx.x) / 32 % 4),
        lane_(static_cast<int>(threadIdx.x) % 32),
        leader_(first.leader),
        member_(first.member),
        slice_(first.slice),
        x_descriptor_(ptx::matrix_descriptor_swizzle_128b(storage.rings.x[0])),
        group_mask_((1u << args.forward.group_shift) - 1u) {
    if (first.repeats()) {
      constexpr int kLead = 2;  // stages
      if (warpgroup_ == 0) {
        lead_chunk_ = min(kLead / Shape::kStagesPerChunk, first.chunk_count - 1);
      } else {
        ptx::bar_sync(kStaggerBarrier, 128 * Shape::kConsumers);
      }
    }
  }

  /// sums_ = W x^T over the tile's slice of K, at least one chunk.
  __device__ __forceinline__ void multiply(const TileWalk<WBits, C>& tile) {
    std::uint32_t k = static_cast<std::uint32_t>(tile.chunk_begin) * Shape::kChunkK;
    begin_chunk();
    begin_stage();
    dequantise<0>(0, true, k);
    int previous = 0;
    hold_sums();
    for (int chunk = 0; chunk < tile.chunk_count; ++chunk) {
#pragma unroll
      for (int s = 0; s < Shape::kStagesPerChunk; ++s) {
        const bool first = chunk == 0 && s == 0;
        const int slot = x_cursor_.slot;
        // Two groups are left in flight while the next one's fragments are made.
        multiply_step<0>(slot, !first);
        ptx::wgmma_wait_group<2>();
        dequantise<1>(s, false, k);
        multiply_step<1>(slot, true);
        ptx::wgmma_wait_group<2>();
        release_x(previous, !first);
        dequantise<2>(s, false, k);
        multiply_step<2>(slot, true);
        ptx::wgmma_wait_group<2>();
        dequantise<3>(s, false, k);
        multiply_step<3>(slot, true);
        ptx::wgmma_wait_group<2>();
        previous = slot;
        x_cursor_.advance();
        k += Shape::kStageK;
        if (s + 1 < Shape::kStagesPerChunk) {
          begin_stage();
          dequantise<0>(s + 1, false, k);
        } else if (chunk + 1 < tile.chunk_count) {
          begin_chunk();
          begin_stage();
          dequantise<0>(0, false, k);
        }
      }
      if (chunk == lead_chunk_) {
        ptx::bar_arrive(kStaggerBarrier, 128 * Shape::kConsumers);
        lead_chunk_ = -1;
      }
    }
    ptx::wgmma_wait_group<0>();
    hold_sums();
    release_x(previous, true);
  }

  /// Adds the slices' sums. Each CTA of the cluster then holds the passes that it owns.
  __device__ __forceinline__ void reduce() {
    const int thread = static_cast<int>(threadIdx.x) % 128;
    ptx::bar_sync(kConsumersBarrier, 128 * Shape::kConsumers);  // the rings have been read
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int j = 0; j < C.tile_m / 8; ++j) {
        const float* d = &sums_[t][4 * j];
        storage_.sums[warpgroup_][t][j][thread] = make_float4(d[0], d[1], d[2], d[3]);
      }
    }
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int pass = 0; pass < Shape::kPasses; ++pass) {
        if (owns(t, pass)) add_slices(t, pass, thread);
      }
    }
  }

  /// Writes the CTA's share of the tile, bias added, by way of shared memory: 128 bytes of a row of
  /// y at a time.
  __device__ __forceinline__ void store(const TileWalk<WBits, C>& tile) {
    const bool vectors = reinterpret_cast<std::uintptr_t>(args_.y) % 16 == 0 && args_.ldy % 8 == 0;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const int n0 = tile.n0 + (warpgroup_ * kTiles + t) * Layout::kBlockN;
      float bias[2] = {};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int channel = n0 + 16 * warp_ + lane_ / 4 + 8 * h;
        if (args_.bias != nullptr && channel < args_.n) bias[h] = __ldg(args_.bias + channel);
      }
#pragma unroll
      for (int pass = 0; pass < Shape::kPasses; ++pass) {
        const int m0 = tile.m0 + pass * Shape::kPassRows;
        if (m0 >= args_.m || !owns(t, pass)) continue;
        ptx::bar_sync(kConsumerBarrier + warpgroup_, 128);  // the pass before has been read
        stage_pass(t, pass, bias);
        ptx::bar_sync(kConsumerBarrier + warpgroup_, 128);
        write_pass(n0, m0, vectors);
      }
    }
  }

 private:
  // Of one channel, in one group.
  struct Parameters {
    std::conditional_t<kGeneral, float, Pair<T>> scale;
    float affine;
    typename Codes<WBits, T>::Zero zero;
  };
  // Groups of 16 columns change from step to step; even and odd steps have a set each, so that no
  // more branches are needed. Only kGeneral has such groups.
  static constexpr int kSets = kGeneral ? 2 : 1;

  __device__ __forceinline__ void hold_sums() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) ptx::hold(sums_[t]);
  }

  // Takes the next chunk of weights from its slot, which is free again at once.
  __device__ __forceinline__ void begin_chunk() {
    const int slot = weights_cursor_.slot;
    ptx::mbarrier_wait(&storage_.weights_full[slot], weights_cursor_.phase);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int b = 0; b < Shape::kBlocksPerChunk; ++b) {
        words_[t][b] = storage_.rings.weights[slot][warpgroup_ * kTiles + t][b][warp_][lane_];
      }
    }
    __syncwarp();
    if (lane_ == 0) ptx::mbarrier_arrive(&storage_.weights_empty[slot]);
    weights_cursor_.advance();
  }

  __device__ __forceinline__ void begin_stage() {
    ptx::mbarrier_wait(&storage_.x_full[x_cursor_.slot], x_cursor_.phase);
  }

  // Tells the CTAs that write there that this warp has done with a slot.
  __device__ __forceinline__ void release_x(int slot, bool used) {
    __syncwarp();  // every lane has read its parameters
    if (cluster_.multicast == 1) {
      if (used && lane_ == 0) ptx::mbarrier_arrive(&storage_.x_empty[slot]);
    } else if (used && lane_ < cluster_.multicast) {
      ptx::mbarrier_arrive_cluster(&storage_.x_empty[slot], leader_ + lane_);
    }
  }

  // Step kStep of stage s of the chunk, at column k, from codes to fragments. `first`: the slice
  // begins here, maybe inside a group.
  template <int kStep>
  __device__ __forceinline__ void dequantise(int s, bool first, std::uint32_t k) {
    if constexpr (kStep == 0) {
      if (first || (k & group_mask_) == 0) load_parameters<kStep>();
    } else if constexpr (kStep == 2) {
      if ((kStep * Layout::kStepK & group_mask_) == 0) load_parameters<kStep>();
    }
    const int chunk_step = s * Shape::kStageSteps + kStep;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const uint4& words = words_[t][chunk_step / Layout::kStepsPerBlock];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        fragments_[kStep][t][e] = weight_pair<kStep % kSets>(
            word_of(words, e), chunk_step % Layout::kStepsPerBlock, t, e % 2);
      }
    }
  }

  // Of the groups that step kStep and the one after it lie in.
  template <int kStep>
  __device__ __forceinline__ void load_parameters() {
    const auto& from = storage_.rings.parameters[x_cursor_.slot];
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const int row = (kStep + set) * Layout::kStepK >> args_.group_shift;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const int channel = (warpgroup_ * kTiles + t) * Layout::kBlockN + 16 * warp_ + lane_ / 4;
        const auto at = static_cast<int>(parameter_position(channel));
        const auto scales = *reinterpret_cast<const std::uint32_t*>(&from.scales[row][at]);
        using ZeroPair = std::conditional_t<WBits == 8, std::uint32_t, std::uint16_t>;
        std::uint32_t zeros = 0;  // affine: codes are taken as they are
        float2 affine{0.f, 0.f};
        if (kGeneral && args_.affine_zeros != nullptr) {
          affine = *reinterpret_cast<const float2*>(&from.affine_zeros[row][at]);
        } else {
          zeros = *reinterpret_cast<const ZeroPair*>(&from.zeros[row][at]);
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          Parameters& to = parameters_[set][t][h];
          const auto scale = static_cast<std::uint16_t>(scales >> (16 * h));
          if constexpr (kGeneral) {
            to.scale = scale_to_float(scale, args_.scales_are_bf16);
            to.affine = h == 0 ? affine.x : affine.y;
          } else {
            to.scale = bits_as<Pair<T>>(scale * 0x00010001u);
          }
          to.zero = Codes<WBits, T>::zero_of_stored(&zeros, h);
        }
      }
    }
  }

  // Two weights of one channel, rounded once to the activations' type.
  template <int kSet>
  __device__ __forceinline__ std::uint32_t weight_pair(std::uint32_t word, int step, int t, int h) {
    const Parameters& parameters = parameters_[kSet][t][h];
    const Pair<T> codes = Codes<WBits, T>::fragment(word, step, parameters.zero);
    if constexpr (kGeneral) {
      const float2 wide = to_float2<T>(codes);
      return bits_as<std::uint32_t>(
          round_to_pair<T>(__fmaf_rn(parameters.scale, wide.x, parameters.affine),
                           __fmaf_rn(parameters.scale, wide.y, parameters.affine)));
    } else {
      return bits_as<std::uint32_t>(__hmul2(codes, parameters.scale));
    }
  }

  // Starts the products of a step: one group of wgmma.
  template <int kStep>
  __device__ __forceinline__ void multiply_step(int slot, bool accumulate) {
    constexpr int kStageBytes = C.tile_m * Shape::kStageK * 2, kStepBytes = Layout::kStepK * 2;
    const std::uint64_t x = x_descriptor_ + static_cast<std::uint32_t>(slot) * (kStageBytes >> 4) +
                            kStep * (kStepBytes >> 4);
    ptx::wgmma_fence();
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      ptx::wgmma_k16<T>(sums_[t], fragments_[kStep][t], x, accumulate);
    }
    ptx::wgmma_commit_group();
  }

  // Whether this CTA of the cluster writes pass `pass` of strip t.
  __device__ __forceinline__ bool owns(int t, int pass) const {
    return (t * Shape::kPasses + pass) % cluster_.split == slice_;
  }

  // The sums of one pass, from all slices in their order.
  __device__ __forceinline__ void add_slices(int t, int pass, int thread) {
    constexpr int kFragments = Shape::kPassRows / 8;
    const auto& own = storage_.sums[warpgroup_][t];
    float4 total[kFragments] = {};
    // Reads of neighbours have a long way: as many in flight as there are registers for.
    constexpr int kAhead = kTiles * C.tile_m < 256 ? 2 : 1;
#pragma unroll kAhead
    for (int slice = 0; slice < cluster_.split; ++slice) {
      const int rank = slice * cluster_.multicast + member_;
#pragma unroll
      for (int i = 0; i < kFragments; ++i) {
        const float4 part = ptx::ld_shared_cluster(&own[pass * kFragments + i][thread], rank);
        total[i].x += part.x, total[i].y += part.y, total[i].z += part.z, total[i].w += part.w;
      }
    }
#pragma unroll
    for (int i = 0; i < kFragments; ++i) {
      float* d = &sums_[t][4 * (pass * kFragments + i)];
      d[0] = total[i].x, d[1] = total[i].y, d[2] = total[i].z, d[3] = total[i].w;
    }
  }

  // Rounds rows [32 * pass, + 32) of strip t into shared memory.
  __device__ __forceinline__ void stage_pass(int t, int pass, const float (&bias)[2]) {
#pragma unroll
    for (int i = 0; i < Shape::kPassRows / 16; ++i) {
      std::uint32_t r[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int j = pass * (Shape::kPassRows / 8) + 2 * i + e / 2;
        const float* d = &sums_[t][4 * j + 2 * (e % 2)];
        r[e] = bits_as<std::uint32_t>(round_to_pair<T>(d[0] + bias[e % 2], d[1] + bias[e % 2]));
      }
      const int row = 16 * i + lane_ / 16 * 8 + lane_ % 8;
      const int piece = 2 * warp_ + lane_ / 8 % 2;
      ptx::stmatrix_x4_trans(&storage_.y[warpgroup_][row][8 * swizzled_piece(row, piece)], r);
    }
  }

  // Copies a staged pass to channels n0 ... of rows m0 ... of y.
  __device__ __forceinline__ void write_pass(int n0, int m0, bool vectors) const {
    constexpr int kPieces = Layout::kBlockN / 8;
#pragma unroll
    for (int i = 0; i < Shape::kPassRows * kPieces / 128; ++i) {
      const int at = i * 128 + static_cast<int>(threadIdx.x) % 128;
      const int row = at / kPieces, piece = at % kPieces, n = n0 + 8 * piece;
      if (m0 + row >= args_.m || n >= args_.n) continue;
      auto* target = static_cast<std::uint16_t*>(args_.y) + (m0 + row) * args_.ldy + n;
      const std::uint16_t* source = &storage_.y[warpgroup_][row][8 * swizzled_piece(row, piece)];
      if (vectors && n + 8 <= args_.n) {
        *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(source);
      } else {
        for (int c = 0; c < 8 && n + c < args_.n; ++c) target[c] = source[c];
      }
    }
  }

  const ForwardArguments& args_;
  const HopperPrefillArguments& cluster_;
  Storage& storage_;
  int warpgroup_, warp_, lane_;
  int leader_, member_, slice_;
  int lead_chunk_ = -1;  // after which the other consumer may start
  std::uint64_t x_descriptor_;
  std::uint32_t group_mask_;
  RingCursor<C.stages> x_cursor_;
  RingCursor<Shape::kWeightStages> weights_cursor_;
  uint4 words_[kTiles][Shape::kBlocksPerChunk];
  std::uint32_t fragments_[Shape::kStageSteps][kTiles][4];
  Parameters parameters_[kSets][kTiles][2];  // [set][strip][h]
  float sums_[kTiles][C.tile_m / 2] = {};
};

template <int WBits, KernelConfig C, bool kGeneral>
__device__ __forceinline__ void initialise_barriers(
    HopperPrefillStorage<WBits, C, kGeneral>& storage, int multicast) {
  using Shape = HopperPrefillShape<WBits, C>;
  constexpr int kConsumerWarps = 4 * Shape::kConsumers;
  for (int i = 0; i < C.stages; ++i) {
    ptx::mbarrier_init(&storage.x_full[i], 1);
    ptx::mbarrier_init(&storage.x_empty[i], kConsumerWarps * multicast);
  }
  for (int i = 0; i < Shape::kWeightStages; ++i) {
    ptx::mbarrier_init(&storage.weights_full[i], 1);
    ptx::mbarrier_init(&storage.weights_empty[i], kConsumerWarps);
  }
  ptx::fence_mbarrier_init();
}

template <int WBits, KernelConfig C, bool kGeneral, bool kXByTma>
__device__ __forceinline__ void produce(const HopperPrefillArguments& args,
                                        HopperPrefillStorage<WBits, C, kGeneral>& storage) {
  PrefillProducer<WBits, C, kGeneral, kXByTma> producer(args, storage);
  ptx::griddepcontrol_wait();  // x may be the predecessor's result
  for (TileWalk<WBits, C> tile(args); tile.valid(); tile.next()) {
    if (!kXByTma || threadIdx.x % 128 == 0) producer.load_tile(tile);
    __syncwarp();
    if (args.split > 1) {  // reduce() and store() own the rings for a while
      ptx::barrier_cluster_arrive();
      ptx::barrier_cluster_wait();
      ptx::barrier_cluster_arrive();
      ptx::barrier_cluster_wait();
    }
  }
}

template <int WBits, DType T, KernelConfig C, bool kGeneral>
__device__ __forceinline__ void consume(const HopperPrefillArguments& args,
                                        HopperPrefillStorage<WBits, C, kGeneral>& storage,
                                        int warpgroup) {
  ptx::griddepcontrol_wait();  // the predecessor may still read y
  TileWalk<WBits, C> tile(args);
  PrefillConsumer<WBits, T, C, kGeneral> consumer(args, storage, warpgroup, tile);
  for (; tile.valid(); tile.next()) {
    consumer.multiply(tile);
    if (args.split > 1) consumer.reduce();
    consumer.store(tile);
    if (args.split > 1) {
      ptx::fence_proxy_async();
      ptx::barrier_cluster_arrive();
      ptx::barrier_cluster_wait();
    }
  }
}

/// One row of kKernelTable.
template <int WBits, DType T, int Row, bool kGeneral>
__global__ void __launch_bounds__(HopperPrefillShape<WBits, kKernelTable[Row]>::kThreads, 1)
    prefill_sm90(const __grid_constant__ HopperPrefillArguments args) {
#if MPQ_HAS_WGMMA
  constexpr KernelConfig C = kKernelTable[Row];
  unsigned char* shared = ptx::dynamic_shared_memory();
  auto& storage = *reinterpret_cast<HopperPrefillStorage<WBits, C, kGeneral>*>(shared);
  // The same for all lanes of a warp, and known to be.
  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);

  if (threadIdx.x == 0) {
    ptx::prefetch_tensormap(&args.x);
    ptx::prefetch_tensormap(&args.weights);
    initialise_barriers<WBits, C, kGeneral>(storage, args.multicast);
  }
  __syncwarp();
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
  ptx::griddepcontrol_launch_dependents();

  using Shape = HopperPrefillShape<WBits, C>;
  if (warpgroup == 0) {
    ptx::setmaxnreg_dec<Shape::kProducerRegisters>();
    if (args.x_by_tma) {
      produce<WBits, C, kGeneral, true>(args, storage);
    } else {
      produce<WBits, C, kGeneral, false>(args, storage);
    }
  } else {
    ptx::setmaxnreg_inc<Shape::kConsumerRegisters>();
    consume<WBits, T, C, kGeneral>(args, storage, warpgroup - 1);
  }
  // Neighbours may still arrive at barriers and read sums here.
  __syncwarp();
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
#endif
}

}  // namespace mpq::kernels

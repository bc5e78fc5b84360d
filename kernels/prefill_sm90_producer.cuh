#pragma once
// The warpgroup of the Hopper prefill kernel that brings x, weights and parameters.

#include <cstdint>

#include "prefill_sm90_parts.cuh"
#include "prefill_sm90_x_sums.cuh"
#include "ptx/cluster.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "ptx/tma.cuh"

namespace mpq::kernels {

/// Fills the rings. Its warps share the work, because the instructions for all of them, one after
/// the other, take a warp longer than the consumers need for a stage. Where x's rows are not for
/// TMA, those that bring x copy it.
template <int WBits, DType T, KernelConfig C, bool kGeneral>
class PrefillProducer {
 public:
  using Shape = HopperPrefillShape<WBits, C>;
  using Storage = HopperPrefillStorage<WBits, C, kGeneral>;

  __device__ __forceinline__ PrefillProducer(const HopperPrefillArguments& args, Storage& storage)
      : args_(args), storage_(storage), thread_(static_cast<int>(threadIdx.x % 128)) {}

  /// One warp's work on all tiles, one after the other. What comes first is computed before the
  /// rings' mbarriers are there.
  __device__ __forceinline__ void run() {
    const int warp = __shfl_sync(0xffffffffu, thread_ / 32, 0);
    TileWalk<WBits, C> tile(args_);
    if (warp == kParametersWarp) {
      if constexpr (Shape::kParameterBoxes) {
        start<WBits, C, kParametersStart>(args_);
        if (ptx::elect_one()) for_each_tile(tile, [&] { load_parameters(tile); });
        return;
      }
      ParameterWalk parameters(args_, tile);
      parameters.compute();
      start<WBits, C, kParametersStart>(args_);
      if (ptx::elect_one()) {
        bool computed = true;
        for_each_tile(tile, [&] {
          if (!computed) parameters = ParameterWalk(args_, tile);
          computed = false;
          load_parameters(tile, parameters);
        });
      }
      return;
    }
    start<WBits, C, kProducerStart>(args_);
    if (warp == kFirstSumsWarp) expect_sums(tile);
    if (Shape::kRaised && warp != kXWarp) {
      if constexpr (Shape::kRaised) {
        XSummer<WBits, T, C, kGeneral> sums(args_, storage_, warp == kSecondSumsWarp);
        for_each_tile(tile, [&] { sums.add(tile); });
      }
    } else if (!Shape::kRaised && warp == kWeightsWarp) {
      if (ptx::elect_one()) for_each_tile(tile, [&] { load_weights(tile); });
    } else if (args_.x_by_tma) {
      if (warp == kXWarp && ptx::elect_one()) {
        wait_for_x();
        for_each_tile(tile, [&] { load_x(tile); });
      }
    } else {
      wait_for_x();
      for_each_tile(tile, [&] { copy_x(tile); });
    }
  }

 private:
  // Who does what. Where x has to be summed, for kRaised, two warps do it, in every other slot
  // each, and the weights come with their parameters. (Two that bring x and sum it, too, are slower
  // than consumers, though weights then have a warp of their own.)
  static constexpr int kXWarp = 0, kFirstSumsWarp = 1, kParametersWarp = 2, kWeightsWarp = 3,
                       kSecondSumsWarp = 3;
  static constexpr int kXThreads = Shape::kRaised ? 32 : 64;  // that copy x where TMA cannot

  // Sums of the slice's units that the cluster's other CTAs will send: of its one tile.
  __device__ __forceinline__ void expect_sums(const TileWalk<WBits, C>& tile) const {
    if (args_.split > 1 && ptx::elect_one()) {
      ptx::mbarrier_init(&storage_.sums_arrived, 1);
      ptx::fence_mbarrier_init();
      ptx::mbarrier_arrive_expect_tx(&storage_.sums_arrived,
                                     Storage::inbox_bytes(args_, tile.slice));
    }
    __syncwarp();
  }

  // It may be the predecessor's result.
  __device__ __forceinline__ void wait_for_x() const {
    if (!args_.follows) ptx::griddepcontrol_wait();
  }

  // function(), with the walk at each.
  template <class Function>
  __device__ __forceinline__ void for_each_tile(TileWalk<WBits, C>& tile, Function function) const {
    for (; tile.valid(); tile.next()) {
      function();
      if (args_.exchanges) break;
    }
  }

  __device__ __forceinline__ void load_weights(const TileWalk<WBits, C>& tile) {
#pragma unroll 1
    for (int chunk = 0; chunk < tile.chunk_count; ++chunk) {
      const int slot = weights_cursor_.slot;
      ptx::mbarrier_wait(storage_.weights_empty_of(slot), weights_cursor_.phase ^ 1u);
      ptx::mbarrier_arrive_expect_tx(storage_.weights_full_of(slot), Shape::kWeightBytes);
      copy_chunk(tile, tile.chunk_begin + chunk, slot);
      weights_cursor_.advance();
    }
  }

  // A chunk of the tile's weights, into a slot that is empty and expects them.
  __device__ __forceinline__ void copy_chunk(const TileWalk<WBits, C>& tile, int chunk, int slot) {
    constexpr int kKiBPerChunk = Shape::kBlocksPerChunk * Shape::Layout::kWordsPerBlock / 256;
    // (Scales and zeros of two tiles lie in one line of memory.)
    const bool once = Shape::kFewRows || args_.tiles_m == 1;
    ptx::cp_async_bulk_tensor_3d(storage_.rings.weights[slot], &args_.weights, 0,
                                 chunk * kKiBPerChunk, tile.n0 / Shape::Layout::kBlockN,
                                 storage_.weights_full_of(slot),
                                 once ? ptx::L2Policy::evict_first : ptx::L2Policy::evict_normal);
  }

  // For each stage of x of the tile, its slot being empty: function(slot).
  template <class Function>
  __device__ __forceinline__ void for_each_stage(const TileWalk<WBits, C>& tile,
                                                 Function function) {
    const int stages = tile.chunk_count * Shape::kStagesPerChunk;
#pragma unroll 1
    for (int stage = 0; stage < stages; ++stage) {
      const int slot = x_cursor_.slot;
      ptx::mbarrier_wait(&storage_.x_empty[slot], x_cursor_.phase ^ 1u);
      function(slot);
      x_cursor_.advance();
    }
  }

  // A tile's way through the parameters, a row of each kind for a group.
  struct ParameterWalk {
    std::uint32_t begin, end;     // columns
    int rows;                     // groups of a stage, or the one that it is in
    int scale_bytes, zero_bytes;  // of a row
    const unsigned char *scales, *zeros;

    __device__ __forceinline__ ParameterWalk(const HopperPrefillArguments& all,
                                             const TileWalk<WBits, C>& tile) {
      const ForwardArguments& args = all.forward;
      begin = static_cast<std::uint32_t>(tile.chunk_begin) * Shape::kChunkK;
      end = begin + static_cast<std::uint32_t>(tile.chunk_count) * Shape::kChunkK;
      rows = max(Shape::kStageK >> args.group_shift, 1);
      const int channels = max(min(args.n_padded - tile.n0, C.tile_n), 0);
      const ParameterRows of_scales = rows_of_scales<kGeneral>(args),
                          of_zeros = rows_of_zeros<WBits, C, kGeneral>(all);
      scale_bytes = of_scales.bytes(channels), zero_bytes = of_zeros.bytes(channels);
      const auto group = static_cast<std::int64_t>(begin >> args.group_shift);
      scales = of_scales.at(group, tile.n0), zeros = of_zeros.at(group, tile.n0);
    }
    // Here, not where it is needed.
    __device__ __forceinline__ void compute() {
      scales = ptx::opaque(scales), zeros = ptx::opaque(zeros);
      scale_bytes = ptx::opaque(scale_bytes), zero_bytes = ptx::opaque(zero_bytes);
    }
  };

  // Whether a stage that begins at column k brings parameters.
  static __device__ __forceinline__ bool brings_parameters(std::uint32_t k, std::uint32_t begin,
                                                           std::uint32_t group_mask) {
    return Shape::kParametersEachStage || k == begin || (k & group_mask) == 0u;
  }
  static constexpr int kWeightBytesBeside = Shape::kRaised ? Shape::kWeightBytes : 0;

  // The parameters of groups that begin in a stage or, with the slice, before it; with kRaised the
  // weights, too. A box of each kind a stage:
  __device__ __forceinline__ void load_parameters(const TileWalk<WBits, C>& tile) {
    const int shift = args_.forward.group_shift;
    const std::uint32_t group_mask = (1u << shift) - 1u;
    const int bytes = kWeightBytesBeside + args_.parameter_bytes;
    const int strip = tile.n0 / Shape::Layout::kBlockN;
    const int scales = strip * args_.strip_scales, zeros = strip * args_.strip_zeros;
    const auto begin = static_cast<std::uint32_t>(tile.chunk_begin) * Shape::kChunkK;
    const auto end = begin + static_cast<std::uint32_t>(tile.chunk_count) * Shape::kChunkK;
#pragma unroll 1
    for (std::uint32_t k = begin; k != end; k += Shape::kStageK) {
      const int slot = x_cursor_.slot;
      std::uint64_t* full = &storage_.x_full[slot];
      ptx::mbarrier_wait(&storage_.x_empty[slot], x_cursor_.phase ^ 1u);
      const bool needed = brings_parameters(k, begin, group_mask);
      ptx::mbarrier_arrive_expect_tx(full, needed ? bytes : kWeightBytesBeside);
      if constexpr (Shape::kRaised) copy_chunk(tile, static_cast<int>(k / Shape::kChunkK), slot);
      if (needed) {
        auto& to = storage_.rings.parameters[slot];
        const auto group = static_cast<int>(k >> shift);
        ptx::cp_async_bulk_tensor_2d(to.scales, &args_.scales, scales, group, full);
        ptx::cp_async_bulk_tensor_2d(to.zeros, &args_.zeros, zeros,
                                     args_.zeros_are_shared ? 0 : group, full);
      }
      x_cursor_.advance();
    }
  }

  // Or row by row.
  __device__ __forceinline__ void load_parameters(const TileWalk<WBits, C>& tile,
                                                  ParameterWalk walk) {
    const ForwardArguments& args = args_.forward;
    const std::uint32_t group_mask = (1u << args.group_shift) - 1u;
    const std::int64_t scale_pitch = rows_of_scales<kGeneral>(args).pitch,
                       zero_pitch = rows_of_zeros<WBits, C, kGeneral>(args_).pitch;
    const int bytes = kWeightBytesBeside + walk.rows * (walk.scale_bytes + walk.zero_bytes);
    const bool some = walk.scale_bytes > 0;
    std::uint32_t k = walk.begin;
#pragma unroll 1
    while (k != walk.end) {
      const int slot = x_cursor_.slot;
      std::uint64_t* full = &storage_.x_full[slot];
      ptx::mbarrier_wait(&storage_.x_empty[slot], x_cursor_.phase ^ 1u);
      const bool needed = brings_parameters(k, walk.begin, group_mask);
      ptx::mbarrier_arrive_expect_tx(full, needed ? bytes : kWeightBytesBeside);
      if constexpr (Shape::kRaised) copy_chunk(tile, static_cast<int>(k / Shape::kChunkK), slot);
      if (needed && some) {
        copy_row(slot, 0, walk, full);
#pragma unroll 1
        for (int row = 1; row < walk.rows; ++row) {
          walk.scales += scale_pitch, walk.zeros += zero_pitch;
          copy_row(slot, row, walk, full);
        }
      }
      k += Shape::kStageK;
      if ((k & group_mask) == 0u) walk.scales += scale_pitch, walk.zeros += zero_pitch;
      x_cursor_.advance();
    }
  }

  // The row where the walk is, to row `row` of a slot.
  __device__ __forceinline__ void copy_row(int slot, int row, const ParameterWalk& walk,
                                           std::uint64_t* full) const {
    auto& to = storage_.rings.parameters[slot];
    const ForwardArguments& args = args_.forward;
    const int scales = row * rows_of_scales<kGeneral>(args).bytes(C.tile_n);
    const int zeros = row * rows_of_zeros<WBits, C, kGeneral>(args_).bytes(C.tile_n);
    ptx::cp_async_bulk(reinterpret_cast<unsigned char*>(to.scales) + scales, walk.scales,
                       walk.scale_bytes, full);
    ptx::cp_async_bulk(reinterpret_cast<unsigned char*>(to.zeros) + zeros, walk.zeros,
                       walk.zero_bytes, full);
  }

  __device__ __forceinline__ void load_x(const TileWalk<WBits, C>& tile) {
    int k = tile.chunk_begin * Shape::kChunkK;
    if (Shape::kOneRing && args_.x_by_stages) {
      int part = k / Shape::kSwizzledK;
      for_each_stage(tile, [&](int slot) {
        std::uint64_t* full = &storage_.x_full[slot];
        ptx::mbarrier_arrive_expect_tx(full, C.tile_m * Shape::kStageK * 2);
        ptx::cp_async_bulk_tensor_3d(storage_.rings.x[slot], &args_.x, 0, tile.m0, part, full);
        part += Shape::kStageK / Shape::kSwizzledK;
      });
      return;
    }
    // Of the tile (a grid for more rows than there are has empty ones), and of this CTA's box.
    const int rows = max(min(args_.forward.m - tile.m0, args_.multicast * args_.x_rows), 0);
    const int first = tile.member * args_.x_rows;
    const int box = min(rows - first, args_.x_rows);
    const CUtensorMap* map = box == args_.x_rows ? &args_.x : &args_.last_x;
    for_each_stage(tile, [&](int slot) {
      std::uint64_t* full = &storage_.x_full[slot];
      ptx::mbarrier_arrive_expect_tx(full, rows * Shape::kStageK * 2);
#pragma unroll
      for (auto& part : storage_.rings.x[slot]) {
        if (box > 0 && (Shape::kFewRows || args_.multicast == 1)) {
          ptx::cp_async_bulk_tensor_2d(part, map, k, tile.m0, full);
        } else if (box > 0) {
          const auto ctas = static_cast<std::uint16_t>(((1 << args_.multicast) - 1) << tile.leader);
          ptx::cp_async_bulk_tensor_2d_multicast(part[first], map, k, tile.m0 + first, full, ctas);
        }
        k += Shape::kSwizzledK;
      }
    });
  }

  __device__ __forceinline__ void copy_x(const TileWalk<WBits, C>& tile) {
    int k = tile.chunk_begin * Shape::kChunkK;
    for_each_stage(tile, [&](int slot) {
#pragma unroll 1
      for (auto& part : storage_.rings.x[slot]) {
        copy_part(part, tile.m0, k);
        k += Shape::kSwizzledK;
      }
      ptx::fence_proxy_async();
      ptx::bar_sync(kProducerBarrier, kXThreads);
      if (thread_ == 0) ptx::mbarrier_arrive(&storage_.x_full[slot]);
    });
  }

  // Element by element, for any alignment; only for the sake of being right.
  __device__ __forceinline__ void copy_part(std::uint16_t (&stage)[C.tile_m][Shape::kSwizzledK],
                                            int m0, int k0) const {
    const ForwardArguments& args = args_.forward;
    const int piece = thread_ % 8, column = k0 + 8 * piece;
#pragma unroll 1
    for (int row = thread_ / 8; row < C.tile_m; row += kXThreads / 8) {
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
  RingCursor<Storage::kStages> x_cursor_;
  RingCursor<Storage::kWeightStages> weights_cursor_;
};

}  // namespace mpq::kernels

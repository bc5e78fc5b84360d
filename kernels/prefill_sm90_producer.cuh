#pragma once
// The warpgroup of the Hopper prefill kernel that brings x, weights and parameters.

#include <cstdint>

#include "prefill_sm90_parts.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"

namespace mpq::kernels {

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

}  // namespace mpq::kernels

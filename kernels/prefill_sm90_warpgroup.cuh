#pragma once
// The warpgroups of consumers of the Hopper prefill kernel, whatever they make their products from:
// from their sums (prefill_sm90_sums.cuh) to y.

#include <cstdint>

#include "dequant.cuh"
#include "prefill_sm90_parts.cuh"
#include "prefill_sm90_sums.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "ptx/tma.cuh"

namespace mpq::kernels {

/// A warpgroup's channels of the tile: kTiles times 64, the last ones' maybe less.
template <int WBits, DType T, KernelConfig C, bool kGeneral>
class PrefillWarpgroup : public PrefillSums<WBits, T, C, kGeneral> {
 public:
  using Base = PrefillSums<WBits, T, C, kGeneral>;
  using Base::kTiles;
  using typename Base::Layout, typename Base::Shape, typename Base::Storage;

  /// Writes the CTA's share of the tile, bias added, by way of shared memory. kExchanged: this is
  /// the CTA's only tile, and reduce() has been called.
  template <bool kExchanged>
  __device__ __forceinline__ void store(const TileWalk<WBits, C>& tile) {
    const Place place = this->place();
    if (args_.bias != nullptr) add_bias(tile, place);
    if constexpr (Shape::kWritesSums) {
      write_sums(tile, place);
    } else if constexpr (kExchanged) {
      store_units(tile, place);
    } else {
      if constexpr (Shape::kStoresByTma) {
        if (cluster_.y_by_pieces) return store_boxes(tile, place);
      }
      store_passes(tile, place);
    }
  }

  /// All of y that is on its way has left shared memory.
  __device__ __forceinline__ void finish() const {
    if (Shape::kStoresByTma && sends(this->place())) ptx::cp_async_bulk_wait_group_read<0>();
  }

 protected:
  using Base::args_, Base::cluster_, Base::storage_, Base::sums_, Base::warpgroup_, Base::column_;
  using Base::Base;
  using Base::for_each_unit, Base::has_strip, Base::inbox_of, Base::owns, Base::sums_of;
  using Base::kPassFragments;
  using typename Base::Place;

  __device__ __forceinline__ void add_bias(const TileWalk<WBits, C>& tile, const Place& place) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if (!has_strip(t)) break;
      float bias[2] = {};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int channel = channel_of(tile, t) + 16 * place.warp + place.lane / 4 + 8 * h;
        if (channel < args_.n) bias[h] = __ldg(args_.bias + channel);
      }
#pragma unroll
      for (int i = 0; i < C.tile_m / 2; ++i) sums_[t][i] += bias[i / 2 % 2];
    }
  }

  // Eight rows straight from registers, two channels of a row at a time.
  __device__ __forceinline__ void write_sums(const TileWalk<WBits, C>& tile, const Place& place) {
    static_assert(kPassFragments == 1);
    for_each_unit([&](int t, int pass) {
      const int m0 = row_of(tile, pass) + place.lane / 4;
      const int n0 = channel_of(tile, t) + 16 * place.warp + 2 * (place.lane % 4);
      if (row_of(tile, pass) >= args_.m || !owns(t, pass)) return;
      auto* y = static_cast<std::uint16_t*>(args_.y) + m0 * args_.ldy + n0;
      const float* d = sums_of(t, pass, 0);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const std::uint32_t pair =
            ptx::movmatrix_trans(bits_as<std::uint32_t>(round_to_pair<T>(d[2 * h], d[2 * h + 1])));
        if (m0 >= args_.m) continue;
        std::uint16_t* to = y + 8 * h;
        const int left = args_.n - n0 - 8 * h;
        if (cluster_.y_by_pieces) {
          if (left > 0) *reinterpret_cast<std::uint32_t*>(to) = pair;
        } else {
          if (left > 0) to[0] = static_cast<std::uint16_t>(pair);
          if (left > 1) to[1] = static_cast<std::uint16_t>(pair >> 16);
        }
      }
    });
  }

  // Instructions that run once a tile are fetched anew each time, so there are few of them here.

  // 128 bytes of a row of y at a time.
  __device__ __forceinline__ void store_passes(const TileWalk<WBits, C>& tile, const Place& place) {
    for_each_unit([&](int t, int pass) {
      const int m0 = row_of(tile, pass);
      if (m0 >= args_.m || (Shape::kRaised && !owns(t, pass))) return;
      sync_warpgroup();  // the pass before has been read
      stage_pass(storage_.y[warpgroup_], t, pass, place);
      sync_warpgroup();
      write_pass<!Shape::kStoresByTma>(storage_.y[warpgroup_], channel_of(tile, t), m0);
    });
  }

  // Where inboxes lie there is room for all passes.
  __device__ __forceinline__ void store_units(const TileWalk<WBits, C>& tile, const Place& place) {
    const int slice = this->slice();
    // In the unit's inbox, where those of this slice would come in.
    const auto staged = [&](int t, int pass) -> auto& {
      return reinterpret_cast<typename Storage::YPass&>(inbox_of(t, pass)[slice]);
    };
    for_each_unit([&](int t, int pass) {
      if (owns(t, pass)) stage_pass(staged(t, pass), t, pass, place);
    });
    sync_warpgroup();
#pragma unroll 1
    for (int unit = 0; unit < kTiles * Shape::kPasses; ++unit) {
      const int t = unit / Shape::kPasses, pass = unit % Shape::kPasses;
      if (!has_strip(t) || !owns(t, pass)) continue;
      write_pass<true>(staged(t, pass), channel_of(tile, t), row_of(tile, pass));
    }
  }

  // By TMA, which reads shared memory beside the next tile's products, and leaves out what is
  // beyond y.
  __device__ __forceinline__ void store_boxes(const TileWalk<WBits, C>& tile, const Place& place) {
    constexpr int kPasses = Storage::kBoxPasses, kSlots = Storage::kBoxes;
    constexpr int kStripBoxes = Shape::kPasses / kPasses;
#pragma unroll
    for (int i = 0; i < kTiles * kStripBoxes; ++i) {
      const int t = i / kStripBoxes, pass = i % kStripBoxes * kPasses;
      auto& box = storage_.rings.y_boxes[warpgroup_][i % kSlots];
      if (i == 0) {
        wait_for_boxes<0>(place);
      } else if (i >= kSlots) {
        wait_for_boxes<kSlots - 1>(place);
      }
#pragma unroll
      for (int j = 0; j < kPasses; ++j) stage_pass(box[j], t, pass + j, place);
      ptx::fence_proxy_async();
      sync_warpgroup();
      if (sends(place)) {
        ptx::cp_async_bulk_tensor_2d_store(&cluster_.y, channel_of(tile, t), row_of(tile, pass),
                                           box);
        ptx::cp_async_bulk_commit_group();
      }
    }
  }

  // Until shared memory has been read for all boxes but the last kPending.
  template <int kPending>
  __device__ __forceinline__ void wait_for_boxes(const Place& place) const {
    if (sends(place)) ptx::cp_async_bulk_wait_group_read<kPending>();
    sync_warpgroup();
  }

  // The thread that has TMA write y. (With elect_one() ptxas believes that warps may come apart
  // here, and takes the main loop's slots out of uniform registers.)
  static __device__ __forceinline__ bool sends(const Place& place) {
    return place.thread == 0;
  }

  __device__ __forceinline__ void sync_warpgroup() const {
    ptx::bar_sync(kConsumerBarrier + warpgroup_, 128);
  }

  // Rounds the sums of pass `pass` of strip t into shared memory.
  __device__ __forceinline__ void stage_pass(typename Storage::YPass& to, int t, int pass,
                                             const Place& place) {
    constexpr int kRows = 16;  // of a stmatrix
    static_assert(Shape::kPassRows % kRows == 0);
#pragma unroll
    for (int i = 0; i < Shape::kPassRows; i += kRows) {
      std::uint32_t r[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int j = (pass * Shape::kPassRows + i) / 8 + e / 2;
        const float* d = &sums_[t][4 * j + 2 * (e % 2)];
        r[e] = bits_as<std::uint32_t>(round_to_pair<T>(d[0], d[1]));
      }
      const int row = i + place.lane / 16 * 8 + place.lane % 8;
      const int piece = 2 * place.warp + place.lane / 8 % 2;
      ptx::stmatrix_trans(&to[row][8 * swizzled_piece(row, piece)], r);
    }
  }

  // First channel of strip t of this consumer, first row of a pass.
  __device__ __forceinline__ int channel_of(const TileWalk<WBits, C>& tile, int t) const {
    return tile.n0 + (column_ * kTiles + t) * Layout::kBlockN;
  }
  __device__ __forceinline__ int row_of(const TileWalk<WBits, C>& tile, int pass) const {
    return tile.m0 + pass * Shape::kPassRows;
  }

  // From shared memory to channels n0 ... of rows m0 ... of y. kByPieces: if they are aligned.
  template <bool kByPieces>
  __device__ __forceinline__ void write_pass(const typename Storage::YPass& staged, int n0,
                                             int m0) const {
    constexpr int kPieces = Layout::kBlockN / 8, kRows = 128 / kPieces;  // at a time
    static_assert(Shape::kPassRows % kRows == 0);
    // Places are not worth registers throughout the main loop.
    const auto thread = static_cast<int>(ptx::opaque(threadIdx.x) % 128);
    auto* y = static_cast<std::uint16_t*>(args_.y);
    if (kByPieces && cluster_.y_by_pieces) {
      const int piece = thread % kPieces, n = n0 + 8 * piece;
#pragma unroll
      for (int i = 0; i < Shape::kPassRows; i += kRows) {
        const int row = i + thread / kPieces;
        if (m0 + row >= args_.m || n >= args_.n) continue;
        *reinterpret_cast<uint4*>(y + (m0 + row) * args_.ldy + n) =
            *reinterpret_cast<const uint4*>(&staged[row][8 * swizzled_piece(row, piece)]);
      }
    } else {
      const int column = thread % Layout::kBlockN, n = n0 + column;
      // A loop would make ptxas serialise the raised codes' wgmmas (C7520).
      constexpr int kUnrolled = Shape::kRaised ? Shape::kPassRows : 1;
#pragma unroll kUnrolled
      for (int i = 0; i < Shape::kPassRows; i += 128 / Layout::kBlockN) {
        const int row = i + thread / Layout::kBlockN;
        if (m0 + row >= args_.m || n >= args_.n) continue;
        y[(m0 + row) * args_.ldy + n] =
            staged[row][8 * swizzled_piece(row, column / 8) + column % 8];
      }
    }
  }
};

}  // namespace mpq::kernels

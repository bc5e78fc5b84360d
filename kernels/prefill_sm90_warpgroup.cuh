#pragma once
// A warpgroup of consumers of the Hopper prefill kernel, whatever it makes its products from: who
// it is, the parameters of its channels, and its sums, which are added up across slices and phases
// of K and written as y.

#include <cstdint>
#include <type_traits>

#include "dequant.cuh"
#include "mpq/layout.hpp"
#include "prefill_sm90_parts.cuh"
#include "ptx/cluster.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "ptx/tma.cuh"
#include "statistics.cuh"

namespace mpq::kernels {

/// A warpgroup's channels of the tile: kTiles times 64, the last ones' maybe less.
template <int WBits, DType T, KernelConfig C, bool kGeneral>
class PrefillWarpgroup {
 public:
  using Shape = HopperPrefillShape<WBits, C>;
  using Storage = HopperPrefillStorage<WBits, C, kGeneral>;
  using Layout = typename Shape::Layout;
  static constexpr int kTiles = Shape::kTiles;

  /// Adds up the phases' sums and then the slices', in their order. Each CTA of the cluster then
  /// holds the units that it owns, and each of its phases some of them.
  __device__ __forceinline__ void reduce() {
    const int thread = place().thread;
    // When the rings have been read, here and in the cluster, others' sums may lie there.
    if constexpr (Shape::kPhases > 1) ptx::bar_sync(kConsumersBarrier, 128 * Shape::kConsumers);
    if (cluster_.split > 1) ptx::barrier_cluster_arrive_relaxed();
    if constexpr (Shape::kPhases > 1) add_phases(thread);
    if (cluster_.split > 1) add_slices(thread);
  }

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
    if (Shape::kStoresByTma && sends(place())) ptx::cp_async_bulk_wait_group_read<0>();
  }

 protected:
  static constexpr int kPassFragments = Shape::kPassRows / 8;

  __device__ __forceinline__ PrefillWarpgroup(const HopperPrefillArguments& args, Storage& storage,
                                              int warpgroup, const TileWalk<WBits, C>& first)
      : args_(args.forward),
        cluster_(args),
        storage_(storage),
        warpgroup_(warpgroup),
        column_(Shape::kPhases == 1 ? warpgroup : warpgroup % Shape::kConsumersN),
        phase_(Shape::kPhases == 1 ? 0 : warpgroup / Shape::kConsumersN),
        warp_(static_cast<int>(threadIdx.x / 32 % 4)),
        lane_(static_cast<int>(threadIdx.x % 32)),
        leader_(first.leader),
        member_(first.member),
        slice_(first.slice) {}

  // This thread in its warpgroup; found anew where it is needed if it is not worth registers
  // throughout the main loop.
  struct Place {
    int thread, warp, lane;
  };
  __device__ __forceinline__ Place place() const {
    if constexpr (!Shape::kShortOfRegisters) {
      return {static_cast<int>(threadIdx.x % 128), warp_, lane_};
    }
    const unsigned thread = ptx::opaque(threadIdx.x) % 128;
    return {static_cast<int>(thread), static_cast<int>(thread / 32), static_cast<int>(thread % 32)};
  }

  // The CTA's slice of K, and which of those that share x it is.
  __device__ __forceinline__ int slice() const {
    if constexpr (!Shape::kForgetsTile) return slice_;
    return slice_of_rank(cluster_, ptx::cluster_rank_anew());
  }
  __device__ __forceinline__ int member() const {
    return Shape::kFewRows ? 0 : member_;  // few rows are not shared
  }

  // Chunks of the tile's slice that this warpgroup sees.
  __device__ __forceinline__ int own_chunks(const TileWalk<WBits, C>& tile) const {
    if constexpr (Shape::kPhases == 1) return tile.chunk_count;
    return (tile.chunk_count - phase_ + Shape::kPhases - 1) / Shape::kPhases;
  }

  __device__ __forceinline__ void clear_sums() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (float& sum : sums_[t]) sum = 0.f;
    }
  }

  __device__ __forceinline__ void multiply_sums(float factor) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (float& sum : sums_[t]) sum *= factor;
    }
  }

  // Of channels lane / 4 and lane / 4 + 8 of the warp's, as they are in memory.
  struct StoredParameters {
    std::uint32_t scales, zeros = 0;  // affine: codes are taken as they are
    float2 affine{0.f, 0.f};
  };
  // From row `row` of a slot, for strip t.
  __device__ __forceinline__ StoredParameters stored_parameters(int slot, int row, int t) const {
    const auto& from = storage_.rings.parameters[slot];
    const int channel = (column_ * kTiles + t) * Layout::kBlockN + 16 * warp_ + lane_ / 4;
    const auto at = static_cast<int>(parameter_position(channel));
    using ZeroPair = std::conditional_t<WBits == 8, std::uint32_t, std::uint16_t>;
    StoredParameters stored;
    if (kGeneral && args_.statistics != nullptr) {
      const int in_rows = row * C.tile_n + at;
      const auto* codes = reinterpret_cast<const std::uint8_t*>(from.scales) + in_rows;
      const auto* bases = reinterpret_cast<const uint2*>(from.affine_zeros);
      const auto pair = StatisticPair<T>::template of<0>(
          *reinterpret_cast<const std::uint16_t*>(codes), bases[statistic_base_of(in_rows)]);
      stored.scales = pair.scale_bits();
      stored.affine = pair.affine();
    } else {
      stored.scales = *reinterpret_cast<const std::uint32_t*>(&from.scales[row][at]);
      if (kGeneral && args_.zeros == nullptr) {
        stored.affine = *reinterpret_cast<const float2*>(&from.affine_zeros[row][at]);
      } else {
        stored.zeros = *reinterpret_cast<const ZeroPair*>(&from.zeros[row][at]);
      }
    }
    return stored;
  }

  // Tells the CTAs that write there that this warp has done with a slot; -1: none.
  __device__ __forceinline__ void release_x(int slot) {
    __syncwarp();  // every lane has read its parameters
    if (Shape::kFewRows || cluster_.multicast == 1) {
      if (slot >= 0 && lane_ == 0) ptx::mbarrier_arrive(&storage_.x_empty[slot]);
    } else if (slot >= 0 && lane_ < cluster_.multicast) {
      ptx::mbarrier_arrive_cluster(&storage_.x_empty[slot], leader_ + lane_);
    }
  }

  // Whether strip t of this consumer is one of the tile's.
  __device__ __forceinline__ bool has_strip(int t) const {
    return Shape::kEvenStrips || column_ * kTiles + t < Shape::kStrips;
  }

  // function<strips>() with those of this consumer.
  template <class Function>
  __device__ __forceinline__ void with_own_strips(Function function) const {
    if constexpr (!Shape::kEvenStrips) {
      constexpr int kLast = Shape::kStrips % kTiles;
      static_assert(kLast != 0);  // all have kTiles but the last consumer
      if (!has_strip(kTiles - 1)) return function.template operator()<kLast>();
    }
    function.template operator()<kTiles>();
  }

  template <class Function>
  __device__ __forceinline__ void for_each_unit(Function function) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if (!has_strip(t)) break;
#pragma unroll
      for (int pass = 0; pass < Shape::kPasses; ++pass) function(t, pass);
    }
  }

  // Of the CTA's units, pass `pass` of strip t of this consumer.
  __device__ __forceinline__ int unit_of(int t, int pass) const {
    return (column_ * kTiles + t) * Shape::kPasses + pass;
  }

  // Who adds it up and writes it: which phase of which slice.
  __device__ __forceinline__ int phase_of(int t, int pass) const {
    return unit_of(t, pass) % Shape::kOwners;
  }
  __device__ __forceinline__ int slice_of(int t, int pass) const {
    const int turn = unit_of(t, pass) / Shape::kOwners;
    return turn - over_split(cluster_, turn) * cluster_.split;
  }
  __device__ __forceinline__ bool owns(int t, int pass) const {
    return slice_of(t, pass) == slice() && phase_of(t, pass) == phase_;
  }

  // Where its sums come in, in its owner: by slices.
  __device__ __forceinline__ auto* inbox_of(int t, int pass) const {
    const int unit = unit_of(t, pass);
    const int place =
        over_split(cluster_, unit / Shape::kOwners) * Shape::kOwners + unit % Shape::kOwners;
    return &storage_.exchange.inbox[place * cluster_.split];
  }

  __device__ __forceinline__ float* sums_of(int t, int pass, int fragment) {
    return &sums_[t][4 * (pass * kPassFragments + fragment)];
  }

  // The other phases' sums of this phase's units, by way of shared memory, in their order.
  __device__ __forceinline__ void add_phases(int thread) {
    constexpr int kOthers = Shape::kPhases - 1;
    const auto others_of = [&](int t, int pass) {
      return &storage_.exchange.from_phases[unit_of(t, pass) * kOthers];
    };
    for_each_unit([&](int t, int pass) {
      const int owner = phase_of(t, pass);
      if (owner == phase_) return;
      auto& to = others_of(t, pass)[phase_ < owner ? phase_ : phase_ - 1];
#pragma unroll
      for (int i = 0; i < kPassFragments; ++i) {
        const float* d = sums_of(t, pass, i);
        to[i][thread] = make_float4(d[0], d[1], d[2], d[3]);
      }
    });
    ptx::bar_sync(kConsumersBarrier, 128 * Shape::kConsumers);
    for_each_unit([&](int t, int pass) {
      if (phase_of(t, pass) != phase_) return;
#pragma unroll
      for (int j = 0; j < kOthers; ++j) {
#pragma unroll
        for (int i = 0; i < kPassFragments; ++i) {
          float* d = sums_of(t, pass, i);
          const float4 other = others_of(t, pass)[j][i][thread];
          d[0] += other.x, d[1] += other.y, d[2] += other.z, d[3] += other.w;
        }
      }
    });
  }

  __device__ __forceinline__ void add_slices(int thread) {
    ptx::barrier_cluster_wait();
    const int slice = this->slice();
    for_each_unit([&](int t, int pass) {
      const int owner = slice_of(t, pass);
      if (owner == slice || phase_of(t, pass) != phase_) return;
      auto& inbox = inbox_of(t, pass)[slice];
#pragma unroll
      for (int i = 0; i < kPassFragments; ++i) {
        const float* d = sums_of(t, pass, i);
        const float values[4] = {d[0], d[1], d[2], d[3]};
        ptx::st_async(ptx::ClusterTarget(&inbox[i][thread].x, &storage_.sums_arrived,
                                         owner * cluster_.multicast + member()),
                      values);
      }
    });
    ptx::mbarrier_wait(&storage_.sums_arrived, 0);
    for_each_unit([&](int t, int pass) {
      if (owns(t, pass)) add_inbox(t, pass, thread);
    });
  }

  // The sums of a unit that the warpgroup owns: those in its inbox and its own, in their order.
  __device__ __forceinline__ void add_inbox(int t, int pass, int thread) {
    auto* inbox = inbox_of(t, pass);
    const int slice = this->slice();
    float4 total[kPassFragments] = {};
    if constexpr (kPassFragments == 1) {  // without a loop
      const float* own = sums_of(t, pass, 0);
      inbox[slice][0][thread] = make_float4(own[0], own[1], own[2], own[3]);
      add_slices_of<kMostSlices>(total, inbox, thread);
    } else {
#pragma unroll 1
      for (int i = 0; i < slice; ++i) add_fragments(total, inbox[i], thread);
#pragma unroll
      for (int i = 0; i < kPassFragments; ++i) {
        const float* own = sums_of(t, pass, i);
        total[i].x += own[0], total[i].y += own[1], total[i].z += own[2], total[i].w += own[3];
      }
#pragma unroll 1
      for (int i = slice + 1; i < cluster_.split; ++i) add_fragments(total, inbox[i], thread);
    }
    set_sums(t, pass, total);
  }
  __device__ __forceinline__ void set_sums(int t, int pass, const float4 (&to)[kPassFragments]) {
#pragma unroll
    for (int i = 0; i < kPassFragments; ++i) {
      float* own = sums_of(t, pass, i);
      own[0] = to[i].x, own[1] = to[i].y, own[2] = to[i].z, own[3] = to[i].w;
    }
  }

  // Of an inbox's slices, kMost at most; all loads at once.
  template <int kMost>
  __device__ __forceinline__ void add_slices_of(float4 (&to)[kPassFragments],
                                                const typename Storage::Fragments* inbox,
                                                int thread) const {
    if constexpr (kMost > 2) {
      if (cluster_.split <= kMost / 2) return add_slices_of<kMost / 2>(to, inbox, thread);
    }
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      if (i < kMost / 2 || i < cluster_.split) add_fragments(to, inbox[i], thread);
    }
  }

  static __device__ __forceinline__ void add_fragments(float4 (&to)[kPassFragments],
                                                       const float4 (&from)[kPassFragments][128],
                                                       int thread) {
#pragma unroll
    for (int i = 0; i < kPassFragments; ++i) {
      const float4 part = from[i][thread];
      to[i].x += part.x, to[i].y += part.y, to[i].z += part.z, to[i].w += part.w;
    }
  }

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

  const ForwardArguments& args_;
  const HopperPrefillArguments& cluster_;
  Storage& storage_;
  int warpgroup_;
  int column_, phase_;  // strips, and stages of K, of this warpgroup
  int warp_, lane_;
  int leader_, member_, slice_;
  float sums_[kTiles][C.tile_m / 2];
};

}  // namespace mpq::kernels

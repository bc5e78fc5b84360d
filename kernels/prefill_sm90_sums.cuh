#pragma once
// What a warpgroup of consumers of the Hopper prefill kernel has, whatever it makes its products
// from: who it is, the parameters of its channels, and its sums, which are added up across slices
// and phases of K.

#include <cstdint>
#include <type_traits>

#include "dequant.cuh"
#include "mpq/layout.hpp"
#include "prefill_sm90_parts.cuh"
#include "ptx/cluster.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "statistics.cuh"

namespace mpq::kernels {

/// Of a warpgroup's channels of the tile: kTiles times 64, the last ones' maybe less.
template <int WBits, DType T, KernelConfig C, bool kGeneral>
class PrefillSums {
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

 protected:
  static constexpr int kPassFragments = Shape::kPassRows / 8;

  __device__ __forceinline__ PrefillSums(const HopperPrefillArguments& args, Storage& storage,
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
  // From row `row` of a slot, for strip t. (narrow: they are affine.)
  template <AffineZeros kAffineZeros = AffineZeros::either, bool kMayBeInteger = true>
  __device__ __forceinline__ StoredParameters stored_parameters(int slot, int row, int t) const {
    const auto& from = storage_.rings.parameters[slot];
    const int channel = (column_ * kTiles + t) * Layout::kBlockN + 16 * warp_ + lane_ / 4;
    const auto at = static_cast<int>(parameter_position(channel));
    using ZeroPair = std::conditional_t<WBits == 8, std::uint32_t, std::uint16_t>;
    StoredParameters stored;
    if (kGeneral && kAffineZeros != AffineZeros::narrow && args_.statistics != nullptr) {
      const int in_rows = row * C.tile_n + at;
      const auto* codes = reinterpret_cast<const std::uint8_t*>(from.scales) + in_rows;
      const auto* bases = reinterpret_cast<const uint2*>(from.affine_zeros);
      const auto pair = StatisticPair<T>::template of<0>(
          *reinterpret_cast<const std::uint16_t*>(codes), bases[statistic_base_of(in_rows)]);
      stored.scales = pair.scale_bits();
      stored.affine = pair.affine();
    } else {
      stored.scales = *reinterpret_cast<const std::uint32_t*>(&from.scales[row][at]);
      if (kGeneral &&
          (kAffineZeros == AffineZeros::narrow || !kMayBeInteger || args_.zeros == nullptr)) {
        stored.affine = stored_affine_zeros<kAffineZeros>(from, row, at);
      } else {
        stored.zeros = *reinterpret_cast<const ZeroPair*>(&from.zeros[row][at]);
      }
    }
    return stored;
  }

  template <AffineZeros kAffineZeros>
  __device__ __forceinline__ float2 stored_affine_zeros(const typename Storage::Parameters& from,
                                                        int row, int at) const {
    const bool narrow =
        kAffineZeros == AffineZeros::narrow ||
        (kAffineZeros == AffineZeros::either && affine_zero_bytes<WBits>(args_) == 2);
    if constexpr (kAffineZeros == AffineZeros::wide || !reads_narrow_zeros(WBits)) {
      return *reinterpret_cast<const float2*>(&from.affine_zeros[row][at]);
    } else {
      // (No branch: loads would wait for each other.)
      const auto* words = reinterpret_cast<const std::uint32_t*>(
          reinterpret_cast<const unsigned char*>(from.affine_zeros) +
          (row * C.tile_n + at) * (narrow ? 2 : 4));
      const std::uint32_t first = words[0];  // (bits_as of memory would read bytes)
      const float2 halves = to_float2<T>(bits_as<Pair<T>>(first));
      if constexpr (kAffineZeros == AffineZeros::narrow) return halves;
      const float2 floats{__uint_as_float(first), __uint_as_float(words[1])};
      return {narrow ? halves.x : floats.x, narrow ? halves.y : floats.y};
    }
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

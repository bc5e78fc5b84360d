#pragma once
// From the sums of a decode kernel's warps to y.

#include <bit>
#include <cstdint>

#include "arguments.hpp"
#include "decode_storage.cuh"
#include "dequant.cuh"
#include "ptx/cluster.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"

namespace mpq::kernels {

/// Sums of a tile on their way from the warps of a cluster to y. Every CTA of the cluster owns a
/// part of the tile: the others push their sums of it into its inbox (st.async), it adds them in
/// the order of the ranks. Two inboxes, so that pushing may begin while the tile before is still
/// being added. kAnew: where a tile lies is found out anew at its end, for kernels without
/// registers to hold it through the main loop.
template <int WBits, DType T, KernelConfig C, bool kAnew>
class TileReduction {
 public:
  static constexpr int kWarpN = DecodeStorage<C>::kWarpN;

  /// slice: of x. The inboxes follow it: [2][rank][element of the part]. x's
  /// mbarrier is made here, too.
  __device__ __forceinline__ TileReduction(const ForwardArguments& args, DecodeStorage<C>& storage,
                                           unsigned char* slice)
      : args_(args), storage_(storage), slice_(slice) {
    if (threadIdx.x == 0) {
      ptx::mbarrier_init(&storage_.arrived[0], 1);
      ptx::mbarrier_init(&storage_.arrived[1], 1);
      ptx::mbarrier_init(&storage_.x_arrived, 1);
      ptx::fence_mbarrier_init();
    }
    if (args.cluster_shift > 0) ptx::barrier_cluster_arrive_relaxed();
  }

  /// Where the inboxes are, when weights are on their way and x is not there yet: for kernels that
  /// have a register for it.
  __device__ __forceinline__ void prepare() { inboxes_at_ = ptx::opaque(inboxes_at()); }
  /// Whether no tile has been published.
  __device__ __forceinline__ bool at_first() const { return tiles_ == 0; }
  /// First column of the tile that is to be published next.
  __device__ __forceinline__ int column() const { return column_of(tiles_); }

  /// Adds the sums of the CTA's warps, in their order, and sends them to their owners.
  /// store(sums, lane): writes a warp's sums [row][channel of the column].
  template <class Store>
  __device__ __forceinline__ void publish(const Store& store_sums) {
    // Not worth registers throughout the main loop.
    const int thread = ptx::opaque(static_cast<int>(threadIdx.x));
    const int warps_n_shift = ptx::opaque(args_.warps_n_shift);
    const int warp = thread >> 5, lane = thread & 31;
    const int count_shift = element_shift(warps_n_shift), count = 1 << count_shift;
    const bool alone = args_.cluster_shift == 0;
    auto& sums = storage_.sums;
    // Those of a column's warps side by side.
    const int steps_shift = kWarpsShift - warps_n_shift;
    const int warp_n = warp & ((1 << warps_n_shift) - 1), warp_k = warp >> warps_n_shift;
    store_sums(sums[(warp_n << steps_shift) + warp_k], lane);
    finish<false>();
    if (!alone) {
      // All inboxes are there (first time), or the one to be filled has been emptied.
      ptx::barrier_cluster_wait();
      ptx::barrier_cluster_arrive_relaxed();
    }
    __syncthreads();
    const int rank = this->rank(), column = column_of(tiles_);
    const int part = count >> args_.cluster_shift;
    std::uint64_t* arrived = &storage_.arrived[tiles_ & 1];
    float* inbox = inboxes() + (tiles_ & 1) * count + rank * part;
    if (!alone && threadIdx.x == 0) {
      ptx::mbarrier_arrive_expect_tx(arrived, 4 * count);
    }
    const auto add_up = [&]<int kChannels>() {
#pragma unroll 1
      for (int i = kChannels * thread; i < count; i += kChannels * C.threads()) {
        const Place place(i, warps_n_shift);
        float sum[kChannels] = {};
        const int first = place.warp << steps_shift, steps = 1 << steps_shift;
        if constexpr (kChannels == 4) {
#pragma unroll 4
          for (int w = first; w < first + steps; ++w) {
            const float4 more = *reinterpret_cast<const float4*>(&sums[w][place.m][place.n]);
            sum[0] += more.x, sum[1] += more.y, sum[2] += more.z, sum[3] += more.w;
          }
        } else {  // few elements: all loads at once
          sum[0] =
              sum_of<C.warps()>(&sums[0][0][0], (first * C.tile_m + place.m) * kPitch + place.n,
                                C.tile_m * kPitch, steps);
        }
        if (alone) {
#pragma unroll
          for (int j = 0; j < kChannels; ++j) Target(*this, column, place, j).store(*this, sum[j]);
        } else {
          ptx::st_async(inbox + (i & (part - 1)), sum, arrived,
                        i >> (count_shift - args_.cluster_shift));
        }
      }
    };
    // Parts and the channels of a warp are multiples of four.
    if (C.tile_m > 2 && count > C.threads()) {
      add_up.template operator()<4>();
    } else {
      add_up.template operator()<1>();
    }
    __syncthreads();  // the warps' sums may be written again
    ++tiles_;
  }

  /// Writes y of the tile that was published last, if that is left to be done. Once for each.
  /// kLast: there are registers for where it goes, which is found while the sums are on their way.
  template <bool kLast = true>
  __device__ __forceinline__ void finish() {
    if (tiles_ == 0 || args_.cluster_shift == 0) return;
    const int last = tiles_ - 1;
    const int warps_n_shift = ptx::opaque(args_.warps_n_shift);
    const int count = 1 << element_shift(warps_n_shift), part = count >> args_.cluster_shift;
    const float* inbox = inboxes() + (last & 1) * count;
    const int rank = this->rank(), column = column_of(last);
    const auto target_of = [&](int i) {
      return Target(*this, column, Place(rank * part + i, warps_n_shift), 0);
    };
    const int first = ptx::opaque(static_cast<int>(threadIdx.x));
    Target target;
    if constexpr (kLast) {
      target = target_of(first);
      target.hold();
    }
    ptx::mbarrier_wait(&storage_.arrived[last & 1], static_cast<unsigned>(last / 2) & 1u);
#pragma unroll 1
    for (int i = first; i < part; i += C.threads()) {
      if (!kLast || i != first) target = target_of(i);
      target.store(*this, sum_of<8>(inbox, i, part, 1 << args_.cluster_shift));
    }
    __syncwarp();
  }

  /// The cluster's barrier is left as it was found.
  __device__ __forceinline__ void leave() {
    if (args_.cluster_shift > 0) ptx::barrier_cluster_wait();
  }

 private:
  static constexpr int kWarpsShift = std::countr_zero(static_cast<unsigned>(C.warps()));
  static_assert(C.warps() == 1 << kWarpsShift);
  static constexpr int kPitch = DecodeStorage<C>::kPitch;
  // The sum of `count` numbers, kMost at most, `pitch` apart from the `first` on. (Held, or nvcc
  // finds each one's place anew.)
  template <int kMost>
  static __device__ __forceinline__ float sum_of(const float* numbers, int first, int pitch,
                                                 int count) {
    const int place = ptx::opaque(static_cast<int>(sizeof(float)) * first);
    const auto* bytes = reinterpret_cast<const unsigned char*>(numbers);
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      if (i >= count) continue;
      const auto at = i * pitch * static_cast<int>(sizeof(float)) + place;
      sum += *reinterpret_cast<const float*>(bytes + at);
    }
    return sum;
  }
  // Element i of [row][column of the tile][channel of the column].
  struct Place {
    int n, warp, m;
    __device__ __forceinline__ Place(unsigned i, int warps_n_shift)
        : n(static_cast<int>(i % kWarpN)),
          warp(static_cast<int>(i / kWarpN & ((1u << warps_n_shift) - 1))),
          m(static_cast<int>(i / kWarpN >> warps_n_shift)) {}
  };
  // log2 of a tile's elements.
  __device__ __forceinline__ int element_shift(int warps_n_shift) const {
    return args_.slots_shift + (kWarpN == 64 ? 6 : 5) + warps_n_shift;
  }
  __device__ __forceinline__ int cta() const {
    const auto index = static_cast<int>(blockIdx.x);
    return kAnew ? ptx::opaque(index) : index;
  }
  __device__ __forceinline__ int rank() const {
    const int shift = kAnew ? ptx::opaque(args_.cluster_shift) : args_.cluster_shift;
    return cta() & ((1 << shift) - 1);
  }
  __device__ __forceinline__ float* inboxes() const {
    return reinterpret_cast<float*>(slice_ +
                                    (multiplies_fixed_point(C) ? inboxes_at_ : inboxes_at()));
  }
  __device__ __forceinline__ int inboxes_at() const {
    return decode_slice_bytes(C, WBits, 1 << args_.slots_shift,
                              kAnew ? ptx::opaque(args_.x_pitch) : args_.x_pitch);
  }
  // First column of the CTA's tile number `tile`.
  __device__ __forceinline__ int column_of(int tile) const {
    return ((cta() >> args_.cluster_shift) << args_.warps_n_shift) + tile * args_.column_stride;
  }
  // Where the sum of the j-th channel from `place` on goes.
  class Target {
   public:
    Target() = default;
    __device__ __forceinline__ Target(const TileReduction& of, int column, const Place& place,
                                      int j) {
      const ForwardArguments& args = of.args_;
      const int channel = (column + place.warp) * kWarpN + place.n + j;
      const int row = static_cast<int>(blockIdx.y) * args.tile_rows + place.m;
      is_there_ = channel < args.n && row < args.m && place.m < args.tile_rows;
      bias_ = is_there_ && args.bias != nullptr ? __ldg(args.bias + channel) : 0.f;
      at_ = static_cast<std::int64_t>(row) * args.ldy + channel;
    }
    // Finds it here, not where it is needed.
    __device__ __forceinline__ void hold() {
      at_ = ptx::opaque(at_), bias_ = ptx::opaque(bias_);
      is_there_ = ptx::opaque(is_there_ ? 1 : 0) != 0;
    }
    __device__ __forceinline__ void store(const TileReduction& of, float sum) const {
      if (is_there_) static_cast<Scalar<T>*>(of.args_.y)[at_] = round_to<T>(sum + bias_);
    }

   private:
    std::int64_t at_;
    float bias_;
    bool is_there_;
  };
  const ForwardArguments& args_;
  DecodeStorage<C>& storage_;
  unsigned char* slice_;
  int inboxes_at_;  // once prepared
  int tiles_ = 0;
};

}  // namespace mpq::kernels

#pragma once
// From the sums of a decode kernel's warps to y.

#include <cstddef>
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
/// registers to hold it through the main loop. kHolds: so many are free that a thread's places are
/// found before, in prepare(), and held.
template <int WBits, DType T, KernelConfig C, bool kAnew, bool kHolds>
class TileReduction {
 public:
  static constexpr int kWarpN = DecodeStorage<C>::kWarpN;

  /// slice: of x. The inboxes follow it: [2][rank][element of the part].
  __device__ __forceinline__ TileReduction(const ForwardArguments& args, DecodeStorage<C>& storage,
                                           unsigned char* slice)
      : args_(args), storage_(storage), slice_(slice) {}

  /// Makes the mbarriers, x's too, and tells the cluster.
  __device__ __forceinline__ void begin() const {
    if (threadIdx.x == 0) {
      ptx::mbarrier_init(&storage_.arrived[0], 1);
      ptx::mbarrier_init(&storage_.arrived[1], 1);
      ptx::mbarrier_init(&storage_.x_arrived, 1);
      ptx::fence_mbarrier_init();
    }
    if (args_.cluster_shift > 0) ptx::barrier_cluster_arrive_relaxed();
  }

  /// When weights are on their way, and x is not there yet: waits until all CTAs of the cluster
  /// have begun. place: of the lane's first sum among its warp's (Sums::place).
  __device__ __forceinline__ void prepare(int place) {
    const auto thread = static_cast<int>(threadIdx.x);
    if (args_.cluster_shift > 0) {
      ptx::barrier_cluster_wait();
      expect_sums(thread, args_.warps_n_shift);
    }
    if constexpr (kHoldsInboxes) inboxes_at_ = ptx::opaque(inboxes_at());
    if constexpr (kHolds) {
      own_at_ = ptx::opaque(first_of_warp(thread >> 5, args_.warps_n_shift) + place);
      first_sums_at_ =
          ptx::opaque(sums_at(Place(thread, args_.warps_n_shift), args_.warps_n_shift));
      first_owner_ = owner_of(thread, args_.warps_n_shift);
      first_owner_.hold();
    }
  }
  /// Whether no tile has been published.
  __device__ __forceinline__ bool at_first() const { return tiles_ == 0; }
  /// First column of the tile that is to be published next.
  __device__ __forceinline__ int column() const { return column_of(tiles_); }

  /// Adds the sums of the CTA's warps, in their order, and sends them to their owners.
  template <class Sums>
  __device__ __forceinline__ void publish(const Sums& of_warp) {
    // Not worth registers throughout the main loop.
    const int thread = ptx::opaque(static_cast<int>(threadIdx.x));
    const int warps_n_shift = ptx::opaque(args_.warps_n_shift);
    if (tiles_ > 0) __syncthreads();  // the tile before has been read
    const int lane = thread & 31;
    const int own =
        kHolds ? own_at_ : first_of_warp(thread >> 5, warps_n_shift) + Sums::place(lane);
    of_warp.store(&storage_.sums[0][0][0] + own, lane);
    const bool alone = args_.cluster_shift == 0;
    if (tiles_ > 0 && !alone) {
      finish<false>();
      if (tiles_ > 1) ptx::barrier_cluster_wait();  // the inbox to be filled has been emptied
      ptx::barrier_cluster_arrive_relaxed();
      expect_sums(thread, warps_n_shift);
    }
    __syncthreads();
    // Parts and the channels of a warp are multiples of four.
    if (C.tile_m > 2 && (1 << element_shift(warps_n_shift)) > C.threads()) {
      add_up<4>(thread, warps_n_shift);
    } else if constexpr (kHolds) {
      add_up_held(thread, warps_n_shift);
    } else {
      add_up<1>(thread, warps_n_shift);
    }
    __syncwarp();
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
    const int first = ptx::opaque(static_cast<int>(threadIdx.x));
    const auto target_of = [&](int i) {
      return Target(*this, column, Place(rank * part + i, warps_n_shift), 0);
    };
    const auto store = [&](int i, const Target& target) {
      target.store(sum_of<8>(inbox, i, part, 1 << args_.cluster_shift));
    };
    Target target;
    if constexpr (kLast) {
      target = target_of(first);
      target.hold();
    }
    ptx::mbarrier_wait(&storage_.arrived[last & 1], static_cast<unsigned>(last / 2) & 1u);
    if constexpr (kLast && kHolds) {
      if (first < part) store(first, target);
      if (part > C.threads()) {
#pragma unroll 1
        for (int i = first + C.threads(); i < part; i += C.threads()) store(i, target_of(i));
      }
    } else {
#pragma unroll 1
      for (int i = first; i < part; i += C.threads()) {
        if (!kLast || i != first) target = target_of(i);
        store(i, target);
      }
    }
    __syncwarp();
  }

  /// The cluster's barrier is left as it was found: no arrival without its wait.
  __device__ __forceinline__ void leave() {
    if (args_.cluster_shift > 0 && tiles_ > 1) ptx::barrier_cluster_wait();
  }

 private:
  static constexpr int kWarpsShift = kLog2<C.warps()>;
  static_assert(C.warps() == 1 << kWarpsShift);
  static constexpr int kPitch = DecodeStorage<C>::kPitch;
  static constexpr int kOfWarp = C.tile_m * kPitch;
  static constexpr bool kHoldsInboxes = kHolds || multiplies_fixed_point(C);
  // The sum of `count` numbers, a power of two and kMost at most, `pitch` apart from the `first`
  // on, in their order; all loads at once.
  template <int kMost>
  static __device__ __forceinline__ float sum_of(const float* numbers, int first, int pitch,
                                                 int count) {
    constexpr int kFloat = sizeof(float);
    const auto* bytes = reinterpret_cast<const unsigned char*>(numbers);
    float sum = 0.f;
    if constexpr (kHolds) {  // no register is missing for code of each count
      if constexpr (kMost > 1) {
        if (count < kMost) return sum_of<kMost / 2>(numbers, first, pitch, count);
      }
#pragma unroll
      for (int i = 0; i < kMost; ++i) sum += numbers[first + i * pitch];
    } else {
      const int place = ptx::opaque(kFloat * first);  // or nvcc finds each one's anew
#pragma unroll
      for (int i = 0; i < kMost; ++i) {
        if (i >= count) continue;
        sum += *reinterpret_cast<const float*>(bytes + (i * pitch * kFloat + place));
      }
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
  // Where the sums of an element's warps begin, in storage_.sums.
  static __device__ __forceinline__ int sums_at(const Place& place, int warps_n_shift) {
    const int first_row = (place.warp << steps_shift(warps_n_shift)) * C.tile_m + place.m;
    return first_row * kPitch + place.n;
  }
  // Where their sum goes, in even tiles.
  __device__ __forceinline__ ptx::ClusterTarget owner_of(int element, int warps_n_shift) const {
    const int part_shift = element_shift(warps_n_shift) - args_.cluster_shift;
    const int at = (rank() << part_shift) + (element & ((1 << part_shift) - 1));
    return {inboxes() + at, &storage_.arrived[0], element >> part_shift};
  }
  // Adds the warps' sums of a thread's elements and sends them on, the first by places that are
  // held.
  __device__ __forceinline__ void add_up_held(int thread, int warps_n_shift) const {
    const int count = 1 << element_shift(warps_n_shift), inbox = tiles_ & 1;
    const int steps = 1 << steps_shift(warps_n_shift), column = column_of(tiles_);
    if (thread < count) {
      const float sum[1] = {
          sum_of<C.warps()>(&storage_.sums[0][0][0], first_sums_at_, kOfWarp, steps)};
      if (args_.cluster_shift == 0) {
        Target(*this, column, Place(thread, warps_n_shift), 0).store(sum[0]);
      } else {
        ptx::st_async(first_owner_.moved(inbox * count, inbox), sum);
      }
    }
    if (count > C.threads()) add_up<1>(thread + C.threads(), warps_n_shift);
  }
  // The same where nothing is held, of one channel or four at a time, from a thread's first on.
  template <int kChannels>
  __device__ __forceinline__ void add_up(int thread, int warps_n_shift) const {
    const int count_shift = element_shift(warps_n_shift), count = 1 << count_shift;
    const int part = count >> args_.cluster_shift;
    const int rank = this->rank(), column = column_of(tiles_);
    float* inbox = inboxes() + (tiles_ & 1) * count + rank * part;
#pragma unroll 1
    for (int i = kChannels * thread; i < count; i += kChannels * C.threads()) {
      const Place place(i, warps_n_shift);
      float sum[kChannels] = {};
      const int first = place.warp << steps_shift(warps_n_shift);
      const int steps = 1 << steps_shift(warps_n_shift);
      if constexpr (kChannels == 4) {
#pragma unroll 4
        for (int w = first; w < first + steps; ++w) {
          const float4 more = *reinterpret_cast<const float4*>(&storage_.sums[w][place.m][place.n]);
          sum[0] += more.x, sum[1] += more.y, sum[2] += more.z, sum[3] += more.w;
        }
      } else {
        sum[0] = sum_of<C.warps()>(&storage_.sums[0][0][0], sums_at(place, warps_n_shift), kOfWarp,
                                   steps);
      }
      if (args_.cluster_shift == 0) {
#pragma unroll
        for (int j = 0; j < kChannels; ++j) Target(*this, column, place, j).store(sum[j]);
      } else {
        ptx::st_async(ptx::ClusterTarget(inbox + (i & (part - 1)), &storage_.arrived[tiles_ & 1],
                                         i >> (count_shift - args_.cluster_shift)),
                      sum);
      }
    }
  }
  // Of the tile that is published next.
  __device__ __forceinline__ void expect_sums(int thread, int warps_n_shift) {
    if (thread != 0) return;
    ptx::mbarrier_arrive_expect_tx(&storage_.arrived[tiles_ & 1],
                                   4 << element_shift(warps_n_shift));
  }
  // log2 of the warps that split a column's K. Their sums lie side by side.
  static __device__ __forceinline__ int steps_shift(int warps_n_shift) {
    return kWarpsShift - warps_n_shift;
  }
  static __device__ __forceinline__ int first_of_warp(int warp, int warps_n_shift) {
    const int warp_n = warp & ((1 << warps_n_shift) - 1), warp_k = warp >> warps_n_shift;
    return ((warp_n << steps_shift(warps_n_shift)) + warp_k) * kOfWarp;
  }
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
    return reinterpret_cast<float*>(slice_ + (kHoldsInboxes ? inboxes_at_ : inboxes_at()));
  }
  __device__ __forceinline__ int inboxes_at() const {
    const int x_pitch = kAnew ? ptx::opaque(args_.x_pitch) : args_.x_pitch;
    return decode_rows_bytes(C, WBits, 1 << args_.slots_shift, x_pitch);
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
      const bool is_there = channel < args.n && row < args.m && place.m < args.tile_rows;
      bias_ = is_there && args.bias != nullptr ? __ldg(args.bias + channel) : 0.f;
      y_ = static_cast<Scalar<T>*>(args.y) + static_cast<std::int64_t>(row) * args.ldy + channel;
      is_there_ = is_there;
    }
    // Finds it here, not where it is needed.
    __device__ __forceinline__ void hold() {
      y_ = ptx::opaque(y_), bias_ = ptx::opaque(bias_), is_there_ = ptx::opaque(is_there_);
    }
    __device__ __forceinline__ void store(float sum) const {
      if (is_there_ != 0) *y_ = round_to<T>(sum + bias_);
    }

   private:
    Scalar<T>* y_;
    float bias_;
    int is_there_;
  };
  const ForwardArguments& args_;
  DecodeStorage<C>& storage_;
  unsigned char* slice_;
  int tiles_ = 0;
  // Once prepared:
  int inboxes_at_, own_at_, first_sums_at_;
  ptx::ClusterTarget first_owner_;
};

}  // namespace mpq::kernels

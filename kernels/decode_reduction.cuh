#pragma once
// From the sums of a decode kernel's warps to y.

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
/// being added.
template <DType T, KernelConfig C>
class TileReduction {
 public:
  static constexpr int kWarpN = DecodeStorage<C>::kWarpN;

  /// inbox: [2][rank][element of the part], after the slice of x.
  __device__ __forceinline__ TileReduction(const ForwardArguments& args, DecodeStorage<C>& storage,
                                           float* inbox, int rank, int m0, int rows)
      : args_(args), storage_(storage), inbox_(inbox), rank_(rank), m0_(m0), rows_(rows) {
    if (threadIdx.x == 0) {
      ptx::mbarrier_init(&storage_.arrived[0], 1);
      ptx::mbarrier_init(&storage_.arrived[1], 1);
      ptx::mbarrier_init(&storage_.x_arrived, 1);
      ptx::fence_mbarrier_init();
    }
    if (args.cluster_shift > 0) ptx::barrier_cluster_arrive_relaxed();
  }

  /// Adds the sums of the CTA's warps, in their order, and sends them to their owners.
  /// store(sums, lane): writes a warp's sums [row][channel of the column].
  template <class Store>
  __device__ __forceinline__ void publish(int column, const Store& store_sums) {
    // Not worth registers throughout the main loop.
    const int thread = ptx::opaque(static_cast<int>(threadIdx.x));
    const int warps_n_shift = ptx::opaque(args_.warps_n_shift);
    const int warp = thread >> 5, lane = thread & 31;
    const int count_shift = element_shift(warps_n_shift), count = 1 << count_shift;
    const bool alone = args_.cluster_shift == 0;
    auto& sums = storage_.sums;
    store_sums(sums[warp], lane);
    finish();
    if (!alone) {
      // All inboxes are there (first time), or the one to be filled has been emptied.
      ptx::barrier_cluster_wait();
      ptx::barrier_cluster_arrive_relaxed();
    }
    __syncthreads();
    column_ = column;
    const int part = count >> args_.cluster_shift;
    std::uint64_t* arrived = &storage_.arrived[tiles_ & 1];
    float* inbox = inbox_ + (tiles_ & 1) * count + rank_ * part;
    if (!alone && threadIdx.x == 0) {
      ptx::mbarrier_arrive_expect_tx(arrived, 4 * count);
    }
#pragma unroll 1
    for (int i = thread; i < count; i += C.threads()) {
      const Place place(i, warps_n_shift);
      float sum = 0.f;
#pragma unroll
      for (int step = 0; step < C.warps(); ++step) {
        const int w = place.warp + (step << warps_n_shift);
        if (w < C.warps()) sum += sums[w][place.m][place.n];
      }
      if (alone) {
        store(place, sum);
      } else {
        ptx::st_async(inbox + (i & (part - 1)), sum, arrived,
                      i >> (count_shift - args_.cluster_shift));
      }
    }
    __syncthreads();  // the warps' sums may be written again
    published_ = !alone;
    ++tiles_;
  }

  /// Writes y of the tile that was published last, if that is left to be done.
  __device__ __forceinline__ void finish() {
    if (!published_) return;
    published_ = false;
    const int last = tiles_ - 1;
    ptx::mbarrier_wait(&storage_.arrived[last & 1], static_cast<unsigned>(last / 2) & 1u);
    const int warps_n_shift = ptx::opaque(args_.warps_n_shift);
    const int count = 1 << element_shift(warps_n_shift), part = count >> args_.cluster_shift;
    const float* inbox = inbox_ + (last & 1) * count;
#pragma unroll 1
    for (int i = ptx::opaque(static_cast<int>(threadIdx.x)); i < part; i += C.threads()) {
      float sum = 0.f;
#pragma unroll
      for (int rank = 0; rank < 8; ++rank) {
        if (rank < 1 << args_.cluster_shift) sum += inbox[rank * part + i];
      }
      store(Place(rank_ * part + i, warps_n_shift), sum);
    }
    __syncwarp();
  }

  /// The cluster's barrier is left as it was found.
  __device__ __forceinline__ void leave() {
    if (args_.cluster_shift > 0) ptx::barrier_cluster_wait();
  }

 private:
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
  __device__ __forceinline__ void store(const Place& place, float sum) const {
    const int channel = (column_ + place.warp) * kWarpN + place.n;
    if (channel >= args_.n || place.m >= rows_) return;
    if (args_.bias != nullptr) sum += __ldg(args_.bias + channel);
    static_cast<Scalar<T>*>(
        args_.y)[static_cast<std::int64_t>(m0_ + place.m) * args_.ldy + channel] = round_to<T>(sum);
  }
  const ForwardArguments& args_;
  DecodeStorage<C>& storage_;
  float* inbox_;
  int rank_, m0_, rows_, column_ = 0, tiles_ = 0;
  bool published_ = false;
};

}  // namespace mpq::kernels

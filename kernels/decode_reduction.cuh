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
    store_sums(sums[warp], lane);
    finish();
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
        if constexpr (kChannels == 4) {
#pragma unroll 4
          for (int w = place.warp; w < C.warps(); w += 1 << warps_n_shift) {
            const float4 more = *reinterpret_cast<const float4*>(&sums[w][place.m][place.n]);
            sum[0] += more.x, sum[1] += more.y, sum[2] += more.z, sum[3] += more.w;
          }
        } else {  // few elements: all loads at once
#pragma unroll
          for (int step = 0; step < C.warps(); ++step) {
            const int w = place.warp + (step << warps_n_shift);
            if (w < C.warps()) sum[0] += sums[w][place.m][place.n];
          }
        }
        if (alone) {
#pragma unroll
          for (int j = 0; j < kChannels; ++j) store(column, place, j, sum[j]);
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
  __device__ __forceinline__ void finish() {
    if (tiles_ == 0 || args_.cluster_shift == 0) return;
    const int last = tiles_ - 1;
    ptx::mbarrier_wait(&storage_.arrived[last & 1], static_cast<unsigned>(last / 2) & 1u);
    const int warps_n_shift = ptx::opaque(args_.warps_n_shift);
    const int count = 1 << element_shift(warps_n_shift), part = count >> args_.cluster_shift;
    const float* inbox = inboxes() + (last & 1) * count;
    const int rank = this->rank(), column = column_of(last);
#pragma unroll 1
    for (int i = ptx::opaque(static_cast<int>(threadIdx.x)); i < part; i += C.threads()) {
      float sum = 0.f;
#pragma unroll
      for (int from = 0; from < 8; ++from) {
        if (from < 1 << args_.cluster_shift) sum += inbox[from * part + i];
      }
      store(column, Place(rank * part + i, warps_n_shift), 0, sum);
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
  __device__ __forceinline__ int cta() const {
    const auto index = static_cast<int>(blockIdx.x);
    return kAnew ? ptx::opaque(index) : index;
  }
  __device__ __forceinline__ int rank() const {
    const int shift = kAnew ? ptx::opaque(args_.cluster_shift) : args_.cluster_shift;
    return cta() & ((1 << shift) - 1);
  }
  __device__ __forceinline__ float* inboxes() const {
    return reinterpret_cast<float*>(
        slice_ + decode_slice_bytes(C, WBits, 1 << args_.slots_shift,
                                    kAnew ? ptx::opaque(args_.x_pitch) : args_.x_pitch));
  }
  // First column of the CTA's tile number `tile`.
  __device__ __forceinline__ int column_of(int tile) const {
    return ((cta() >> args_.cluster_shift) << args_.warps_n_shift) + tile * args_.column_stride;
  }
  // The sum of the j-th channel from `place` on.
  __device__ __forceinline__ void store(int column, const Place& place, int j, float sum) const {
    const int channel = (column + place.warp) * kWarpN + place.n + j;
    const int row = static_cast<int>(blockIdx.y) * args_.tile_rows + place.m;
    if (channel >= args_.n || row >= args_.m || place.m >= args_.tile_rows) return;
    if (args_.bias != nullptr) sum += __ldg(args_.bias + channel);
    static_cast<Scalar<T>*>(args_.y)[static_cast<std::int64_t>(row) * args_.ldy + channel] =
        round_to<T>(sum);
  }
  const ForwardArguments& args_;
  DecodeStorage<C>& storage_;
  unsigned char* slice_;
  int tiles_ = 0;
};

}  // namespace mpq::kernels

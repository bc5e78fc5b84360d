#pragma once
// What the parts of the decode kernel share: its memory, and who works on what.

#include <bit>
#include <cstdint>

#include "mpq/kernel_shape.hpp"

namespace mpq::kernels {

/// Of a power of two. (std::countr_zero on a device is for constant expressions only.)
template <int kPower>
constexpr int kLog2 = std::countr_zero(static_cast<unsigned>(kPower));

/// Shared memory of a CTA. Parameters on their way follow (ParameterRing), its slice of x
/// (ActivationSlice), the inboxes (TileReduction), and parameters of other groups (GroupRing).
template <KernelConfig C>
struct DecodeStorage {
  static constexpr int kWarpN = C.tile_n, kTiles = C.tile_n / 16;
  static constexpr int kPitch = kWarpN + 4;  // spreads the rows of a fragment over the banks
  uint4 ring[C.warps()][C.stages][kTiles][32];
  float sums[C.warps()][C.tile_m][kPitch];
  /// Count what has arrived in the two inboxes (TileReduction), and of x.
  alignas(32) std::uint64_t arrived[2];
  std::uint64_t x_arrived;
};

/// What a warp works through: of each of its columns of kWarpN channels, its part of each chunk of
/// K. kChunked: there may be more than one chunk. kEvenly_: all runs have one length, columns are
/// `stride` apart, and there are registers to make use of that.
template <bool kChunked, bool kEvenly_>
class BlockRuns {
 public:
  static constexpr bool kEvenly = kEvenly_;
  static_assert(!kChunked || !kEvenly);
  __device__ __forceinline__ BlockRuns(const KSplit& split, int warp_k, int column, int stride,
                                       int columns)
      : split_(split), warp_k_(warp_k), stride_(stride), columns_(columns), column_(column) {}

  /// The run's, if it is not empty. A first run that is empty is followed by empty ones only.
  __device__ __forceinline__ int column() const { return column_; }
  __device__ __forceinline__ int stride() const { return stride_; }
  __device__ __forceinline__ int begin() const { return split_.part_begin(chunk_, warp_k_); }
  __device__ __forceinline__ int end() const { return split_.part_begin(chunk_, warp_k_ + 1); }
  __device__ __forceinline__ bool empty() const { return column_ >= columns_ || begin() == end(); }
  /// Goes to the next run that is not empty, if there is one.
  __device__ __forceinline__ void next() {
    if constexpr (!kChunked) {
      column_ += stride_;
    } else {
      do {
        if (++chunk_ == split_.chunks) chunk_ = 0, column_ += stride_;
      } while (column_ < columns_ && begin() == end());
    }
  }

 private:
  const KSplit& split_;
  int warp_k_, stride_, columns_, column_, chunk_ = 0;
};

}  // namespace mpq::kernels

#pragma once
// The warpgroups of the Hopper prefill kernel that multiply 16 and 32 rows and 4 bits and fewer:
// raised codes on wgmma.

#include <algorithm>
#include <cstdint>

#include "prefill_sm90_raised_warpgroup.cuh"
#include "ptx/wgmma.cuh"
#include "static_for.cuh"

namespace mpq::kernels {

/// While wgmma works on a group of steps the next one's codes are raised, in the other set of
/// registers. Everything under way ends with a body of the loop (ptxas serialises wgmmas whose sums
/// are read while later ones run over the loop's end, warning C7514).
template <int WBits, DType T, KernelConfig C, bool kGeneral>
class RaisedWgmmaConsumer : public RaisedWarpgroup<WBits, T, C, kGeneral> {
 public:
  using Base = RaisedWarpgroup<WBits, T, C, kGeneral>;
  using typename Base::Layout, typename Base::Shape, typename Base::Storage;

  __device__ __forceinline__ RaisedWgmmaConsumer(const HopperPrefillArguments& args,
                                                 Storage& storage, int warpgroup,
                                                 const TileWalk<WBits, C>& first)
      : Base(args, storage, warpgroup, first),
        x_descriptor_(ptx::matrix_descriptor_swizzle_128b(storage.rings.x[0])) {}

  /// sums_ = W x^T over this warpgroup's stages of the tile's slice of K.
  __device__ __forceinline__ void multiply(const TileWalk<WBits, C>& tile) {
    this->sum([&]<int kSumSteps, int kOwn, AffineZeros kAffineZeros>() {
#pragma unroll 1
      for (int left = this->own_chunks(tile); left > 0; --left) {
        this->template add_stage<kSumSteps>(
            [&](int slot, int first) { add_body<kSumSteps, kOwn, kAffineZeros>(slot, first); });
      }
    });
  }

 private:
  using Base::args_, Base::storage_, Base::sums_, Base::lane_;
  static constexpr int kRowTiles = C.tile_m / 8;
  // Steps of a group of wgmma, at most: where registers are shorter, fewer.
  static constexpr int kGroupSteps = Shape::kConsumers == 3 || (WBits == 4 && !kGeneral) ? 4 : 2;

  // Adds the products of the steps from `first` on, strip by strip, sum by sum, group by group.
  template <int kSumSteps, int kOwn, AffineZeros kAffineZeros>
  __device__ __forceinline__ void add_body(int slot, int first) {
    constexpr int kBody = Base::template kBodySteps<kSumSteps>,
                  kGroup = std::min(kSumSteps, kGroupSteps);
    const std::uint64_t x =
        x_descriptor_ + static_cast<std::uint32_t>(slot) * (sizeof(typename Storage::X) >> 4);
    static_for<kOwn * kBody / kGroup>([&]<int kIndex>() {
      constexpr int kStrip = kIndex * kGroup / kBody, kStep = kIndex * kGroup % kBody;
      if constexpr (kIndex >= 2) ptx::wgmma_wait_group<1>();  // who has this set of fragments
      if constexpr (kStep == 0) this->template load_words<kBody>(words_, slot, first, kStrip);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        Base::raise(fragments_[kIndex % 2][i], words_, kStep + i);
      }
      if constexpr (kStep % kSumSteps == 0) {
        if constexpr (kIndex > 0) {
          ptx::wgmma_wait_group<0>();
          end_sum((kIndex - 1) * kGroup / kBody);
        }
        begin_sum<kSumSteps, kAffineZeros>(slot, first + kStep, kStrip);
      }
      ptx::hold(products_);
      ptx::hold(fragments_[kIndex % 2]);
      ptx::wgmma_fence();
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        ptx::wgmma_k16<T>(products_, fragments_[kIndex % 2][i],
                          x + (Shape::x_bytes(first + kStep + i) >> 4));
      }
      ptx::wgmma_commit_group();
    });
    ptx::wgmma_wait_group<0>();
    end_sum(kOwn - 1);
  }

  // What strip t's products of the steps from `first` on begin at: what zeros and offsets are to
  // take off.
  template <int kSumSteps, AffineZeros kAffineZeros>
  __device__ __forceinline__ void begin_sum(int slot, int first, int t) {
    const int row = (first * Layout::kStepK) >> args_.group_shift;
    const auto* x_sums = &storage_.rings.x_sums[slot][first / kSumSteps][2 * (lane_ % 4)];
    const auto stored = this->template stored_parameters<kAffineZeros>(slot, row, t);
    float zero[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      scale_[h] = this->template scale_of<kAffineZeros>(stored, h);
      zero[h] = Base::zero_of(stored, h);
    }
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      const float4 sums = *reinterpret_cast<const float4*>(&x_sums[8 * i]);  // of two rows
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int at = 4 * i + 2 * h;
        Base::template begin_at<kAffineZeros>(&products_[at], &sums_[t][at], zero[h], stored, h,
                                              sums);
      }
    }
  }

  __device__ __forceinline__ void end_sum(int t) {
    ptx::hold(products_);
#pragma unroll
    for (int i = 0; i < 4 * kRowTiles; ++i) {
      sums_[t][i] = __fmaf_rn(scale_[i / 2 % 2], products_[i], sums_[t][i]);
    }
  }

  std::uint64_t x_descriptor_;
  uint4 words_[std::max(1, 8 / Layout::kStepsPerBlock)];
  std::uint32_t fragments_[2][kGroupSteps][4];
  float products_[4 * kRowTiles], scale_[2];
};

}  // namespace mpq::kernels

#pragma once
// The warpgroups of the Hopper prefill kernel that multiply 16 to 64 rows and 4 bits and fewer:
// raised codes on wgmma.

#include <algorithm>
#include <cstdint>

#include "dequant.cuh"
#include "prefill_sm90_parts.cuh"
#include "prefill_sm90_warpgroup.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma.cuh"
#include "raised_codes.cuh"
#include "static_for.cuh"

namespace mpq::kernels {

/// A warpgroup's channels of the tile, kTiles times 64. As RaisedConsumer, whose sums are those of
/// products here, too: while wgmma works on a group of steps the next one's codes are raised, in
/// the other set of registers. Everything under way ends with a body of the loop (ptxas serialises
/// wgmmas whose sums are read while later ones run over the loop's end, warning C7514).
template <int WBits, DType T, KernelConfig C, bool kGeneral>
class RaisedWgmmaConsumer : public PrefillWarpgroup<WBits, T, C, kGeneral> {
 public:
  using Base = PrefillWarpgroup<WBits, T, C, kGeneral>;
  using typename Base::Layout, typename Base::Shape, typename Base::Storage;

  __device__ __forceinline__ RaisedWgmmaConsumer(const HopperPrefillArguments& args,
                                                 Storage& storage, int warpgroup,
                                                 const TileWalk<WBits, C>& first)
      : Base(args, storage, warpgroup, first),
        x_descriptor_(ptx::matrix_descriptor_swizzle_128b(storage.rings.x[0])) {
    cursor_.slot = phase_;
  }

  /// sums_ = W x^T over this warpgroup's stages of the tile's slice of K.
  __device__ __forceinline__ void multiply(const TileWalk<WBits, C>& tile) {
    this->clear_sums();
    with_sum_steps<kGeneral>(args_, [&]<int kSumSteps>() {
      this->with_own_strips([&]<int kOwn>() { multiply_by<kSumSteps, kOwn>(tile); });
    });
  }

 private:
  using Base::args_, Base::storage_, Base::sums_;
  using Base::column_, Base::phase_, Base::warp_, Base::lane_;
  using Raised = RaisedCodes<WBits, T>;
  using Base::kTiles;
  static_assert(Shape::kOneRing && Shape::kStageSteps % 8 == 0);
  static constexpr int kRowTiles = C.tile_m / 8;
  // Steps of a group of wgmma, at most: where registers are shorter, fewer.
  static constexpr int kGroupSteps = Shape::kConsumers == 3 || (WBits == 4 && !kGeneral) ? 4 : 2;

  // kSumSteps: of the columns that are summed before they are scaled. kOwn: strips of this
  // warpgroup.
  template <int kSumSteps, int kOwn>
  __device__ __forceinline__ void multiply_by(const TileWalk<WBits, C>& tile) {
#pragma unroll 1
    for (int left = this->own_chunks(tile); left > 0; --left) {
      const int slot = cursor_.slot;
      ptx::mbarrier_wait(&storage_.x_summed[slot], cursor_.phase);
#pragma unroll 1
      for (int first = 0; first < Shape::kStageSteps; first += kBodySteps<kSumSteps>) {
        add_body<kSumSteps, kOwn>(slot, first);
      }
      this->release_x(slot);
      cursor_.advance();
    }
  }

  template <int kSumSteps>
  static constexpr int kBodySteps = Shape::template kRaisedBodySteps<kSumSteps, kGeneral>;

  // Adds the products of the steps from `first` on, strip by strip, sum by sum, group by group.
  template <int kSumSteps, int kOwn>
  __device__ __forceinline__ void add_body(int slot, int first) {
    constexpr int kBody = kBodySteps<kSumSteps>, kGroup = std::min(kSumSteps, kGroupSteps);
    const std::uint64_t x =
        x_descriptor_ + static_cast<std::uint32_t>(slot) * (sizeof(typename Storage::X) >> 4);
    static_for<kOwn * kBody / kGroup>([&]<int kIndex>() {
      constexpr int kStrip = kIndex * kGroup / kBody, kStep = kIndex * kGroup % kBody;
      if constexpr (kIndex >= 2) ptx::wgmma_wait_group<1>();  // who has this set of fragments
      if constexpr (kStep == 0) load_words<kBody>(slot, first, kStrip);
      raise<kGroup, kIndex % 2>(kStep);
      if constexpr (kStep % kSumSteps == 0) {
        if constexpr (kIndex > 0) {
          ptx::wgmma_wait_group<0>();
          end_sum((kIndex - 1) * kGroup / kBody);
        }
        begin_sum<kSumSteps>(slot, first + kStep, kStrip);
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

  // Of strip t's kSteps steps from `first` on, shifted so that the first is where step 0 would be.
  template <int kSteps>
  __device__ __forceinline__ void load_words(int slot, int first, int t) {
    constexpr int kBlockSteps = Layout::kStepsPerBlock;
#pragma unroll
    for (int b = 0; b < (kSteps + kBlockSteps - 1) / kBlockSteps; ++b) {
      words_[b] =
          storage_.rings.weights[slot][column_ * kTiles + t][first / kBlockSteps + b][warp_][lane_];
    }
    if constexpr (kSteps < kBlockSteps) {
      const int shift = first % kBlockSteps * WBits;
      uint4& words = words_[0];
      words.x >>= shift, words.y >>= shift, words.z >>= shift, words.w >>= shift;
    }
  }

  // Fragments of kGroup steps from `step` on of what is in words_.
  template <int kGroup, int kBuffer>
  __device__ __forceinline__ void raise(int step) {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const uint4& words = words_[(step + i) / Layout::kStepsPerBlock];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        fragments_[kBuffer][i][e] =
            Raised::fragment(word_of(words, e), (step + i) % Layout::kStepsPerBlock);
      }
    }
  }

  // What strip t's products of the steps from `first` on begin at: what zeros and offsets are to
  // take off.
  template <int kSumSteps>
  __device__ __forceinline__ void begin_sum(int slot, int first, int t) {
    const int row = (first * Layout::kStepK) >> args_.group_shift;
    const auto* x_sums = &storage_.rings.x_sums[slot][first / kSumSteps][2 * (lane_ % 4)];
    const auto stored = this->stored_parameters(slot, row, t);
    float zero[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      scale_[h] = scale_to_float(static_cast<std::uint16_t>(stored.scales >> (16 * h)),
                                 kGeneral ? args_.scales_are_bf16 : T == DType::bf16);
      zero[h] = static_cast<float>(stored.zeros >> (8 * h) & 0xffu);
    }
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      const float4 sums = *reinterpret_cast<const float4*>(&x_sums[8 * i]);  // of two rows
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        products_[4 * i + 2 * h] = __fmaf_rn(zero[h], sums.y, sums.x);
        products_[4 * i + 2 * h + 1] = __fmaf_rn(zero[h], sums.w, sums.z);
        if constexpr (kGeneral) {
          const float minus_affine = h == 0 ? -stored.affine.x : -stored.affine.y;
          float* to = &sums_[t][4 * i + 2 * h];
          to[0] = __fmaf_rn(minus_affine, sums.y, to[0]);
          to[1] = __fmaf_rn(minus_affine, sums.w, to[1]);
        }
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
  RingCursor<Storage::kStages, Shape::kPhases> cursor_;
  uint4 words_[std::max(1, 8 / Layout::kStepsPerBlock)];
  std::uint32_t fragments_[2][kGroupSteps][4];
  float products_[4 * kRowTiles], scale_[2];
};

}  // namespace mpq::kernels

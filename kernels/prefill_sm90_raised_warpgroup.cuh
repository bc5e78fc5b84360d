#pragma once
// What the warpgroups of the Hopper prefill kernel that multiply raised codes share, whatever
// instruction does it: the walk over stages and sums, words, and what a sum begins at.

#include <cstdint>

#include "dequant.cuh"
#include "prefill_sm90_parts.cuh"
#include "prefill_sm90_warpgroup.cuh"
#include "ptx/mbarrier.cuh"
#include "raised_codes.cuh"

namespace mpq::kernels {

/// A warpgroup's channels of the tile, kTiles times 64; a warp's are kTiles times 16. Of the
/// columns of a group, or of 128, with q + o a raised code:
///   y += s (sum of (q + o) x - sum of o x - z sum of x)
/// The sums of x come from the producer, and are where the products' sums begin.
template <int WBits, DType T, KernelConfig C, bool kGeneral>
class RaisedWarpgroup : public PrefillWarpgroup<WBits, T, C, kGeneral> {
 public:
  using Base = PrefillWarpgroup<WBits, T, C, kGeneral>;
  using typename Base::Layout, typename Base::Shape, typename Base::Storage;

 protected:
  using Raised = RaisedCodes<WBits, T>;
  using Base::args_, Base::storage_, Base::sums_;
  using Base::column_, Base::phase_, Base::warp_, Base::lane_;
  using Base::kTiles;
  static_assert(Shape::kOneRing && Shape::kStageSteps % 8 == 0);

  __device__ __forceinline__ RaisedWarpgroup(const HopperPrefillArguments& args, Storage& storage,
                                             int warpgroup, const TileWalk<WBits, C>& first)
      : Base(args, storage, warpgroup, first) {
    cursor_.slot = phase_;
  }

  // Steps of a body of the loop, where sums are of kSumSteps steps.
  template <int kSumSteps>
  static constexpr int kBodySteps = Shape::template kRaisedBodySteps<kSumSteps, kGeneral>;

  // sum_stages<kSumSteps, strips of this warpgroup, what affine zeros are>() adds all stages'
  // products to the sums, which begin at zero.
  template <class SumStages>
  __device__ __forceinline__ void sum(SumStages sum_stages) {
    this->clear_sums();
    const auto sum_all = [&]<AffineZeros kAffineZeros>() {
      with_sum_steps(args_, [&]<int kSumSteps>() {
        this->with_own_strips(
            [&]<int kOwn>() { sum_stages.template operator()<kSumSteps, kOwn, kAffineZeros>(); });
      });
    };
    constexpr bool kEither = !Shape::kEvenStrips && C.tile_m > 8;  // no registers for both
    if constexpr (kGeneral && reads_narrow_zeros(WBits) && !kEither) {
      if (args_.affine_zeros != nullptr && affine_zero_bytes<WBits>(args_) == 2) {
        sum_all.template operator()<AffineZeros::narrow>();
        return;
      }
    }
    sum_all.template operator()<kEither ? AffineZeros::either : AffineZeros::wide>();
  }

  // The next stage: add_body(slot, first step) for its bodies.
  template <int kSumSteps, class AddBody>
  __device__ __forceinline__ void add_stage(AddBody add_body) {
    const int slot = cursor_.slot;
    ptx::mbarrier_wait(&storage_.x_summed[slot], cursor_.phase);
#pragma unroll 1
    for (int first = 0; first < Shape::kStageSteps; first += kBodySteps<kSumSteps>) {
      add_body(slot, first);
    }
    this->release_x(slot);
    cursor_.advance();
  }

  // Of strip t's kSteps steps from `first` on, shifted so that the first is where step 0 would be.
  template <int kSteps, int kCount>
  __device__ __forceinline__ void load_words(uint4 (&words)[kCount], int slot, int first,
                                             int t) const {
    constexpr int kBlockSteps = Layout::kStepsPerBlock;
#pragma unroll
    for (int b = 0; b < (kSteps + kBlockSteps - 1) / kBlockSteps; ++b) {
      words[b] =
          storage_.rings.weights[slot][column_ * kTiles + t][first / kBlockSteps + b][warp_][lane_];
    }
    if constexpr (kSteps < kBlockSteps) {
      const int shift = first % kBlockSteps * WBits;
      words[0].x >>= shift, words[0].y >>= shift, words[0].z >>= shift, words[0].w >>= shift;
    }
  }

  // Of one step of a strip's words.
  static __device__ __forceinline__ void raise(std::uint32_t (&codes)[4], const uint4* words,
                                               int step) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      codes[e] = Raised::fragment(word_of(words[step / Layout::kStepsPerBlock], e),
                                  step % Layout::kStepsPerBlock);
    }
  }

  using StoredParameters = typename Base::StoredParameters;
  // Of channel lane / 4 + 8 h of the warp's.
  template <AffineZeros kAffineZeros>
  __device__ __forceinline__ float scale_of(const StoredParameters& stored, int h) const {
    constexpr bool kOfThisType = !kGeneral || kAffineZeros == AffineZeros::narrow;
    return scale_to_float(static_cast<std::uint16_t>(stored.scales >> (16 * h)),
                          kOfThisType ? T == DType::bf16 : args_.scales_are_bf16);
  }
  static __device__ __forceinline__ float zero_of(const StoredParameters& stored, int h) {
    return static_cast<float>(stored.zeros >> (8 * h) & 0xffu);
  }
  // For two rows, of whose x are `x_sums`: what channel h's products begin at; affine zeros go to
  // the total at once.
  template <AffineZeros kAffineZeros>
  static __device__ __forceinline__ void begin_at(float* products, float* total, float zero,
                                                  const StoredParameters& stored, int h,
                                                  const float4& x_sums) {
    if constexpr (kAffineZeros == AffineZeros::narrow) {
      products[0] = x_sums.x;
      products[1] = x_sums.z;
    } else {
      products[0] = __fmaf_rn(zero, x_sums.y, x_sums.x);
      products[1] = __fmaf_rn(zero, x_sums.w, x_sums.z);
    }
    if constexpr (kGeneral) {
      const float minus_affine = h == 0 ? -stored.affine.x : -stored.affine.y;
      total[0] = __fmaf_rn(minus_affine, x_sums.y, total[0]);
      total[1] = __fmaf_rn(minus_affine, x_sums.w, total[1]);
    }
  }

  RingCursor<Storage::kStages, Shape::kPhases> cursor_;
};

}  // namespace mpq::kernels

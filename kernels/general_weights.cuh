#pragma once
// Weights of any kind of zeros and scales, rounded once to the activations' type: what products of
// rounded weights are made from where FusedWeights and Codes will not do.

#include <cstdint>

#include "dequant.cuh"
#include "ptx/prmt.cuh"

namespace mpq::kernels {

/// s (q - z) or s q + b of one channel in one group, from float32.
template <int WBits, DType T>
class GeneralWeights {
 public:
  GeneralWeights() = default;
  /// zeros: of two channels, of which this is the h-th; where zeros are affine 0, else the offset
  /// is.
  __device__ __forceinline__ GeneralWeights(float scale, std::uint32_t zeros, int h, float offset)
      : scale_(Codes<WBits, T>::scale(scale)),
        offset_(offset),
        zero_(Codes<WBits, T>::zero_of_stored(&zeros, h)) {}

  /// The pair of k-step `step` in a layout word.
  __device__ __forceinline__ std::uint32_t pair(std::uint32_t word, int step) const {
    const float2 codes = to_float2<T>(Codes<WBits, T>::fragment(word, step, zero_));
    return bits_as<std::uint32_t>(
        round_to_pair<T>(__fmaf_rn(scale_, codes.x, offset_), __fmaf_rn(scale_, codes.y, offset_)));
  }

 private:
  float scale_, offset_;
  typename Codes<WBits, T>::Zero zero_;
};

/// What is added to s q: -s z or b. (One of the two is 0, and sums of such products are exact.)
template <int WBits>
__device__ __forceinline__ float offset_of(float scale, std::uint32_t zeros, int h, float offset) {
  constexpr unsigned kBits = 8 * sizeof(ZeroCode<WBits>);
  return __fmaf_rn(-scale, static_cast<float>(zeros >> (kBits * h) & ((1u << kBits) - 1)), offset);
}

/// In float16 a masked word is codes as they are, multiples of the least subnormal number.
template <int WBits>
requires(WBits >= 2) class GeneralWeights<WBits, DType::f16> {
 public:
  GeneralWeights() = default;
  __device__ __forceinline__ GeneralWeights(float scale, std::uint32_t zeros, int h, float offset)
      : offset_(offset_of<WBits>(scale, zeros, h, offset)) {
#pragma unroll
    for (int place = 0; place < kPlaces; ++place) {
      scales_[place] = scale * float_power(24 - WBits * place);
    }
  }
  __device__ __forceinline__ std::uint32_t pair(std::uint32_t word, int step) const {
    constexpr std::uint32_t kMask = ((1u << WBits) - 1) * 0x00010001u;
    const int place = step % kPlaces, shift = WBits * place;
    const std::uint32_t masked =
        WBits == 8 ? byte_codes(word, step) : word >> (WBits * step - shift) & kMask << shift;
    const float2 codes = to_float2<DType::f16>(bits_as<Pair<DType::f16>>(masked));
    const float scale = scales_[place];
    return bits_as<std::uint32_t>(round_to_pair<DType::f16>(__fmaf_rn(scale, codes.x, offset_),
                                                            __fmaf_rn(scale, codes.y, offset_)));
  }

 private:
  static constexpr int kPlaces = WBits == 8 ? 1 : 2;
  float scales_[kPlaces], offset_;
};

/// Of 1 bit there are two, which each group has made; codes pick. (Of 2 bits, four: as many
/// instructions of the pipe that has most of them.)
template <DType T>
class GeneralWeights<1, T> {
 public:
  GeneralWeights() = default;
  __device__ __forceinline__ GeneralWeights(float scale, std::uint32_t zeros, int h, float offset) {
    const float zero = offset_of<1>(scale, zeros, h, offset);
    const auto both = bits_as<std::uint32_t>(round_to_pair<T>(zero, scale + zero));
    zero_ = __byte_perm(both, 0, 0x1010);
    flips_ = zero_ ^ __byte_perm(both, 0, 0x3232);
  }
  __device__ __forceinline__ std::uint32_t pair(std::uint32_t word, int step) const {
    const std::uint32_t signs = word << (7 - step % 8);
    return zero_ ^ (flips_ & (step < 8 ? ptx::spread_sign<0>(signs) : ptx::spread_sign<1>(signs)));
  }

 private:
  std::uint32_t zero_, flips_;  // the weight of 0, what that of 1 has other, twice each
};

}  // namespace mpq::kernels

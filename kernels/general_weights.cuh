#pragma once
// Weights of any kind of zeros and scales, rounded to the activations' type: what products of
// rounded weights are made from where FusedWeights and Codes will not do.

#include <cstdint>

#include "dequant.cuh"
#include "general_weights.hpp"
#include "ptx/prmt.cuh"
#include "ptx/rcp.cuh"

namespace mpq::kernels {

/// What is added to s q: -s z or b, of two channels. (One of the two is 0.)
template <int WBits, DType T>
__device__ __forceinline__ float2 offsets_of(float2 scales, std::uint32_t zeros, float2 affine) {
  if constexpr (!may_be_integer(WBits, T)) return affine;
  constexpr unsigned kBits = 8 * sizeof(ZeroCode<WBits>), kMask = (1u << kBits) - 1;
  return {__fmaf_rn(-scales.x, static_cast<float>(zeros & kMask), affine.x),
          __fmaf_rn(-scales.y, static_cast<float>(zeros >> kBits & kMask), affine.y)};
}

/// s (q - z) or s q + b of two channels in one group, in 16-bit arithmetic: b is c - s z with a z
/// of so few bits that q - z is exact, which leaves next to nothing for c, and that is all that is
/// rounded before the weight is. Of integer zeros c is 0, and weights of up to 4 bits are rounded
/// once. Else |c| is at most s / 2 times the last place of z, so but for weights that are a small
/// part of s they are within 0.51 ulp (bfloat16: 0.53; where c is subnormal in float16, and 2^-25).
/// Scales are below general_scale_limit.
template <int WBits, DType T>
class GeneralWeights {
 public:
  GeneralWeights() = default;
  /// zeros: of both channels; where zeros are affine 0 (see may_be_integer), else `affine` is.
  /// most_zero: general_most_zero, or 0 where `affine` are numbers of T, which c then is.
  __device__ __forceinline__ GeneralWeights(float2 scales, std::uint32_t zeros, float2 affine,
                                            float most_zero) {
    const float2 offsets = offsets_of<WBits, T>(scales, zeros, affine);
    const Split low = split(scales.x, offsets.x, most_zero);
    const Split high = split(scales.y, offsets.y, most_zero);
    scales_ = round_to_pair<T>(low.scale, high.scale);
    zeros_ = round_to_pair<T>(low.zero, high.zero);
    rests_ = round_to_pair<T>(low.rest, high.rest);
    if constexpr (kSplitsScales) {
      const float2 rounded = to_float2<T>(scales_);
      scale_rests_ = round_to_pair<T>(low.scale - rounded.x, high.scale - rounded.y);
    }
  }

  /// The pair of k-step `step` in a layout word of channel h.
  __device__ __forceinline__ std::uint32_t pair(std::uint32_t word, int step, int h) const {
    constexpr std::uint32_t kMask = ((1u << WBits) - 1) * 0x00010001u;
    const int shift = WBits * (step % kPlaces);
    const std::uint32_t masked =
        WBits == 8 ? byte_codes(word, step) : word >> (WBits * step - shift) & kMask << shift;
    const Pair<T> difference =
        __hfma2(bits_as<Pair<T>>(masked), bits_as<Pair<T>>(pair_of_power<T>(kRaise - shift)),
                both<T>(zeros_, h));
    Pair<T> rest = both<T>(rests_, h);
    if constexpr (kSplitsScales) rest = __hfma2(difference, both<T>(scale_rests_, h), rest);
    return bits_as<std::uint32_t>(__hfma2(difference, both<T>(scales_, h), rest));
  }

 private:
  // In a masked word codes are multiples of the least subnormal number (see Codes). The largest
  // power of two makes 2^-kLowered of them, so q - z is lowered and scales are raised.
  static constexpr int kPlaces = WBits == 8 ? 1 : 8 / WBits;
  static constexpr int kRaise = exponent_bias(T);
  static constexpr int kLowered = general_lowered(T);
  // Of float16 scales a bfloat16 number is the larger part only; the rest times q - z is exact with
  // 4 bits and fewer, too.
  static constexpr bool kSplitsScales = T == DType::bf16;

  struct Split {
    float scale, zero, rest;  // raised; lowered, with the sign of what is added; c
  };
  static __device__ __forceinline__ Split split(float scale, float offset, float most_zero) {
    constexpr float kMost = general_most_zero(WBits, T);
    // Adding and subtracting it leaves of z what q - z has bits for.
    constexpr float kRounds = 1.5f * kMost * static_cast<float>(1 << (22 - mantissa_bits(T)));
    Split result;
    result.scale = scale * static_cast<float>(1 << kLowered);
    // Any z between 0 and 2^WBits will do, and the one that is 0 / 0.
    float zero = -offset * ptx::reciprocal(result.scale);
    zero = kMost <= 1 ? __saturatef(zero) : fmaxf(zero, 0.f);
    result.zero = kRounds - (kRounds + fminf(zero, most_zero));
    result.rest = __fmaf_rn(result.scale, -result.zero, offset);
    return result;
  }

  Pair<T> scales_, zeros_, rests_, scale_rests_;
};

/// Of 1 bit there are two, which each group has made; codes pick. (Of 2 bits, four: as many
/// instructions of the pipe that has most of them.)
template <DType T>
class GeneralWeights<1, T> {
 public:
  GeneralWeights() = default;
  __device__ __forceinline__ GeneralWeights(float2 scales, std::uint32_t zeros, float2 affine,
                                            float /*most_zero*/) {
    const float2 offsets = offsets_of<1, T>(scales, zeros, affine);
    make(0, scales.x, offsets.x);
    make(1, scales.y, offsets.y);
  }
  __device__ __forceinline__ std::uint32_t pair(std::uint32_t word, int step, int h) const {
    const std::uint32_t signs = word << (7 - step % 8);
    return zero_[h] ^
           (flips_[h] & (step < 8 ? ptx::spread_sign<0>(signs) : ptx::spread_sign<1>(signs)));
  }

 private:
  __device__ __forceinline__ void make(int h, float scale, float offset) {
    const auto both = bits_as<std::uint32_t>(round_to_pair<T>(offset, scale + offset));
    zero_[h] = __byte_perm(both, 0, 0x1010);
    flips_[h] = zero_[h] ^ __byte_perm(both, 0, 0x3232);
  }

  std::uint32_t zero_[2], flips_[2];  // the weight of 0, what that of 1 has other, twice each
};

}  // namespace mpq::kernels

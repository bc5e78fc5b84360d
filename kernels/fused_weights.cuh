#pragma once
// Weights by one multiply-add a pair.

#include <cstdint>

#include "dequant.cuh"
#include "fused_weights.hpp"

namespace mpq::kernels {

/// s * (q - z) or s * q + b of two channels, rounded once: a masked word holds q times a power of
/// two, s is multiplied by the inverse of that, and s * z is exact (see also
/// is_stored_complemented) or b of 16 bits. s is a layer's scale, lowered by fused_shift powers of
/// two, and so is b.
template <int WBits, DType T>
class FusedWeights {
 public:
  FusedWeights() = default;
  /// Of the two channels whose scales are neighbours in `scales`, and zeros, as they are stored, in
  /// the halves of `zeros`: codes, which as floats are subnormal, or affine.
  __device__ __forceinline__ FusedWeights(std::uint32_t scales, std::uint32_t zeros,
                                          const FusedFactors& factors) {
    constexpr int kRaise = fused_raise(WBits, T);
    const Pair<T> raised = __hmul2(bits_as<Pair<T>>(scales), bits_as<Pair<T>>(factors.scale));
#pragma unroll
    for (int place = 0; place < kPlaces; ++place) {
      multipliers_[place] = times_power(raised, -fused_code_exponent(WBits, T, place) - kRaise);
    }
    const auto stored = bits_as<Pair<T>>(zeros);
    if constexpr (fuses_affine_zeros(WBits)) {
      offset_ = __hmul2(stored, bits_as<Pair<T>>(factors.zero));
      if (!factors.zeros_are_affine) offset_ = __hmul2(offset_, __hneg2(multipliers_[0]));
    } else {
      offset_ = __hmul2(times_power(stored, fused_code_exponent(WBits, T, 0) - least_exponent(T)),
                        __hneg2(multipliers_[0]));
    }
  }

  /// The pair of k-step `step` in a layout word of channel h.
  __device__ __forceinline__ std::uint32_t pair(std::uint32_t word, int step, int h) const {
    constexpr std::uint32_t kMask = ((1u << WBits) - 1) * 0x00010001u;
    constexpr int kBit = fused_code_bit(WBits, T);
    const int place = step % kPlaces, shift = kBit - WBits * (step - place);
    const std::uint32_t shifted = shift > 0 ? word << shift : word >> -shift;
    const std::uint32_t codes =
        WBits == 8 ? byte_codes(word, step) : shifted & (kMask << (kBit + WBits * place));
    return bits_as<std::uint32_t>(
        __hfma2(bits_as<Pair<T>>(codes), both<T>(multipliers_[place], h), both<T>(offset_, h)));
  }

 private:
  static constexpr int kPlaces = fused_places(WBits);

  static __device__ __forceinline__ Pair<T> times_power(Pair<T> pair, int exponent) {
    if (exponent == 0) return pair;
    return __hmul2(pair, bits_as<Pair<T>>(pair_of_power<T>(exponent)));
  }
  Pair<T> multipliers_[kPlaces], offset_;
};

}  // namespace mpq::kernels

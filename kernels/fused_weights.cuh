#pragma once
// Weights of 1- and 2-bit codes by one multiply-add a pair.

#include <cstdint>

#include "dequant.cuh"
#include "fused_weights.hpp"

namespace mpq::kernels {

/// s * (q - z) of one channel, rounded once: a masked word holds q times a power of two, s is
/// multiplied by the inverse of that, and s * z is exact, since z is 0, 1, 2 or 4 (see
/// is_stored_complemented). |s| is below fused_scale_limit.
template <int WBits, DType T>
class FusedWeights {
 public:
  /// Of the two channels whose scales and zeros are neighbours in `scales` and `zeros`.
  static __device__ __forceinline__ void load(std::uint32_t scales, std::uint32_t zeros,
                                              FusedWeights (&to)[2]) {
    constexpr float kBase = Half2Of<T>::kBase;
    const auto raised =  // kBase + z: bytes of the zeros, and kMagic's upper one
        bits_as<Pair<T>>(__byte_perm(zeros, Half2Of<T>::kMagic, 0x5150));
    const Pair<T> offset =
        __hmul2(__hsub2(round_to_pair<T>(kBase, kBase), raised), bits_as<Pair<T>>(scales));
    constexpr int kFirst = fused_code_exponent(WBits, T, 0),
                  kSecond = fused_code_exponent(WBits, T, 1);
    const Pair<T> second =
        __hmul2(bits_as<Pair<T>>(scales), bits_as<Pair<T>>(pair_of_power<T>(-kSecond)));
    const Pair<T> first = __hmul2(second, bits_as<Pair<T>>(pair_of_power<T>(kSecond - kFirst)));
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      to[h].multipliers_[0] = both(first, h);
      to[h].multipliers_[1] = both(second, h);
      to[h].offset_ = both(offset, h);
    }
  }

  /// The pair of k-step `step` in a layout word.
  __device__ __forceinline__ std::uint32_t pair(std::uint32_t word, int step) const {
    constexpr std::uint32_t kMask = ((1u << WBits) - 1) * 0x00010001u;
    constexpr int kBit = fused_code_bit(WBits, T);
    const int place = step % 2, shift = kBit - WBits * (step - place);
    const std::uint32_t shifted = shift > 0 ? word << shift : word >> -shift;
    const std::uint32_t codes = shifted & (kMask << (kBit + WBits * place));
    return bits_as<std::uint32_t>(__hfma2(bits_as<Pair<T>>(codes), multipliers_[place], offset_));
  }

 private:
  // One half of a pair, twice.
  static __device__ __forceinline__ Pair<T> both(Pair<T> pair, int h) {
    return bits_as<Pair<T>>(__byte_perm(bits_as<std::uint32_t>(pair), 0, h == 0 ? 0x1010 : 0x3232));
  }

  Pair<T> multipliers_[2], offset_;
};

}  // namespace mpq::kernels

#pragma once
// Codes as 16-bit floats with a known number added: one LOP3 a pair.

#include <cstdint>

#include "dequant.cuh"
#include "mpq/types.hpp"
#include "ptx/lop3.cuh"

namespace mpq::kernels {

/// A code of k-step s, OR-ed into the mantissa of a power of two whose ulp there is 1, is that
/// power plus the code: raised by offset(s). Whoever sums products of raised codes and x takes the
/// sum of offset(s) x off again. Codes of several steps are in the mantissa after one shift of the
/// word, each at another position, with another power; small powers keep the sums, and so what
/// rounding leaves of them, small.
template <int WBits, DType T>
requires(WBits <= 4) struct RaisedCodes {
  static constexpr int kSteps = 16 / WBits;  // in a word

  /// The pair of k-step `step` in a layout word, raised.
  static __device__ __forceinline__ std::uint32_t fragment(std::uint32_t word, int step) {
    const int shift = shift_of(step);
    const std::uint32_t shifted = shift < 0 ? word << -shift : word >> shift;
    const std::uint32_t mask = ((1u << WBits) - 1) * 0x00010001u;
    return ptx::lop3_and_or(shifted, mask << position_of(step),
                            pair_of_power<T>(log2_offset(step)));
  }

  /// Minus what a k-step's codes are raised by, as a pair.
  static constexpr std::uint32_t minus_offset(int step) {
    return kMinus | pair_of_power<T>(log2_offset(step));
  }
  static constexpr std::uint32_t minus_one() { return kMinus | pair_of_power<T>(0); }

 private:
  static constexpr std::uint32_t kMinus = 0x80008000u;
  static constexpr int kMantissaBits = Half2Of<T>::kMantissaBits;

  // By how much the word is shifted right: a few amounts, so that most shifts are shared, and codes
  // lie high in the mantissa.
  static constexpr int shift_of(int step) {
    if constexpr (T == DType::f16) {
      if constexpr (WBits == 1) return step / 4 * 4 - 6;
      if constexpr (WBits == 2) return step < 2 ? -4 : step < 5 ? 0 : 6;
      return step < 2 ? -2 : 6;
    } else {
      if constexpr (WBits == 1) return step / 4 * 4 - 3;
      if constexpr (WBits == 2) return step < 3 ? 0 : step < 6 ? 5 : 9;
      return step == 0 ? 0 : 4 * step - 3;
    }
  }
  static constexpr int position_of(int step) { return WBits * step - shift_of(step); }
  static constexpr int log2_offset(int step) { return kMantissaBits - position_of(step); }
};

}  // namespace mpq::kernels

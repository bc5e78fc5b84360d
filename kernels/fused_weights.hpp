#pragma once
// Where codes of 1 and 2 bits lie in a 16-bit float of which one multiply-add makes a weight (see
// fused_weights.cuh), and which scales that is right for.

#include <cstdint>

#include "mpq/types.hpp"

namespace mpq::kernels {

/// Codes lie at two places, side by side; this is the lowest bit of the lower one.
constexpr int fused_code_bit(int bits, DType dtype) noexcept {
  return bits == 1 ? 12 : dtype == DType::f16 ? 7 : 4;
}

/// log2 of what a code of 1 at place 0 or 1 is as a float: subnormal, or in the first binade of
/// normal numbers, which continues them; or, the code's only bit, one of the exponent's.
constexpr int fused_code_exponent(int bits, DType dtype, int place) noexcept {
  const int mantissa = dtype == DType::f16 ? 10 : 7, bias = dtype == DType::f16 ? 15 : 127;
  const int bit = fused_code_bit(bits, dtype) + place * bits;
  return bit <= mantissa ? bit - mantissa - bias + 1 : (1 << (bit - mantissa)) - bias;
}

/// Bits of the least magnitude of a scale that is too large: scales are multiplied by
/// 2^-fused_code_exponent. f16: 32 (1 bit), 0.5 (2 bits).
constexpr std::uint16_t fused_scale_limit(int bits, DType dtype) noexcept {
  const int mantissa = dtype == DType::f16 ? 10 : 7, bias = dtype == DType::f16 ? 15 : 127;
  return static_cast<std::uint16_t>((2 * bias + 1 + fused_code_exponent(bits, dtype, 0))
                                    << mantissa);
}

}  // namespace mpq::kernels

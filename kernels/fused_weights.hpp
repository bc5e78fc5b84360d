#pragma once
// Where codes lie in a 16-bit float of which one multiply-add makes a weight (see
// fused_weights.cuh), and which layers that is right for.

#include <algorithm>
#include <cstdint>
#include <optional>

#include "float_bits.hpp"
#include "mpq/types.hpp"

namespace mpq::kernels {

/// Places for codes, side by side.
constexpr int fused_places(int bits) noexcept {
  return bits == 8 ? 1 : 2;
}

/// The lowest bit of the lowest place.
constexpr int fused_code_bit(int bits, DType dtype) noexcept {
  const bool f16 = dtype == DType::f16;
  return bits == 1 ? 12 : bits == 2 ? (f16 ? 7 : 4) : bits == 4 ? (f16 ? 3 : 0) : 0;
}

/// log2 of what a code of 1 at a place is as a float: subnormal, or in the first binade of normal
/// numbers, which continues them; or, with 1 bit, one of the exponent's bits.
constexpr int fused_code_exponent(int bits, DType dtype, int place) noexcept {
  const int mantissa = mantissa_bits(dtype), bias = exponent_bias(dtype);
  const int bit = fused_code_bit(bits, dtype) + place * bits;
  return bit <= mantissa ? bit - mantissa - bias + 1 : (1 << (bit - mantissa)) - bias;
}

/// log2 of what scales are multiplied by before the places have theirs.
constexpr int fused_raise(int bits, DType dtype) noexcept {
  return std::min(-fused_code_exponent(bits, dtype, fused_places(bits) - 1),
                  exponent_bias(dtype) - 1);
}

/// What scales are multiplied by first where they are lowered by `shift` powers of two: a pair.
constexpr std::uint32_t fused_multiplier(int bits, DType dtype, int shift) noexcept {
  return pair_of_power(fused_raise(bits, dtype) - shift, dtype);
}

/// log2 of the least subnormal number, which an integer's lowest bit is as a float.
constexpr int least_exponent(DType dtype) noexcept {
  return 1 - exponent_bias(dtype) - mantissa_bits(dtype);
}

/// What is done to scales and zeros, as they are stored, before weights are made.
struct FusedFactors {
  std::uint32_t scale, zero;  ///< pairs of powers of two; the first is fused_multiplier
  bool zeros_are_affine;
};
/// Where scales are lowered by `shift` powers of two.
constexpr FusedFactors fused_factors(int bits, DType dtype, int shift, bool affine) noexcept {
  const int code = fused_code_exponent(bits, dtype, 0) - least_exponent(dtype);
  return {.scale = fused_multiplier(bits, dtype, shift),
          .zero = pair_of_power(affine ? -shift : code, dtype),
          .zeros_are_affine = affine};
}
/// By how much affine zeros can be lowered.
constexpr int most_affine_shift(DType dtype) noexcept {
  return exponent_bias(dtype) - 1;
}

/// Bits of the least magnitude of a scale that is too large, if none is lowered: they are
/// multiplied by 2^-fused_code_exponent. f16: 32 (1 bit), 2^-1 (2 bits), 2^-5 (4 bits), 2^-8 (8
/// bits).
constexpr std::uint16_t fused_scale_limit(int bits, DType dtype) noexcept {
  const int exponent = 2 * exponent_bias(dtype) + 1 + fused_code_exponent(bits, dtype, 0);
  return static_cast<std::uint16_t>(exponent << mantissa_bits(dtype));
}

/// Its power of two is a float.
inline constexpr int kMostFusedShift = 126;
/// By how many powers of two a layer's scales have to be lowered, and the sums of its products
/// raised, so that one multiply-add makes each of its weights, rounded as it would be otherwise;
/// none if there is no such power. Bits of the largest and of the least magnitude of scales that
/// are not 0 (least > largest: all are).
constexpr std::optional<int> fused_shift(int bits, DType dtype, std::uint32_t largest,
                                         std::uint32_t least) noexcept {
  const auto exponent = [&](std::uint32_t magnitude) {
    return static_cast<int>(magnitude >> mantissa_bits(dtype));
  };
  if (exponent(largest) > 2 * exponent_bias(dtype)) return std::nullopt;  // Inf, NaN
  const int shift = std::max(exponent(largest) - exponent(fused_scale_limit(bits, dtype)) + 1, 0);
  if (shift > kMostFusedShift) return std::nullopt;
  // What becomes subnormal is rounded where it was not before.
  if (shift > 0 && least <= largest && exponent(least) <= shift) return std::nullopt;
  return shift;
}

}  // namespace mpq::kernels

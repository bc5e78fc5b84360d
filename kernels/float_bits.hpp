#pragma once
// The bits of 16-bit floats.

#include <cstdint>

#include "mpq/types.hpp"

namespace mpq::kernels {

constexpr int mantissa_bits(DType dtype) noexcept {
  return dtype == DType::f16 ? 10 : 7;
}
constexpr int exponent_bias(DType dtype) noexcept {
  return dtype == DType::f16 ? 15 : 127;
}

/// A pair of 2^exponent, which is a normal number.
constexpr std::uint32_t pair_of_power(int exponent, DType dtype) noexcept {
  const int bits = (exponent + exponent_bias(dtype)) << mantissa_bits(dtype);
  return static_cast<std::uint32_t>(bits) * 0x00010001u;
}

}  // namespace mpq::kernels

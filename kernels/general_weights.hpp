#pragma once
// Which layers' weights kernels/general_weights.cuh makes.

#include <cmath>

#include "float_bits.hpp"
#include "mpq/types.hpp"

namespace mpq::kernels {

/// log2 of what q - z is divided by there, and scales are multiplied by.
constexpr int general_lowered(DType dtype) noexcept {
  return mantissa_bits(dtype) - 1;
}
/// The largest z that zeros are taken apart with, as it is lowered.
constexpr float general_most_zero(int bits, DType dtype) noexcept {
  return static_cast<float>(1 << bits) / static_cast<float>(1 << general_lowered(dtype));
}
/// Whether zeros may be integers there: those of bfloat16 scales under float16 are affine by then
/// (CudaBackend::keeps_affine_zeros_only), but with 1 and 2 bits other layers have them, too.
constexpr bool may_be_integer(int bits, DType dtype) noexcept {
  return bits <= 2 || dtype == DType::bf16;
}
/// A power of two that no scale may reach: times 2^general_lowered it is beyond the type's numbers.
/// f16: 128, bf16: 2^122.
inline float general_scale_limit(DType dtype) noexcept {
  return std::ldexp(1.f, exponent_bias(dtype) + 1 - general_lowered(dtype));
}

}  // namespace mpq::kernels

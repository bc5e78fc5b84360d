#pragma once
// Double-quantised statistics that stay packed, a byte for scale and zero, and are decoded here,
// where they are used.

#include <cuda_runtime.h>

#include <cstdint>

#include "dequant.cuh"

namespace mpq::kernels {

/// Scales and zeros of two channels that are neighbours in memory (parameter_position). With the
/// same operations and roundings as decompress(), so with the same bits:
///   scale = (code >> 4 - scale_zero) * scale_scale,  zero = (code & 15 - zero_zero) * zero_scale
template <DType T>
struct StatisticPair {
  Pair<T> scale, zero;  // w = scale * q - zero

  /// The codes are bytes kByte and kByte + 1 of `codes`; base: of these channels.
  template <int kByte>
  static __device__ __forceinline__ StatisticPair of(std::uint32_t codes, uint2 base) {
    return {decode<kByte>(codes >> 4 & 0x0f0f0f0fu, base.x),
            decode<kByte>(codes & 0x0f0f0f0fu, base.y)};
  }
  __device__ __forceinline__ std::uint32_t scale_bits() const {
    return bits_as<std::uint32_t>(scale);
  }
  /// What to add to scale * q.
  __device__ __forceinline__ float2 affine() const {
    const float2 value = to_float2<T>(zero);
    return {-value.x, -value.y};
  }

 private:
  // base: a scale, and above it a zero.
  template <int kByte>
  static __device__ __forceinline__ Pair<T> decode(std::uint32_t codes, std::uint32_t base) {
    // In the mantissa of 1024 or 128, as in Codes.
    constexpr std::uint32_t kMagic = Half2Of<T>::kMagic;
    const auto raised =
        bits_as<Pair<T>>(__byte_perm(codes, kMagic, 0x7070u + kByte + (kByte + 1) * 0x100u));
    const Pair<T> code = __hsub2(raised, bits_as<Pair<T>>(kMagic));
    const auto scale = bits_as<Pair<T>>(__byte_perm(base, 0, 0x1010));
    const auto zero = bits_as<Pair<T>>(__byte_perm(base, 0, 0x3232));
    return __hmul2(__hsub2(code, zero), scale);
  }
};

}  // namespace mpq::kernels

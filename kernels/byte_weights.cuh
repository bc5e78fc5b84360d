#pragma once
// Weights of 8-bit codes in bfloat16, whose mantissa does not hold a code.

#include <cstdint>

#include "dequant.cuh"

namespace mpq::kernels {

/// s * (q - z) of one channel. As the second byte of a float32 a code is 2^15 + q; times s, less
/// s * (2^15 + z), both of 24 bits, that is exact, so it is rounded once, to bfloat16: five
/// instructions a pair.
class ByteWeights {
 public:
  ByteWeights() = default;
  /// scale: bits of bfloat16. zero: 0 ... 256.
  __device__ __forceinline__ ByteWeights(std::uint16_t scale, std::uint32_t zero)
      : scale_(scale_to_float(scale, true)),
        offset_(-scale_ * (32768.f + static_cast<float>(zero))) {}

  /// The pair of k-step `step` in a layout word: its bytes `step` and `step` + 2.
  __device__ __forceinline__ std::uint32_t pair(std::uint32_t word, int step) const {
    return bits_as<std::uint32_t>(
        round_to_pair<DType::bf16>(weight(word, step), weight(word, step + 2)));
  }

 private:
  __device__ __forceinline__ float weight(std::uint32_t word, int byte) const {
    constexpr std::uint32_t kBase = 0x47000000u;  // 2^15
    const std::uint32_t code = __byte_perm(word, kBase, 0x7404u | static_cast<unsigned>(byte) << 4);
    return __fmaf_rn(scale_, __uint_as_float(code), offset_);
  }
  float scale_, offset_;
};

}  // namespace mpq::kernels

#pragma once
// From packed codes to 16-bit floats. A fragment register holds two weights of one channel; what is
// subtracted from them (the zero) is the same for both.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "float_bits.hpp"
#include "mpq/types.hpp"
#include "ptx/lop3.cuh"

namespace mpq::kernels {

template <DType T>
struct Half2Of;
template <>
struct Half2Of<DType::f16> {
  static constexpr int kMantissaBits = mantissa_bits(DType::f16);
  static constexpr int kBias = exponent_bias(DType::f16);
  static constexpr float kBase = 1024.f;  // integers below OR-ed into its mantissa are added to it
  static constexpr std::uint32_t kMagic = 0x64006400u;  // a pair of it, as bits
  using Scalar = __half;
  using Pair = __half2;
};
template <>
struct Half2Of<DType::bf16> {
  static constexpr int kMantissaBits = mantissa_bits(DType::bf16);
  static constexpr int kBias = exponent_bias(DType::bf16);
  static constexpr float kBase = 128.f;
  static constexpr std::uint32_t kMagic = 0x43004300u;
  using Scalar = __nv_bfloat16;
  using Pair = __nv_bfloat162;
};
template <DType T>
using Scalar = typename Half2Of<T>::Scalar;
template <DType T>
using Pair = typename Half2Of<T>::Pair;

template <class To, class From>
__device__ __forceinline__ To bits_as(const From& value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  __builtin_memcpy(&result, &value, sizeof(To));
  return result;
}

/// 2^exponent, -126 ... 127.
__device__ __forceinline__ float float_power(int exponent) {
  return __uint_as_float(static_cast<std::uint32_t>(exponent + 127) << 23);
}

/// A pair of 2^exponent, as bits.
template <DType T>
constexpr __host__ __device__ std::uint32_t pair_of_power(int exponent) {
  return pair_of_power(exponent, T);
}

/// A scale of the checkpoint's 16-bit type, exactly, as float.
__device__ __forceinline__ float scale_to_float(std::uint16_t bits, bool is_bf16) {
  return is_bf16 ? __uint_as_float(static_cast<std::uint32_t>(bits) << 16)
                 : __half2float(__ushort_as_half(bits));
}

template <DType T>
__device__ __forceinline__ Scalar<T> round_to(float value) {
  if constexpr (T == DType::f16) {
    return __float2half_rn(value);
  } else {
    return __float2bfloat16_rn(value);
  }
}

template <DType T>
__device__ __forceinline__ Pair<T> round_to_pair(float low, float high) {
  if constexpr (T == DType::f16) {
    return __floats2half2_rn(low, high);
  } else {
    return __floats2bfloat162_rn(low, high);
  }
}

template <DType T>
__device__ __forceinline__ float2 to_float2(Pair<T> pair) {
  if constexpr (T == DType::f16) {
    return __half22float2(pair);
  } else {
    return __bfloat1622float2(pair);
  }
}

/// The half of a pair that is channel h's, twice: an instruction takes which half as it reads.
template <DType T>
__device__ __forceinline__ Pair<T> both(Pair<T> pair, int h) {
  if constexpr (T == DType::f16) {
    return h == 0 ? __low2half2(pair) : __high2half2(pair);
  } else {
    return h == 0 ? __low2bfloat162(pair) : __high2bfloat162(pair);
  }
}

/// The codes of 8 bits of k-step `step` (0 or 1) in a layout word.
__device__ __forceinline__ std::uint32_t byte_codes(std::uint32_t word, int step) {
  return __byte_perm(word, 0, step == 0 ? 0x4240 : 0x4341);
}

/// Codes as exact numbers of the activations' type: 2^kUnit * (q - z) of a pair, with no rounding
/// (|q - z| <= 256). Scales are multiplied by 2^-kUnit, which is 1 in float16. Steps whose codes
/// lie side by side in a word share one shift of it.
template <int WBits, DType T>
struct Codes;

/// A code OR-ed into the mantissa of 1024 at bit p is that number plus 2^p times the code: one LOP3
/// and one multiply-add by 2^-p make q minus any small integer. Each of the positions has its own
/// zeros in registers.
template <int WBits>
struct Codes<WBits, DType::f16> {
  static constexpr DType T = DType::f16;
  static constexpr float kBase = Half2Of<T>::kBase;
  static constexpr std::uint32_t kMagic = Half2Of<T>::kMagic;
  static constexpr int kPositions = WBits == 8 ? 1 : 2;

  /// What fragment() subtracts from codes at position 0 and adds to those at the others.
  struct Zero {
    Pair<T> term[kPositions];
  };

  /// For an integer z in [0, 2^WBits].
  static __device__ __forceinline__ Zero zero(int z) {
    return zero_of_raised(kMagic | static_cast<std::uint32_t>(z) * 0x00010001u);
  }
  /// For the i-th of neighbouring ZeroCodes, packed in `words`.
  static __device__ __forceinline__ Zero zero_of_stored(const std::uint32_t* words, int i) {
    if constexpr (WBits == 8) {
      return zero_of_raised(kMagic | __byte_perm(words[i / 2], 0, i % 2 == 0 ? 0x1010 : 0x3232));
    } else {  // bytes: the code, then kMagic's upper byte
      return zero_of_raised(
          __byte_perm(words[i / 4], kMagic, 0x5050u + static_cast<unsigned>(i % 4) * 0x0101u));
    }
  }

  static __device__ __forceinline__ float scale(float s) { return s; }
  static __device__ __forceinline__ Pair<T> scale(Pair<T> s) { return s; }

  /// The pair of k-step `step` in a layout word. magic: kMagic, in a register where that is better.
  static __device__ __forceinline__ Pair<T> fragment(std::uint32_t word, int step, const Zero& zero,
                                                     std::uint32_t magic = kMagic) {
    constexpr std::uint32_t kMask = ((1u << WBits) - 1) * 0x00010001u;
    const int position = step % kPositions;
    const int shift = WBits * position;
    const auto raised = bits_as<Pair<T>>(
        WBits == 8 ? __byte_perm(word, magic, step == 0 ? 0x5250 : 0x5351)
                   : ptx::lop3_and_or(word >> (WBits * step - shift), kMask << shift, kMagic));
    if (position == 0) return __hsub2(raised, zero.term[0]);
    const float unit = 1.f / static_cast<float>(1 << shift);
    return __hfma2(raised, round_to_pair<T>(unit, unit), zero.term[position]);
  }

 private:
  // A pair of kBase + z, as bits.
  static __device__ __forceinline__ Zero zero_of_raised(std::uint32_t bits) {
    const auto raised = bits_as<Pair<T>>(bits);
    Zero result;
    result.term[0] = raised;
#pragma unroll
    for (int p = 1; p < kPositions; ++p) {  // (base - base / 2^p) - (base + z)
      const float difference = kBase - kBase / static_cast<float>(1 << (WBits * p));
      result.term[p] = __hsub2(round_to_pair<T>(difference, difference), raised);
    }
    return result;
  }
};

/// In a masked word codes at bit p of a half are floats as they are, q * 2^p of the least subnormal
/// number: subnormal, or in the first binade of normal numbers, which continues them. One LOP3 and
/// one multiply-add make what is wanted. Scales are below 2^121. (In float16 that is no faster than
/// the way above, and scales would be below 2^7.)
template <int WBits>
struct Codes<WBits, DType::bf16> {
  static constexpr DType T = DType::bf16;
  static constexpr int kLeast = -133, kLargest = 126;  // log2 of that number; it is multiplied by
  static constexpr int kUnit = kLeast + kLargest;      // up to 2^126
  static constexpr int kPositions = 8 / WBits;         // whose codes are integers below 2^8
  using Zero = Pair<T>;

  static __device__ __forceinline__ Zero zero(int z) {
    return zero_of_codes(static_cast<std::uint32_t>(z) * 0x00010001u);
  }
  static __device__ __forceinline__ Zero zero_of_stored(const std::uint32_t* words, int i) {
    if constexpr (WBits == 8) {
      return zero_of_codes(__byte_perm(words[i / 2], 0, i % 2 == 0 ? 0x1010 : 0x3232));
    } else {
      return zero_of_codes(
          __byte_perm(words[i / 4], 0, 0x4040u + static_cast<unsigned>(i % 4) * 0x0101u));
    }
  }

  static __device__ __forceinline__ float scale(float s) { return s * float_power(-kUnit); }
  static __device__ __forceinline__ Pair<T> scale(Pair<T> s) {
    return __hmul2(s, bits_as<Pair<T>>(pair_of_power<T>(-kUnit)));
  }

  static __device__ __forceinline__ Pair<T> fragment(std::uint32_t word, int step, Zero zero,
                                                     std::uint32_t /*magic*/ = 0) {
    constexpr std::uint32_t kMask = ((1u << WBits) - 1) * 0x00010001u;
    const int shift = WBits * (step % kPositions);
    const auto codes = bits_as<Pair<T>>(
        WBits == 8 ? byte_codes(word, step) : word >> (WBits * step - shift) & kMask << shift);
    return __hfma2(codes, bits_as<Pair<T>>(pair_of_power<T>(kLargest - shift)), zero);
  }

 private:
  static __device__ __forceinline__ Zero zero_of_codes(std::uint32_t pair) {
    constexpr std::uint32_t kSigns = 0x80008000u;
    return __hmul2(bits_as<Pair<T>>(pair), bits_as<Pair<T>>(pair_of_power<T>(kLargest) | kSigns));
  }
};

/// One layout word per lane and fragment register: words of a 16-byte load, by register.
__device__ __forceinline__ std::uint32_t word_of(const uint4& words, int e) {
  return e == 0 ? words.x : e == 1 ? words.y : e == 2 ? words.z : words.w;
}

}  // namespace mpq::kernels

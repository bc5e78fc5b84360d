#pragma once
// From packed codes to 16-bit floats. A fragment register holds two weights of one channel; what is
// subtracted from them (the zero) is the same for both.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "mpq/types.hpp"
#include "ptx/lop3.cuh"

namespace mpq::kernels {

template <DType T>
struct Half2Of;
template <>
struct Half2Of<DType::f16> {
  static constexpr int kMantissaBits = 10, kBias = 15;
  using Scalar = __half;
  using Pair = __half2;
};
template <>
struct Half2Of<DType::bf16> {
  static constexpr int kMantissaBits = 7, kBias = 127;
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
  const int bits = (exponent + Half2Of<T>::kBias) << Half2Of<T>::kMantissaBits;
  return static_cast<std::uint32_t>(bits) * 0x00010001u;
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

/// Codes as exact numbers of the activations' type.
///
/// A code OR-ed into the mantissa of 1024 (f16, 10 mantissa bits) or 128 (bf16, 7) at bit p is that
/// number plus 2^p times the code: one LOP3 and one multiply-add by 2^-p make q minus any small
/// integer of a pair, with no rounding (|q - z| <= 256). Steps whose codes lie side by side in the
/// mantissa share one shift of the word, kMostPositions at most: each has its own zeros in
/// registers. 8-bit codes do not fit bf16's mantissa and go as two nibbles, each step of which is
/// exact too.
template <int WBits, DType T, int kMostPositions = 2>
struct Codes {
  static constexpr bool kTwoNibbles = WBits == 8 && T == DType::bf16;
  static constexpr int kMantissaBits = Half2Of<T>::kMantissaBits;
  static constexpr int kPositions = kTwoNibbles                              ? 1
                                    : kMantissaBits / WBits < kMostPositions ? kMantissaBits / WBits
                                                                             : kMostPositions;
  static constexpr float kBase = T == DType::f16 ? 1024.f : 128.f;
  static constexpr std::uint32_t kMagic = T == DType::f16 ? 0x64006400u : 0x43004300u;  // kBase

  /// What fragment() subtracts from codes at position 0 and adds to those at the others.
  struct Zero {
    Pair<T> term[kPositions];
  };

  /// For an integer z in [0, 2^WBits].
  static __device__ __forceinline__ Zero zero(int z) {
    if constexpr (kTwoNibbles) {
      return {{round_to_pair<T>(static_cast<float>(z), static_cast<float>(z))}};
    } else {
      return zero_of_raised(kMagic | static_cast<std::uint32_t>(z) * 0x00010001u);
    }
  }
  /// For the i-th of neighbouring ZeroCodes, packed in `words`.
  static __device__ __forceinline__ Zero zero_of_stored(const std::uint32_t* words, int i) {
    if constexpr (kTwoNibbles) {
      return zero(static_cast<int>(words[i / 2] >> (16 * (i % 2)) & 0xffffu));
    } else if constexpr (WBits == 8) {
      return zero_of_raised(kMagic | __byte_perm(words[i / 2], 0, i % 2 == 0 ? 0x1010 : 0x3232));
    } else {  // bytes: the code, then kMagic's upper byte
      return zero_of_raised(
          __byte_perm(words[i / 4], kMagic, 0x5050u + static_cast<unsigned>(i % 4) * 0x0101u));
    }
  }

  /// The pair of k-step `step` in a layout word, each minus the zero.
  static __device__ __forceinline__ Pair<T> fragment(std::uint32_t word, int step,
                                                     const Zero& zero) {
    if constexpr (kTwoNibbles) {
      const std::uint32_t codes = word >> (8 * step);
      const auto low = bits_as<Pair<T>>(ptx::lop3_and_or(codes, 0x000f000fu, 0x43004300u));
      const auto high = bits_as<Pair<T>>(ptx::lop3_and_or(codes >> 4, 0x000f000fu, 0x43004300u));
      const Pair<T> high16 =  // 16 * (128 + high) - 2048
          __hfma2(high, round_to_pair<T>(16.f, 16.f), round_to_pair<T>(-2048.f, -2048.f));
      return __hadd2(__hsub2(high16, zero.term[0]), __hadd2(low, round_to_pair<T>(-128.f, -128.f)));
    } else {
      constexpr std::uint32_t kMask = ((1u << WBits) - 1) * 0x00010001u;
      const int position = step % kPositions;
      const int shift = WBits * position;
      const auto raised = bits_as<Pair<T>>(
          ptx::lop3_and_or(word >> (WBits * step - shift), kMask << shift, kMagic));
      if (position == 0) return __hsub2(raised, zero.term[0]);
      const float unit = 1.f / static_cast<float>(1 << shift);
      return __hfma2(raised, round_to_pair<T>(unit, unit), zero.term[position]);
    }
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

/// One layout word per lane and fragment register: words of a 16-byte load, by register.
__device__ __forceinline__ std::uint32_t word_of(const uint4& words, int e) {
  return e == 0 ? words.x : e == 1 ? words.y : e == 2 ? words.z : words.w;
}

}  // namespace mpq::kernels

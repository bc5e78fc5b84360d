#pragma once
// Vectors of AVX-512 (F, BW, VL), for kernels.hpp.

#include <immintrin.h>

#include <cstdint>

#include "mpq/types.hpp"

namespace mpq::detail::cpu {

struct Avx512 {
  using Float = __m512;
  using Word = __m512i;
  static constexpr int kLanes = 16;
  static constexpr int kChannels = 4;  ///< decoded together, as registers allow
  using Floats = Float[kChannels];
  using Words = Word[kChannels];
  template <int WBits>
  struct Dequantizer;
  template <int WBits>
  using Dequantizers = Dequantizer<WBits>[kChannels];
  static constexpr int kDecodeRows = 16;  ///< up to here weights stay in registers: measured
  static constexpr int kRows = 4;  ///< rows of x multiplied at once: 16 sums, 4 weights, 1 x of 32
  static constexpr int kPrefetchWords = 1024;

  static Float set1(float value) { return _mm512_set1_ps(value); }
  static Float load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Float value) { _mm512_storeu_ps(to, value); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float negate(Float a) {
    return _mm512_castsi512_ps(
        _mm512_xor_si512(_mm512_castps_si512(a), _mm512_set1_epi32(INT32_MIN)));
  }
  static float sum(Float a) { return _mm512_reduce_add_ps(a); }
  template <int Stride>
  static Float gather(const float* from, const std::int32_t* index) {
    const __m512i at = _mm512_mullo_epi32(_mm512_loadu_si512(index), _mm512_set1_epi32(Stride));
    return _mm512_i32gather_ps(at, from, 4);
  }

  static Word load_words(const std::uint32_t* from) { return _mm512_loadu_si512(from); }
  static void prefetch(const std::uint32_t* from) {
    _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0);
  }
  template <int Bits>
  static Word shift_right(Word word) {
    return _mm512_srli_epi32(word, Bits);
  }
  template <int WBits>
  static Float code(Word word) {
    return _mm512_cvtepi32_ps(_mm512_and_si512(word, _mm512_set1_epi32((1 << WBits) - 1)));
  }

  static Float load_16bit(const std::uint16_t* from, DType dtype) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    if (dtype == DType::f16) return _mm512_cvtph_ps(bits);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static Float load_u16(const std::uint16_t* from) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(bits));
  }
  static std::uint16_t to_16bit(float value, DType dtype) {
    return dtype == DType::f16 ? to_f16(value) : to_bf16(value);
  }

  /// Weights of a group. A lookup in the 16 products replaces the mask, the conversion and the
  /// multiplication; it sees 4 bits, so that narrower codes find theirs repeated.
  template <int WBits>
  struct Dequantizer {
    Dequantizer() = default;
    Dequantizer(const float* scale, const float* offset) {
      constexpr int m = (1 << WBits) - 1;
      const Float codes =
          _mm512_setr_ps(0 & m, 1 & m, 2 & m, 3 & m, 4 & m, 5 & m, 6 & m, 7 & m, 8 & m, 9 & m,
                         10 & m, 11 & m, 12 & m, 13 & m, 14 & m, 15 & m);
      table = _mm512_fmadd_ps(codes, set1(*scale), set1(*offset));
    }
    Float operator()(Word word) const { return _mm512_permutexvar_ps(word, table); }
    Float table;
  };

 private:
  static std::uint16_t to_f16(float value) {
    return static_cast<std::uint16_t>(
        _mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(value), _MM_FROUND_TO_NEAREST_INT)));
  }
  static std::uint16_t to_bf16(float value) {
    const auto u =
        static_cast<std::uint32_t>(_mm_cvtsi128_si32(_mm_castps_si128(_mm_set_ss(value))));
    if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((u >> 16) | 0x0040u);
    return static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
};

template <>
struct Avx512::Dequantizer<8> {
  Dequantizer() = default;
  Dequantizer(const float* s, const float* o) : scale(set1(*s)), offset(set1(*o)) {}
  Float operator()(Word word) const { return fma(code<8>(word), scale, offset); }
  Float scale, offset;
};

}  // namespace mpq::detail::cpu

#pragma once
// Vectors of AVX2 with FMA and F16C, for kernels.hpp.

#include <immintrin.h>

#include <cstdint>

#include "mpq/types.hpp"

namespace mpq::detail::cpu {

struct Avx2 {
  using Float = __m256;
  using Word = __m256i;
  static constexpr int kLanes = 8;
  static constexpr int kChannels = 2;  ///< decoded together, as registers allow
  using Floats = Float[kChannels];
  using Words = Word[kChannels];
  template <int WBits>
  struct Dequantizer;
  template <int WBits>
  using Dequantizers = Dequantizer<WBits>[kChannels];
  static constexpr int kDecodeRows = 2;  ///< up to here weights stay in registers: measured
  static constexpr int kRows = 2;  ///< rows of x multiplied at once: 8 sums, 4 weights, 1 x of 16
  static constexpr int kPrefetchWords = 1024;

  static Float set1(float value) { return _mm256_set1_ps(value); }
  static Float load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Float value) { _mm256_storeu_ps(to, value); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float negate(Float a) { return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f)); }
  static float sum(Float a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  template <int Stride>
  static Float gather(const float* from, const std::int32_t* index) {
    const __m256i at = _mm256_mullo_epi32(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)), _mm256_set1_epi32(Stride));
    return _mm256_i32gather_ps(from, at, 4);
  }

  static Word load_words(const std::uint32_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static void prefetch(const std::uint32_t* from) {
    _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0);
  }
  template <int Bits>
  static Word shift_right(Word word) {
    return _mm256_srli_epi32(word, Bits);
  }
  template <int WBits>
  static Float code(Word word) {
    return _mm256_cvtepi32_ps(_mm256_and_si256(word, _mm256_set1_epi32((1 << WBits) - 1)));
  }

  static Float load_16bit(const std::uint16_t* from, DType dtype) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    if (dtype == DType::f16) return _mm256_cvtph_ps(bits);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static Float load_u16(const std::uint16_t* from) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(bits));
  }
  static std::uint16_t to_16bit(float value, DType dtype) {
    return dtype == DType::f16 ? to_f16(value) : to_bf16(value);
  }

  /// Weights of a group: computed.
  template <int WBits>
  struct Dequantizer {
    Dequantizer() = default;
    Dequantizer(const float* s, const float* o) : scale(set1(*s)), offset(set1(*o)) {}
    Float operator()(Word word) const { return fma(code<WBits>(word), scale, offset); }
    Float scale, offset;
  };

 private:
  /// Weights of a group: looked up among 8 products, which 1 or 2 bits of 3 tell apart.
  template <int WBits>
  struct Lookup {
    Lookup() = default;
    Lookup(const float* s, const float* o) {
      constexpr int m = (1 << WBits) - 1;
      const Float codes = _mm256_setr_ps(0 & m, 1 & m, 2 & m, 3 & m, 4 & m, 5 & m, 6 & m, 7 & m);
      table = _mm256_fmadd_ps(codes, set1(*s), set1(*o));
    }
    Float operator()(Word word) const { return _mm256_permutevar8x32_ps(table, word); }
    Float table;
  };

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
struct Avx2::Dequantizer<1> : Avx2::Lookup<1> {
  using Lookup<1>::Lookup;
};
template <>
struct Avx2::Dequantizer<2> : Avx2::Lookup<2> {
  using Lookup<2>::Lookup;
};

}  // namespace mpq::detail::cpu

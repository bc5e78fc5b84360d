#pragma once
// Vectors of 4 floats in the compilers' own extension, for kernels.hpp: SSE2, NEON or whatever
// every processor of the target has.

#include <cstdint>
#include <cstring>

#include "mpq/types.hpp"

namespace mpq::detail::cpu {

struct Portable {
  using Float = float __attribute__((vector_size(16)));
  using Word = std::uint32_t __attribute__((vector_size(16)));
  using SignedWord = std::int32_t __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int kChannels = 2;  ///< decoded together, as registers allow
  using Floats = Float[kChannels];
  using Words = Word[kChannels];
  template <int WBits>
  struct Dequantizer;
  template <int WBits>
  using Dequantizers = Dequantizer<WBits>[kChannels];
  static constexpr int kDecodeRows = 4;  ///< up to here weights stay in registers: measured
  static constexpr int kRows = 2;
  static constexpr int kPrefetchWords = 0;

  static Float set1(float value) { return Float{value, value, value, value}; }
  static Float load(const float* from) {
    Float value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  static void store(float* to, Float value) { std::memcpy(to, &value, sizeof(value)); }
  static Float add(Float a, Float b) { return a + b; }
  static Float mul(Float a, Float b) { return a * b; }
  /// Rounded once or twice, as the processor has it.
  static Float fma(Float a, Float b, Float c) { return a * b + c; }
  static Float negate(Float a) { return -a; }
  static float sum(Float a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  template <int Stride>
  static Float gather(const float* from, const std::int32_t* index) {
    Float value{};
    for (int i = 0; i < kLanes; ++i) value[i] = from[std::int64_t{index[i]} * Stride];
    return value;
  }

  static Word load_words(const std::uint32_t* from) {
    Word words;
    std::memcpy(&words, from, sizeof(words));
    return words;
  }
  static void prefetch(const std::uint32_t*) {}
  template <int Bits>
  static Word shift_right(Word word) {
    return word >> Bits;
  }
  template <int WBits>
  static Float code(Word word) {
    // Signed, since SSE2 converts nothing else.
    const auto masked = reinterpret_cast<SignedWord>(word & ((1u << WBits) - 1));
    return __builtin_convertvector(masked, Float);
  }

  static Float load_16bit(const std::uint16_t* from, DType dtype) {
    Float value{};
    for (int i = 0; i < kLanes; ++i) value[i] = to_float(from[i], dtype);
    return value;
  }
  static Float load_u16(const std::uint16_t* from) {
    Float value{};
    for (int i = 0; i < kLanes; ++i) value[i] = static_cast<float>(from[i]);
    return value;
  }
  static std::uint16_t to_16bit(float value, DType dtype) { return from_float(value, dtype); }

  /// Weights of a group.
  template <int WBits>
  struct Dequantizer {
    Dequantizer() = default;
    Dequantizer(const float* s, const float* o) : scale(set1(*s)), offset(set1(*o)) {}
    Float operator()(Word word) const { return fma(code<WBits>(word), scale, offset); }
    Float scale, offset;
  };
};

}  // namespace mpq::detail::cpu

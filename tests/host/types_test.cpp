// The 16-bit conversions, over all of their values.

#include "mpq/types.hpp"

#include <bit>
#include <cmath>
#include <limits>

#include "support/catch.hpp"
#include "support/random.hpp"

namespace mpq::test {
namespace {

// By the definition of the formats (IEEE 754 binary16; bfloat16), in float64.
double value_of(std::uint16_t bits, int mantissa_bits, int bias) {
  const int exponent = (bits & 0x7fff) >> mantissa_bits;
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == (0x7fff >> mantissa_bits)) {
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  }
  const int significand = mantissa + (exponent != 0 ? 1 << mantissa_bits : 0);
  return sign * std::ldexp(significand, std::max(exponent, 1) - bias - mantissa_bits);
}

bool same(double a, double b) {
  return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b);
}

TEST_CASE("every 16-bit float converts to its value and back") {
  int wrong = 0;
  for (int i = 0; i < 0x10000; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    const float f16 = f16_to_float(bits), bf16 = bf16_to_float(bits);
    wrong += !same(f16, value_of(bits, 10, 15));
    wrong += !same(bf16, value_of(bits, 7, 127));
    if (std::isnan(f16)) {
      wrong += !std::isnan(f16_to_float(float_to_f16(f16)));
    } else {
      wrong += float_to_f16(f16) != bits;
    }
    if (std::isnan(bf16)) {
      wrong += !std::isnan(bf16_to_float(float_to_bf16(bf16)));
    } else {
      wrong += float_to_bf16(bf16) != bits;
    }
  }
  CHECK(wrong == 0);
}

// Between two neighbours a and b of the same sign: the middle goes to the even one, what is beside
// it to the nearer.
TEST_CASE("floats round to the nearest 16-bit float, ties to even") {
  int wrong = 0;
  for (const DType dtype : {DType::f16, DType::bf16}) {
    const int infinity = dtype == DType::f16 ? 0x7c00 : 0x7f80;
    for (int i = 0; i < infinity; ++i) {
      for (const int sign : {0, 0x8000}) {
        const auto low = static_cast<std::uint16_t>(i | sign);
        const auto high = static_cast<std::uint16_t>((i + 1) | sign);
        const double below = to_float(low, dtype);
        // What follows the largest finite value stands for the power of two that it would be.
        const double above =
            i + 1 < infinity ? to_float(high, dtype) : below + (below - to_float(low - 1, dtype));
        const auto middle = static_cast<float>((below + above) / 2);
        wrong += from_float(middle, dtype) != (i % 2 == 0 ? low : high);
        wrong += from_float(std::nextafter(middle, static_cast<float>(below)), dtype) != low;
        const float beyond = sign != 0 ? -std::numeric_limits<float>::infinity()
                                       : std::numeric_limits<float>::infinity();
        wrong += from_float(std::nextafter(middle, beyond), dtype) != high;
      }
    }
  }
  CHECK(wrong == 0);
  CHECK(float_to_f16(1e10f) == 0x7c00);
  CHECK(float_to_f16(-std::numeric_limits<float>::infinity()) == 0xfc00);
  CHECK(float_to_f16(1e-10f) == 0);
  CHECK(float_to_f16(-1e-10f) == 0x8000);
}

#ifdef __FLT16_MAX__
TEST_CASE("f16 agrees with the compiler's own type") {
  int wrong = 0;
  for (int i = 0; i < 0x10000; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    const auto theirs = static_cast<float>(std::bit_cast<_Float16>(bits));
    wrong += !same(theirs, f16_to_float(bits));
  }
  Random random(7);
  for (int i = 0; i < 2'000'000; ++i) {
    const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(random.bits()));
    if (std::isnan(value)) continue;
    wrong += std::bit_cast<std::uint16_t>(static_cast<_Float16>(value)) != float_to_f16(value);
  }
  CHECK(wrong == 0);
}
#endif

TEST_CASE("ceil_div and round_up") {
  STATIC_REQUIRE(ceil_div(0, 4) == 0);
  STATIC_REQUIRE(ceil_div(1, 4) == 1);
  STATIC_REQUIRE(ceil_div(4, 4) == 1);
  STATIC_REQUIRE(round_up(5, 4) == 8);
  STATIC_REQUIRE(round_up(8, 4) == 8);
}

}  // namespace
}  // namespace mpq::test

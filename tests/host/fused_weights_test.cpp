// For which layers one multiply-add makes a weight.

#include "mpq/kernels/fused_weights.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>

#include "mpq/types.hpp"
#include "support/catch.hpp"

namespace mpq::test {
namespace {

using kernels::fused_scale_limit, kernels::fused_shift;

std::uint16_t bits_of_power(int exponent, DType dtype) {
  return static_cast<std::uint16_t>(kernels::pair_of_power(exponent, dtype));
}

TEST_CASE("codes at their places are what fused_code_exponent says") {
  for (const DType dtype : {DType::f16, DType::bf16}) {
    for (const int bits : {1, 2, 4, 8}) {
      for (int place = 0; place < kernels::fused_places(bits); ++place) {
        const int bit = kernels::fused_code_bit(bits, dtype) + place * bits;
        const float one = std::ldexp(1.f, kernels::fused_code_exponent(bits, dtype, place));
        for (unsigned code = 0; code < 1u << bits; ++code) {
          const float value = to_float(static_cast<std::uint16_t>(code << bit), dtype);
          REQUIRE(value == one * static_cast<float>(code));
        }
      }
    }
  }
}

TEST_CASE("scales are lowered as far as the largest needs") {
  CHECK(fused_scale_limit(1, DType::f16) == bits_of_power(5, DType::f16));
  CHECK(fused_scale_limit(2, DType::f16) == bits_of_power(-1, DType::f16));
  CHECK(fused_scale_limit(4, DType::f16) == bits_of_power(-5, DType::f16));
  CHECK(fused_scale_limit(8, DType::f16) == bits_of_power(-8, DType::f16));
  for (const DType dtype : {DType::f16, DType::bf16}) {
    for (const int bits : {1, 2, 4, 8}) {
      const std::uint32_t limit = fused_scale_limit(bits, dtype);
      const int mantissa = kernels::mantissa_bits(dtype);
      const std::uint32_t infinity = dtype == DType::f16 ? 0x7c00 : 0x7f80;
      CHECK(fused_shift(bits, dtype, limit - 1, 1) == 0);
      CHECK(fused_shift(bits, dtype, limit, limit) == 1);
      CHECK(fused_shift(bits, dtype, limit + (3u << mantissa), limit) == 4);
      CHECK(fused_shift(bits, dtype, infinity, limit) == std::nullopt);
      CHECK(fused_shift(bits, dtype, 0, 0xffff) == 0);  // no scales but 0
      // Lowered by one power of two the least normal number is subnormal.
      CHECK(fused_shift(bits, dtype, limit, 1u << mantissa) == std::nullopt);
      CHECK(fused_shift(bits, dtype, limit, 2u << mantissa) == 1);
      // Whatever the scales are, what they are multiplied by first is a normal number.
      const std::uint32_t largest =
          std::min(infinity - 1,
                   limit + (static_cast<std::uint32_t>(kernels::kMostFusedShift - 1) << mantissa));
      const std::optional<int> most = fused_shift(bits, dtype, largest, largest);
      REQUIRE(most.has_value());
      const auto multiplier =
          static_cast<std::uint16_t>(kernels::fused_multiplier(bits, dtype, *most));
      CHECK(std::isnormal(to_float(multiplier, dtype)));
      CHECK(std::isfinite(std::ldexp(1.f, *most)));
    }
  }
}

TEST_CASE("zeros become what codes at the first place are, or are lowered like scales") {
  const auto value = [](std::uint32_t pair, DType dtype) {
    return to_float(static_cast<std::uint16_t>(pair), dtype);
  };
  for (const DType dtype : {DType::f16, DType::bf16}) {
    for (const int bits : {1, 2, 4, 8}) {
      const float one = std::ldexp(1.f, kernels::fused_code_exponent(bits, dtype, 0));
      const auto codes = kernels::fused_factors(bits, dtype, 0, /*affine=*/false);
      CHECK_FALSE(codes.zeros_are_affine);
      for (unsigned zero = 0; zero <= 1u << bits; ++zero) {
        const float stored = to_float(static_cast<std::uint16_t>(zero), dtype);
        REQUIRE(stored * value(codes.zero, dtype) == one * static_cast<float>(zero));
      }
      for (const int shift : {0, 1, kernels::most_affine_shift(dtype)}) {
        const auto affine = kernels::fused_factors(bits, dtype, shift, /*affine=*/true);
        CHECK(affine.zeros_are_affine);
        CHECK(value(affine.zero, dtype) == std::ldexp(1.f, -shift));
        CHECK(affine.scale == kernels::fused_multiplier(bits, dtype, shift));
      }
    }
  }
}

}  // namespace
}  // namespace mpq::test

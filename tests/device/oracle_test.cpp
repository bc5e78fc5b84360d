// Oracles that need no tolerance: one-hot rows read weights back, integers make every sum exact.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/reference.hpp"
#include "support/run_linear.hpp"

namespace mpq::test {
namespace {

struct Shape {
  std::int64_t k, n;
  int group_size;
};
constexpr std::array kShapes{Shape{300, 130, 128}, Shape{512, 64, 32}, Shape{256, 100, -1},
                             Shape{200, 70, 100},  Shape{77, 33, 7},   Shape{1024, 65, 512}};

TEST_CASE("one-hot rows read every weight back") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto dtype = GENERATE(DType::f16, DType::bf16);
  const auto zeros = GENERATE(ZeroKind::none, ZeroKind::integer, ZeroKind::affine);
  std::uint64_t seed = 100;
  for (const Shape& shape : kShapes) {
    for (const bool act_order : {false, true}) {
      const WeightsSpec spec{.bits = bits,
                             .k = shape.k,
                             .n = shape.n,
                             .group_size = shape.group_size,
                             .zero_kind = zeros,
                             .scale_dtype = ++seed % 3 == 0 ? DType::bf16 : DType::f16,
                             .narrow_zeros = seed / 2 % 2 == 0,
                             .act_order = act_order,
                             .seed = seed};
      const auto weights = random_weights(spec);
      const auto x = one_hot_rows(shape.k, dtype);
      const AnyLinear linear = prepared(weights, dtype);
      for (const int kernel : usable_kernels(weights)) {
        const KernelConfig& config = kKernelTable[static_cast<std::size_t>(kernel)];
        INFO(fmt::format("w{} {} zeros {} group {} act-order {} K {} N {} {}", bits,
                         to_string(dtype), to_string(zeros), shape.group_size, act_order, shape.k,
                         shape.n, to_string(config)));
        const auto y = run_linear(linear, x, {.m = shape.k, .options = {.kernel = kernel}});
        const bool narrow = spec.narrow_zeros && spec.scale_dtype == dtype;
        if (const auto mismatch = find_weight_mismatch(weights, y, dtype, config, narrow)) {
          FAIL_CHECK(*mismatch);
        }
      }
    }
  }
}

TEST_CASE("integers add up exactly in every kernel") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto dtype = GENERATE(DType::f16, DType::bf16);
  const auto zeros = GENERATE(ZeroKind::none, ZeroKind::integer, ZeroKind::affine);
  std::uint64_t seed = 200;
  for (const Shape& shape : kShapes) {
    for (const bool act_order : {false, true}) {
      const WeightsSpec spec{.bits = bits,
                             .k = shape.k,
                             .n = shape.n,
                             .group_size = shape.group_size,
                             .zero_kind = zeros,
                             .act_order = act_order,
                             .bias = true,
                             .exact = true,
                             .seed = ++seed};
      const auto weights = random_weights(spec);
      constexpr std::int64_t kRows = 70;
      const auto x = random_activations(kRows, shape.k, dtype, seed, /*exact=*/true);
      const auto expected =
          rounded(reference_forward(weights, view(x, dtype, kRows, shape.k)), dtype);
      const AnyLinear linear = prepared(weights, dtype);
      // The prefill kernels round weights to the activations' type; of these integers only 8 bits
      // times a scale plus b do not fit bf16's 8 significant bits.
      const bool weights_fit = dtype == DType::f16 || bits < 8 || zeros != ZeroKind::affine;
      for (const int kernel : usable_kernels(weights)) {
        const KernelConfig& config = kKernelTable[static_cast<std::size_t>(kernel)];
        if (config.family == KernelFamily::prefill && !weights_fit) continue;
        INFO(fmt::format("w{} {} zeros {} group {} act-order {} K {} N {} {}", bits,
                         to_string(dtype), to_string(zeros), shape.group_size, act_order, shape.k,
                         shape.n, to_string(config)));
        CHECK(run_linear(linear, x, {.m = kRows, .options = {.kernel = kernel}}) == expected);
      }
    }
  }
}

// Kernels for few rows multiply codes of 4 bits and fewer and integer zeros apart, those of prefill
// with up to 256 added to a code. Where all weights of a channel are zero, what is left of that is
// the rounding of two float32 sums; of sums of digits, which are integers, nothing.
TEST_CASE("weights that are zero leave next to nothing", "[small]") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto dtype = GENERATE(DType::f16, DType::bf16);
  constexpr std::int64_t kK = 640, kN = 70, kRows = 9;
  auto weights = random_weights({.bits = bits, .k = kK, .n = kN, .seed = 41});
  WeightsData& data = data_of(weights);
  const std::uint32_t code = (1u << bits) / 2;
  std::uint32_t word = 0;
  for (int shift = 0; shift < 32; shift += bits) word |= code << shift;
  std::fill(data.qweight.begin(), data.qweight.end(), word);
  std::fill(data.zeros.begin(), data.zeros.end(), static_cast<std::uint16_t>(code));
  const AnyLinear linear = prepared(weights, dtype);
  const auto x = random_activations(kRows, kK, dtype, 42);
  const float scale = 1.f / 32;  // the largest that random_weights makes
  for (const int kernel : usable_kernels(weights)) {
    const KernelConfig& config = kKernelTable[static_cast<std::size_t>(kernel)];
    INFO(fmt::format("w{} {} {}", bits, to_string(dtype), to_string(config)));
    const bool raised = multiplies_raised_codes(config, bits);
    const bool rounds =
        raised || (bits < 8 && config.family == KernelFamily::decode && config.tile_m > 2);
    const auto y = run_linear(linear, x, {.m = kRows, .options = {.kernel = kernel}});
    for (std::int64_t row = 0; row < kRows; ++row) {
      float sum = 0;
      for (std::int64_t k = 0; k < kK; ++k) {
        sum += std::fabs(to_float(x[static_cast<std::size_t>(row * kK + k)], dtype));
      }
      const float bound = rounds ? 0x1p-20f * std::ldexp(scale * sum, raised ? 8 : bits) : 0;
      float most = 0;
      for (std::int64_t n = 0; n < kN; ++n) {
        const float value = to_float(y[static_cast<std::size_t>(row * kN + n)], dtype);
        most = std::isnan(value) ? INFINITY : std::max(most, std::fabs(value));
      }
      CHECK(most <= bound);
    }
  }
}

TEST_CASE("a row of x that is not finite gives no number, and only in its row", "[small]") {
  const auto dtype = GENERATE(DType::f16, DType::bf16);
  const auto bad =
      GENERATE(std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity());
  constexpr std::int64_t kK = 384, kN = 70, kRows = 2;
  const auto weights = random_weights({.bits = 4, .k = kK, .n = kN, .seed = 51});
  const AnyLinear linear = prepared(weights, dtype);
  auto x = random_activations(kRows, kK, dtype, 52);
  x[kK + 200] = from_float(bad, dtype);
  for (const int kernel : usable_kernels(weights)) {
    INFO(fmt::format("{} {}", to_string(dtype),
                     to_string(kKernelTable[static_cast<std::size_t>(kernel)])));
    const auto y = run_linear(linear, x, {.m = kRows, .options = {.kernel = kernel}});
    for (std::int64_t n = 0; n < kN; ++n) {
      CHECK(std::isfinite(to_float(y[static_cast<std::size_t>(n)], dtype)));
      CHECK_FALSE(std::isfinite(to_float(y[static_cast<std::size_t>(kN + n)], dtype)));
    }
  }
}

// Decode kernels multiply rows of x by powers of two on the way: nothing of that may be left in y.
TEST_CASE("a power of two on a row of x is the same on its row of y", "[small]") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto dtype = GENERATE(DType::f16, DType::bf16);
  const auto zeros = GENERATE(ZeroKind::integer, ZeroKind::affine);
  constexpr std::int64_t kK = 600, kN = 70;
  const std::vector<int> powers =
      dtype == DType::f16 ? std::vector{0, -12, -6, 5} : std::vector{0, -100, -40, 40, 100};
  const auto rows = static_cast<std::int64_t>(powers.size());
  const auto weights =
      random_weights({.bits = bits, .k = kK, .n = kN, .zero_kind = zeros, .seed = 31});
  const AnyLinear linear = prepared(weights, dtype);
  const auto same = random_activations(1, kK, dtype, 32, /*exact=*/true);
  std::vector<std::uint16_t> x;
  for (const int power : powers) {
    for (const std::uint16_t value : same) {
      x.push_back(from_float(std::ldexp(to_float(value, dtype), power), dtype));
    }
  }
  const float least = dtype == DType::f16 ? 0x1p-13f : 0x1p-120f;  // above subnormal numbers
  const float most = dtype == DType::f16 ? 0x1p15f : 0x1p120f;
  for (const int kernel : usable_kernels(weights)) {
    const KernelConfig& config = kKernelTable[static_cast<std::size_t>(kernel)];
    const bool decodes = config.family == KernelFamily::decode;
    if (is_slow() && !decodes && (kernel % 2 != 0) != (zeros == ZeroKind::affine)) continue;
    INFO(fmt::format("w{} {} zeros {} {}", bits, to_string(dtype), to_string(zeros),
                     to_string(config)));
    const auto y = run_linear(linear, x, {.m = rows, .options = {.kernel = kernel}});
    for (std::int64_t row = 1; row < rows; ++row) {
      for (std::int64_t n = 0; n < kN; ++n) {
        const float first = to_float(y[static_cast<std::size_t>(n)], dtype);
        const float expected = std::ldexp(first, powers[static_cast<std::size_t>(row)]);
        if (std::fabs(first) < least || std::fabs(expected) < least) continue;
        if (std::fabs(expected) > most) continue;
        CHECK(to_float(y[static_cast<std::size_t>(row * kN + n)], dtype) == expected);
      }
    }
  }
}

}  // namespace
}  // namespace mpq::test

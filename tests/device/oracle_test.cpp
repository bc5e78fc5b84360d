// Oracles that need no tolerance: one-hot rows read weights back, integers make every sum exact.

#include <fmt/format.h>

#include <array>

#include "mpq/pack.hpp"
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

AnyLinear prepared(const AnyQuantizedWeights& weights, DType dtype) {
  AnyLinear linear(weights, Device::cuda(), dtype);
  linear.prepare_params();
  return linear;
}

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
                             .act_order = act_order,
                             .seed = seed};
      const auto weights = random_weights(spec);
      const auto dense = dequantize(weights);
      std::vector<std::uint16_t> expected(dense.size());
      for (std::int64_t k = 0; k < shape.k; ++k) {
        for (std::int64_t n = 0; n < shape.n; ++n) {
          expected[static_cast<std::size_t>(k * shape.n + n)] =
              from_float(dense[static_cast<std::size_t>(n * shape.k + k)], dtype);
        }
      }
      std::vector<std::uint16_t> x(static_cast<std::size_t>(shape.k * shape.k), 0);
      for (std::int64_t k = 0; k < shape.k; ++k) {
        x[static_cast<std::size_t>(k * shape.k + k)] = from_float(1.f, dtype);
      }
      const AnyLinear linear = prepared(weights, dtype);
      for (const int kernel : usable_kernels()) {
        INFO(fmt::format("w{} {} zeros {} group {} act-order {} K {} N {} {}", bits,
                         to_string(dtype), to_string(zeros), shape.group_size, act_order, shape.k,
                         shape.n, to_string(kKernelTable[static_cast<std::size_t>(kernel)])));
        CHECK(run_linear(linear, x, {.m = shape.k, .options = {.kernel = kernel}}) == expected);
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
      const Reference reference = reference_forward(weights, view(x, dtype, kRows, shape.k));
      std::vector<std::uint16_t> expected;
      for (const double y : reference.y)
        expected.push_back(from_float(static_cast<float>(y), dtype));
      const AnyLinear linear = prepared(weights, dtype);
      // The prefill kernels round weights to the activations' type; of these integers only 8 bits
      // times a scale plus b do not fit bf16's 8 significant bits.
      const bool weights_fit = dtype == DType::f16 || bits < 8 || zeros != ZeroKind::affine;
      for (const int kernel : usable_kernels()) {
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

}  // namespace
}  // namespace mpq::test

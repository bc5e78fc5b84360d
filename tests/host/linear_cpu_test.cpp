// Linear on the CPU: right for every kind of layer, by a bound and by two oracles that need none.

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <limits>

#include "mpq/pack.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/reference.hpp"
#include "support/run_linear.hpp"

namespace mpq::test {
namespace {

constexpr std::array<std::int64_t, 12> kBatches{0, 1, 2, 7, 8, 9, 16, 17, 33, 64, 100, 257};
constexpr std::array kGroupSizes{-1, 1, 7, 32, 64, 100, 128};
constexpr std::array<std::int64_t, 8> kAwkwardK{1, 7, 33, 100, 192, 257, 512, 700};
constexpr std::array<std::int64_t, 8> kAwkwardN{1, 5, 16, 63, 65, 30, 17, 40};

AnyLinear prepared(const AnyQuantizedWeights& weights, DType dtype) {
  AnyLinear linear(weights, Device::cpu(), dtype);
  linear.check_parameters();
  linear.prepare_params();
  return linear;
}

std::string describe(const WeightsSpec& s, DType dtype) {
  return fmt::format("w{} {} zeros {} group {} act-order {} K {} N {} scales {} bias {}", s.bits,
                     to_string(dtype), to_string(s.zero_kind), s.group_size, s.act_order, s.k, s.n,
                     to_string(s.scale_dtype), s.bias);
}

TEST_CASE("the CPU is right for every kind of layer") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto dtype = GENERATE(DType::f16, DType::bf16);
  auto seed = static_cast<std::uint64_t>(bits);
  for (const auto zeros : {ZeroKind::none, ZeroKind::integer, ZeroKind::affine}) {
    for (const int group_size : kGroupSizes) {
      for (const bool act_order : {false, true}) {
        ++seed;
        if (MPQ_TESTS_SANITIZED && (seed % 2 == 0) != (dtype == DType::f16)) continue;
        const WeightsSpec spec{.bits = bits,
                               .k = kAwkwardK[seed * 7 % kAwkwardK.size()],
                               .n = kAwkwardN[seed * 5 % kAwkwardN.size()],
                               .group_size = group_size,
                               .zero_kind = zeros,
                               .scale_dtype = seed % 3 == 0 ? DType::bf16 : DType::f16,
                               .act_order = act_order,
                               .bias = seed % 2 == 0,
                               .seed = seed};
        const auto weights = random_weights(spec);
        const AnyLinear linear = prepared(weights, dtype);
        const auto x = random_activations(kBatches.back(), spec.k, dtype, seed);
        Reference reference = reference_forward(weights, view(x, dtype, kBatches.back(), spec.k));
        for (const std::int64_t m : kBatches) {
          RunSpec run{.m = m};
          // Rows with nothing aligned but the elements, and with leading dimensions of their own.
          if ((seed + static_cast<std::uint64_t>(m)) % 2 == 0) {
            run.x_padding = 3, run.y_padding = 5, run.x_offset = 1, run.y_offset = 3;
          }
          const auto y = run_linear(linear, x, run);
          reference.rows = m;
          const auto mismatch = find_mismatch(reference, view(y, dtype, m, spec.n), false);
          if (mismatch) FAIL_CHECK(describe(spec, dtype) << " m " << m << ": " << *mismatch);
        }
      }
    }
  }
}

TEST_CASE("the CPU is right on a layer of real size") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto dtype = bits == 2 ? DType::bf16 : DType::f16;
  const auto weights = random_weights({.bits = bits, .k = 4096, .n = 515, .seed = 3});
  const AnyLinear linear = prepared(weights, dtype);
  const auto x = random_activations(70, 4096, dtype, 4);
  Reference reference = reference_forward(weights, view(x, dtype, 70, 4096));
  for (const std::int64_t m : {1, 3, 4, 6, 70}) {
    reference.rows = m;
    const auto y = run_linear(linear, x, {.m = m});
    const auto mismatch = find_mismatch(reference, view(y, dtype, m, 515), false);
    if (mismatch) FAIL_CHECK("w" << bits << " m " << m << ": " << *mismatch);
  }
}

struct Shape {
  std::int64_t k, n;
  int group_size;
};
constexpr std::array kShapes{Shape{300, 70, 128}, Shape{512, 64, 32}, Shape{256, 35, -1},
                             Shape{200, 40, 100}, Shape{77, 33, 7},   Shape{1024, 17, 512}};

TEST_CASE("one-hot rows read every weight back from the CPU") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto dtype = GENERATE(DType::f16, DType::bf16);
  const auto zeros = GENERATE(ZeroKind::none, ZeroKind::integer, ZeroKind::affine);
  std::uint64_t seed = 100;
  for (const Shape& shape : kShapes) {
    for (const bool act_order : {false, true}) {
      ++seed;
      if (MPQ_TESTS_SANITIZED && (seed % 2 == 0) != (dtype == DType::f16)) continue;
      const WeightsSpec spec{.bits = bits,
                             .k = shape.k,
                             .n = shape.n,
                             .group_size = shape.group_size,
                             .zero_kind = zeros,
                             .scale_dtype = seed % 3 == 0 ? DType::bf16 : DType::f16,
                             .act_order = act_order,
                             .bias = seed % 4 == 0,
                             .seed = seed};
      const auto weights = random_weights(spec);
      const auto& bias = data_of(weights).bias;
      const auto dense = dequantize(weights);
      std::vector<std::uint16_t> expected(dense.size());
      for (std::int64_t k = 0; k < shape.k; ++k) {
        for (std::int64_t n = 0; n < shape.n; ++n) {
          float w = dense[static_cast<std::size_t>(n * shape.k + k)];
          if (spec.bias) w += bias[static_cast<std::size_t>(n)];
          expected[static_cast<std::size_t>(k * shape.n + n)] = from_float(w, dtype);
        }
      }
      std::vector<std::uint16_t> x(static_cast<std::size_t>(shape.k * shape.k), 0);
      for (std::int64_t k = 0; k < shape.k; ++k) {
        x[static_cast<std::size_t>(k * shape.k + k)] = from_float(1.f, dtype);
      }
      INFO(describe(spec, dtype));
      const AnyLinear linear = prepared(weights, dtype);
      CHECK(run_linear(linear, x, {.m = shape.k}) == expected);
      // Decode has kernels of its own.
      for (const std::int64_t m : {1, 2, 3, 4}) {
        const std::int64_t row = (shape.k - m) / 2;
        const std::vector<std::uint16_t> some_x(x.begin() + row * shape.k, x.end());
        const std::vector<std::uint16_t> some_y(expected.begin() + row * shape.n,
                                                expected.begin() + (row + m) * shape.n);
        CHECK(run_linear(linear, some_x, {.m = m}) == some_y);
      }
    }
  }
}

TEST_CASE("integers add up exactly on the CPU") {
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
      for (const double y : reference.y) {
        expected.push_back(from_float(static_cast<float>(y), dtype));
      }
      INFO(describe(spec, dtype));
      const AnyLinear linear = prepared(weights, dtype);
      for (const std::int64_t m : {1, 2, 3, 4, 11, 70}) {
        const std::vector<std::uint16_t> rows(expected.begin(), expected.begin() + m * shape.n);
        CHECK(run_linear(linear, x, {.m = m}) == rows);
      }
    }
  }
}

TEST_CASE("weights that are all zero give exactly the bias") {
  const auto bits = GENERATE(1, 2, 4, 8);
  auto weights = random_weights({.bits = bits, .k = 640, .n = 9, .group_size = 64, .bias = true});
  WeightsData& data = data_of(weights);
  const int zero = (1 << bits) - 1;
  data.zeros.assign(data.zeros.size(), static_cast<std::uint16_t>(zero));
  data.qweight.assign(data.qweight.size(), 0xffffffffu);
  const AnyLinear linear = prepared(weights, DType::f16);
  for (const std::int64_t m : {1, 9}) {
    const auto y = run_linear(linear, random_activations(m, 640, DType::f16, 9), {.m = m});
    for (std::size_t i = 0; i < y.size(); ++i) CHECK(y[i] == float_to_f16(data.bias[i % 9]));
  }
}

TEST_CASE("infinities and NaN in x reach y as arithmetic has it") {
  const auto dtype = GENERATE(DType::f16, DType::bf16);
  const auto weights = random_weights(
      {.k = 200, .n = 21, .group_size = 32, .zero_kind = ZeroKind::affine, .seed = 8});
  const AnyLinear linear = prepared(weights, dtype);
  for (const std::int64_t m : {4, 6}) {
    auto x = random_activations(m, 200, dtype, 10);
    x[0 * 200 + 17] = from_float(std::numeric_limits<float>::infinity(), dtype);
    x[1 * 200 + 199] = from_float(std::numeric_limits<float>::quiet_NaN(), dtype);
    x[2 * 200 + 3] = from_float(std::numeric_limits<float>::infinity(), dtype);
    x[2 * 200 + 4] = from_float(std::numeric_limits<float>::infinity(), dtype);
    const auto y = run_linear(linear, x, {.m = m});
    const Reference reference = reference_forward(weights, view(x, dtype, m, 200));
    CHECK(find_mismatch(reference, view(y, dtype, m, 21), false) == std::nullopt);
  }
}

TEST_CASE("double-quantised statistics compute as their decompressed form") {
  const auto kind = GENERATE(DoubleQuantized::Kind::scale_and_zero, DoubleQuantized::Kind::scale);
  const bool with_zeros = kind == DoubleQuantized::Kind::scale_and_zero;
  auto weights = random_weights({.k = 256,
                                 .n = 32,
                                 .group_size = 32,
                                 .zero_kind = with_zeros ? ZeroKind::affine : ZeroKind::integer});
  WeightsData& data = data_of(weights);
  Random random(12);
  DoubleQuantized dq;
  dq.kind = kind;
  dq.dq_group_size = 8;
  dq.codes.resize(8 * 32);
  for (auto& code : dq.codes) code = static_cast<std::uint8_t>(random.integer(0, 255));
  const auto fill = [&](std::vector<std::uint16_t>& values) {
    values.resize(8 * 4);
    for (auto& v : values) v = float_to_f16(static_cast<float>(random.uniform() * 0.1 + 0.01));
  };
  fill(dq.scale_scales);
  fill(dq.scale_zeros);
  if (with_zeros) fill(dq.zero_scales);
  if (with_zeros) fill(dq.zero_zeros);
  data.double_quantized = dq;
  data.scales.clear();
  data.affine_zeros.clear();
  auto plain = weights;
  decompress(data_of(plain));
  const auto x = random_activations(5, 256, DType::f16, 13);
  for (const std::int64_t m : {1, 5}) {
    CHECK(run_linear(prepared(weights, DType::f16), x, {.m = m}) ==
          run_linear(prepared(plain, DType::f16), x, {.m = m}));
  }
}

}  // namespace
}  // namespace mpq::test

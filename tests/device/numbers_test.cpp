// Parameters are taken for what they are as numbers, whatever they are stored as.

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "mpq/error.hpp"
#include "mpq/plan.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/reference.hpp"
#include "support/run_linear.hpp"

namespace mpq::test {
namespace {

constexpr std::int64_t kN = 70, kRows = 5;
std::int64_t columns() {
  return is_slow() ? 160 : 320;
}

/// The same numbers with affine zeros.
AnyQuantizedWeights with_affine_zeros(AnyQuantizedWeights weights) {
  WeightsData& data = data_of(weights);
  data.affine_zeros.resize(data.zeros.size());
  for (std::size_t i = 0; i < data.zeros.size(); ++i) {
    data.affine_zeros[i] = -to_float(data.scales[i], data.dtype) * data.zeros[i];
  }
  data.zeros.clear();
  data.zero_kind = ZeroKind::affine;
  return weights;
}

/// The same numbers, which must be of both types, with scales of type `dtype`.
AnyQuantizedWeights with_scales_of(AnyQuantizedWeights weights, DType dtype) {
  WeightsData& data = data_of(weights);
  for (auto& scale : data.scales) scale = from_float(to_float(scale, data.dtype), dtype);
  data.dtype = dtype;
  return weights;
}

void check_same(const AnyQuantizedWeights& weights, const AnyLinear& a, const AnyLinear& b,
                DType dtype) {
  CHECK(a.zeros().element == b.zeros().element);
  CHECK(a.scales().shape == b.scales().shape);
  const auto x = random_activations(kRows, columns(), dtype, 7);
  for (const int kernel : usable_kernels(weights)) {
    if (is_slow() && kernel % 8 != 5) continue;
    INFO(to_string(kKernelTable[static_cast<std::size_t>(kernel)]));
    const RunSpec spec{.m = kRows, .options = {.kernel = kernel}};
    CHECK(run_linear(a, x, spec) == run_linear(b, x, spec));
  }
  for (const std::int64_t m : {1, 2, 5}) {
    CHECK(a.describe(m) == b.describe(m));
  }
}

/// Every weight, rounded, from a kernel. x: one-hot rows; narrow_zeros: of find_weight_mismatch.
void check_kernel(const AnyQuantizedWeights& weights, const AnyLinear& linear,
                  const std::vector<std::uint16_t>& x, int kernel, bool narrow_zeros) {
  const KernelConfig& config = kKernelTable[static_cast<std::size_t>(kernel)];
  const DType dtype = linear.config().dtype;
  const auto y = run_linear(linear, x, {.m = columns(), .options = {.kernel = kernel}});
  if (const auto mismatch = find_weight_mismatch(weights, y, dtype, config, narrow_zeros)) {
    FAIL_CHECK(to_string(config) << ": " << *mismatch);
  }
}

/// From every kernel.
void check_weights(const AnyQuantizedWeights& weights, DType dtype, bool narrow_zeros) {
  const AnyLinear linear = prepared(weights, dtype);
  const auto x = one_hot_rows(columns(), dtype);
  for (const int kernel : usable_kernels(weights)) {
    if (!is_slow() || kernel % 8 == 0) check_kernel(weights, linear, x, kernel, narrow_zeros);
  }
}

TEST_CASE("affine zeros that are integers are integer zeros", "[small]") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto dtype = GENERATE(DType::f16, DType::bf16);
  INFO(fmt::format("w{} {}", bits, to_string(dtype)));
  auto integers = random_weights(
      {.bits = bits, .k = columns(), .n = kN, .group_size = 64, .scale_dtype = dtype, .seed = 61});
  WeightsData& data = data_of(integers);
  data.scales[3] = 0;  // which has no zero
  data.zeros[3] = 0;
  data.scales[4] ^= 0x8000;
  const auto affine = with_affine_zeros(integers);
  check_same(integers, prepared(integers, dtype), prepared(affine, dtype), dtype);

  SECTION("but for one that is not") {
    auto other = affine;
    float& zero = data_of(other).affine_zeros[100];
    zero = std::nextafter(zero, 1.f);
    CHECK(prepared(other, dtype).zeros().element == ElementType::f32);
    check_weights(other, dtype, false);
  }
  SECTION("but for one beyond the codes") {
    auto other = affine;
    data_of(other).affine_zeros[100] =
        -to_float(data.scales[100], dtype) * static_cast<float>((1 << bits) + 1);
    CHECK(prepared(other, dtype).zeros().element == ElementType::f32);
    check_weights(other, dtype, false);
  }
}

TEST_CASE("scales of the other type that are numbers of this one are of this one", "[small]") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto dtype = GENERATE(DType::f16, DType::bf16);
  const auto zeros = GENERATE(ZeroKind::none, ZeroKind::integer, ZeroKind::affine);
  INFO(fmt::format("w{} {} zeros {}", bits, to_string(dtype), to_string(zeros)));
  const auto stored = random_weights({.bits = bits,
                                      .k = columns(),
                                      .n = kN,
                                      .group_size = 64,
                                      .zero_kind = zeros,
                                      .scale_dtype = DType::bf16,
                                      .narrow_zeros = true,
                                      .seed = 62});
  const auto other = dtype == DType::f16 ? DType::bf16 : DType::f16;
  const auto a = with_scales_of(stored, dtype), b = with_scales_of(stored, other);
  check_same(a, prepared(a, dtype), prepared(b, dtype), dtype);

  SECTION("but for one that is not") {
    auto with_one = b;
    // In float16 a scale of so many bits would be subnormal; the other is too long for bfloat16.
    data_of(with_one).scales[50] =
        from_float(other == DType::bf16 ? 0x1.02p-20f : 0x1.004p-6f, other);
    if (zeros == ZeroKind::affine) data_of(with_one).affine_zeros[50] = 0;
    check_weights(with_one, dtype, false);
  }
}

TEST_CASE("affine zeros of 16 bits stay that, and make exact weights", "[small]") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto dtype = GENERATE(DType::f16, DType::bf16);
  INFO(fmt::format("w{} {}", bits, to_string(dtype)));
  const WeightsSpec spec{.bits = bits,
                         .k = columns(),
                         .n = kN,
                         .group_size = 32,
                         .zero_kind = ZeroKind::affine,
                         .scale_dtype = dtype,
                         .narrow_zeros = true,
                         .seed = 63};
  const auto is_narrow = [&](const AnyQuantizedWeights& weights) {
    return prepared(weights, dtype).zeros().element == ElementType::u16 ||
           !reads_narrow_zeros(bits);
  };
  SECTION("as they are") {
    const auto weights = random_weights(spec);
    CHECK(is_narrow(weights));
    check_weights(weights, dtype, true);
  }
  SECTION("where scales have to be lowered") {
    auto weights = random_weights(spec);
    for (auto& scale : data_of(weights).scales) {
      scale = from_float(32 * to_float(scale, dtype), dtype);
    }
    for (auto& zero : data_of(weights).affine_zeros) zero *= 32;
    CHECK(is_narrow(weights));
    check_weights(weights, dtype, true);
  }
  SECTION("where a zero is too small for that") {
    auto weights = random_weights(spec);
    for (auto& scale : data_of(weights).scales) scale = from_float(1.5f, dtype);
    data_of(weights).affine_zeros[70] = dtype == DType::f16 ? 0x1p-20f : 0x1p-122f;
    if (bits == 4) CHECK_FALSE(is_narrow(weights));
    check_weights(weights, dtype, false);
  }
  SECTION("where one is infinite") {
    auto weights = random_weights(spec);
    data_of(weights).affine_zeros[70] = INFINITY;
    const AnyLinear linear = prepared(weights, dtype);
    const auto x = random_activations(kRows, columns(), dtype, 8);
    const auto y = run_linear(linear, x, {.m = kRows});
    CHECK_FALSE(std::isfinite(to_float(y[0], dtype)));  // group 1 of channel 0
    CHECK(std::isfinite(to_float(y[1], dtype)));
  }
}

TEST_CASE("scales too large for general weights are for other kernels", "[small]") {
  const auto bits = GENERATE(2, 4, 8);
  const auto large = GENERATE(127.875f, 128.f, INFINITY);
  INFO(fmt::format("w{} {}", bits, large));
  auto weights = random_weights(
      {.bits = bits, .k = columns(), .n = kN, .group_size = 64, .zero_kind = ZeroKind::affine});
  data_of(weights).scales[100] = from_float(large, DType::f16);
  const AnyLinear linear = prepared(weights, DType::f16);
  const bool other = runs_sm90a_code(traits_of(Device::cuda())) && large >= 128;
  const auto x = one_hot_rows(columns(), DType::f16);
  for (const int kernel : usable_kernels(weights)) {
    if (is_slow() && kernel % 8 != 0) continue;
    if (other && kKernelTable[static_cast<std::size_t>(kernel)].isa == Isa::sm90a) {
      const RunSpec spec{.m = columns(), .options = {.kernel = kernel}};
      CHECK_THROWS_AS(run_linear(linear, x, spec), Error);
    } else if (std::isfinite(large)) {
      check_kernel(weights, linear, x, kernel, false);
    }
  }
  if (other) CHECK(linear.describe(100).find("sm90a") == std::string::npos);
}

}  // namespace
}  // namespace mpq::test

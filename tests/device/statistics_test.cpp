// Double-quantised statistics that stay packed, and are decoded in the kernels.

#include <fmt/format.h>

#include <array>
#include <vector>

#include "mpq/model.hpp"
#include "support/catch.hpp"
#include "support/expect_error.hpp"
#include "support/random.hpp"
#include "support/reference.hpp"
#include "support/run_linear.hpp"

namespace mpq::test {
namespace {

constexpr std::int64_t kK = 300, kN = 192;

WeightsSpec spec_of(int bits, DType dtype, int group_size, std::int64_t dq_group_size) {
  return {.bits = bits,
          .k = kK,
          .n = kN,
          .group_size = group_size,
          .zero_kind = ZeroKind::affine,
          .scale_dtype = dtype,
          .bias = true,
          .dq_group_size = dq_group_size,
          .seed = 7};
}

TEST_CASE("packed statistics give the bits of decoded ones, in every kernel", "[small]") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto dtype = GENERATE(DType::f16, DType::bf16);
  // Of a width's two types, one each time.
  const auto [group_size, dq_group_size] =
      GENERATE(table<int, int>({{16, 32}, {32, 192}, {48, 64}, {128, 96}, {-1, 32}}));
  if ((dtype == DType::bf16) == (group_size % 3 == 2)) return;
  auto spec = spec_of(bits, dtype, group_size, dq_group_size);
  spec.act_order = group_size == 48;
  const auto weights = random_weights(spec);
  const AnyLinear packed = prepared(weights, dtype, {.packed_statistics = true}),
                  plain = prepared(weights, dtype, {.packed_statistics = false});
  constexpr std::int64_t kRows = 3;
  const auto x = random_activations(kRows, kK, dtype, 5);
  const Reference reference = reference_forward(weights, view(x, dtype, kRows, kK));
  for (const int kernel : usable_kernels(weights)) {
    if (is_slow() && (kernel + group_size / 32) % 2 != 0) continue;
    const RunSpec run{.m = kRows, .options = {.kernel = kernel}};
    const auto y = run_linear(packed, x, run);
    INFO(fmt::format("w{} {} group {} dq {} kernel {}", bits, to_string(dtype), group_size,
                     dq_group_size, kernel));
    // The plan may cut K in another way where statistics are packed.
    const bool exact = packed.describe(kRows, run.options) == plain.describe(kRows, run.options);
    if (exact) REQUIRE(y == run_linear(plain, x, run));
    const auto mismatch =
        find_mismatch(reference, view(y, dtype, kRows, kN), /*weights_rounded=*/true);
    if (mismatch) FAIL_CHECK(*mismatch);
  }
}

TEST_CASE("packed statistics are what the layer owns", "[small]") {
  const auto weights = random_weights(spec_of(4, DType::f16, 128, 96));
  const AnyLinear packed = prepared(weights, DType::f16, {.packed_statistics = true});
  CHECK(packed.scales().element == ElementType::u8);
  CHECK(packed.scales().shape == std::array<std::int64_t, 2>{3, 192});
  CHECK(packed.zeros().shape == std::array<std::int64_t, 2>{3, 12});
  CHECK(prepared(weights, DType::f16, {.packed_statistics = false}).scales().element ==
        ElementType::u16);
}

TEST_CASE("check_parameters finds what packed statistics decode to", "[small]") {
  auto weights = random_weights(spec_of(4, DType::f16, 128, 96));
  CHECK_NOTHROW(prepared(weights, DType::f16, {.packed_statistics = true}).check_parameters());
  data_of(weights).double_quantized->scale_scales[3] = 0x7e01;  // group 1, channels from 96 on
  const AnyLinear bad = prepared(weights, DType::f16, {.packed_statistics = true});
  CHECK(refuses([&] { bad.check_parameters(); }, ErrorCode::invalid_weights,
                "scale of group 1, output channel", "not finite"));
}

TEST_CASE("statistics that cannot stay packed are refused", "[small]") {
  const auto refused = [](const WeightsSpec& spec, DType dtype, const char* why) {
    const auto weights = random_weights(spec);
    prepared(weights, dtype, {.packed_statistics = false});
    return refuses([&] { prepared(weights, dtype, {.packed_statistics = true}); },
                   ErrorCode::unsupported, "prepare_params: statistics cannot stay packed", why);
  };
  CHECK(refused(spec_of(4, DType::f16, 128, 48), DType::f16, "dq_group_size"));
  CHECK(refused(spec_of(4, DType::f16, 128, 32), DType::bf16, "activations' type"));
  CHECK(refused(spec_of(4, DType::f16, 128, 0), DType::f16, "not double-quantised"));
}

}  // namespace
}  // namespace mpq::test

// Round-to-nearest quantisation.

#include "mpq/quantize.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "mpq/pack.hpp"
#include "support/catch.hpp"
#include "support/expect_error.hpp"
#include "support/random.hpp"

namespace mpq::test {
namespace {

TEST_CASE("every weight is at the nearest code of its group") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto symmetric = GENERATE(false, true);
  const auto dtype = GENERATE(DType::f16, DType::bf16);
  const auto group_size = GENERATE(-1, 7, 32, 128);
  const std::int64_t n = 19, k = 150;
  const auto weight = random_weight(n, k, 1);
  const auto quantized = quantize(
      weight, n, k,
      {.bits = bits, .group_size = group_size, .symmetric = symmetric, .scale_dtype = dtype});
  const WeightsData& data = data_of(quantized);
  check_values(data, bits);
  CHECK(data.zero_kind == (symmetric ? ZeroKind::none : ZeroKind::integer));
  const auto dense = dequantize(quantized);
  int wrong = 0;
  for (std::int64_t row = 0; row < n; ++row) {
    for (std::int64_t i = 0; i < k; ++i) {
      const std::int64_t g = group_size == -1 ? 0 : i / group_size;
      const auto at = static_cast<std::size_t>(g * n + row);
      const float scale = to_float(data.scales[at], dtype);
      const int zero = symmetric ? 1 << (bits - 1) : data.zeros[at];
      const auto w_at = static_cast<std::size_t>(row * k + i);
      float nearest = std::numeric_limits<float>::infinity();
      for (int code = 0; code < 1 << bits; ++code) {
        nearest =
            std::min(nearest, std::abs(weight[w_at] - scale * static_cast<float>(code - zero)));
      }
      // Two codes may be equally near but for the rounding of w / s.
      wrong += std::abs(weight[w_at] - dense[w_at]) > nearest + std::abs(scale) * 1e-4f;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("more bits and smaller groups are nearer") {
  const std::int64_t n = 64, k = 512;
  const auto weight = random_weight(n, k, 2);
  for (const bool symmetric : {false, true}) {
    double last = 1;
    for (const auto& [bits, limit] : {std::pair{1, 0.99}, {2, 0.6}, {4, 0.12}, {8, 0.008}}) {
      const auto quantized =
          quantize(weight, n, k, {.bits = bits, .group_size = 64, .symmetric = symmetric});
      const double error = relative_error(weight, quantized);
      INFO("bits " << bits << " symmetric " << symmetric << " error " << error);
      CHECK(error < limit);
      CHECK(error < last);
      last = error;
    }
    const auto coarse = quantize(weight, n, k, {.group_size = -1, .symmetric = symmetric});
    const auto fine = quantize(weight, n, k, {.group_size = 32, .symmetric = symmetric});
    CHECK(relative_error(weight, fine) < relative_error(weight, coarse));
  }
}

TEST_CASE("symmetric scales put the largest magnitude on the outermost code") {
  for (const float sign : {1.0f, -1.0f}) {
    const std::vector<float> weight{sign * 0.5f, sign * -0.25f, 0, sign * 0.125f};
    const auto quantized = quantize(weight, 1, 4, {.group_size = -1, .symmetric = true});
    CHECK(dequantize(quantized) == weight);
    CHECK(unpack(data_of(quantized).qweight, 4, 1, 4)[0] == 0);
  }
  // One bit: 0 and the mean of the weights that are nearer to it.
  const std::vector<float> weight{-2, -3, 0.25f, -0.25f};
  CHECK(dequantize(quantize(weight, 1, 4, {.bits = 1, .group_size = -1, .symmetric = true})) ==
        std::vector<float>{-2.5f, -2.5f, 0, 0});
}

TEST_CASE("weights that codes hold exactly come back") {
  const std::vector<float> weight{0, 0, 0, -0.5f, 1, 0.25f, 7, 0, 3, 1e-9f, -1e-9f, 0};
  const auto quantized = quantize(weight, 4, 3, {.group_size = 3});
  const auto dense = dequantize(quantized);
  CHECK(dense[0] == 0);
  CHECK(dense[2] == 0);
  CHECK(relative_error(std::vector<float>(6), quantize(std::vector<float>(6), 2, 3, {})) == 0);
  CHECK(relative_error(weight, quantized) < 0.05);
}

TEST_CASE("quantize names what it refuses") {
  std::vector<float> weight(12, 1.0f);
  const auto invalid = ErrorCode::invalid_argument;
  CHECK(refuses([&] { quantize(weight, 4, 3, {.bits = 5}); }, invalid, "bits is 5"));
  CHECK(refuses([&] { quantize(weight, 4, 3, {.group_size = 0}); }, invalid, "group_size is 0"));
  CHECK(refuses([&] { quantize(weight, 4, 4, {}); }, invalid, "12 values", "expected 16"));
  CHECK(refuses([&] { quantize(weight, 0, 3, {}); }, invalid, "[0, 3]"));
  CHECK(refuses([&] { relative_error(weight, quantize(std::vector<float>(8), 2, 4, {})); }, invalid,
                "12 values", "expected 8"));
  weight[7] = std::numeric_limits<float>::quiet_NaN();
  CHECK(refuses([&] { quantize(weight, 4, 3, {}); }, invalid, "channel 2", "feature 1", "nan"));
  weight[7] = 1e30f;
  CHECK(refuses([&] { quantize(weight, 4, 3, {}); }, invalid, "channel 2", "group 0", "f16"));
  CHECK_NOTHROW(quantize(weight, 4, 3, {.scale_dtype = DType::bf16}));
}

}  // namespace
}  // namespace mpq::test

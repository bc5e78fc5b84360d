// Half-quadratic zeros and GPTQ: what each is there for is smaller than with round to nearest.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "mpq/pack.hpp"
#include "mpq/quantize.hpp"
#include "support/catch.hpp"
#include "support/expect_error.hpp"
#include "support/random.hpp"

namespace mpq::test {
namespace {

/// Normal weights of which one in 64 is ten times as large.
std::vector<float> weight_with_outliers(std::int64_t n, std::int64_t k, std::uint64_t seed) {
  Random random(seed);
  std::vector<float> weight(static_cast<std::size_t>(n * k));
  for (auto& w : weight) {
    w = static_cast<float>(random.normal() * (random.integer(0, 63) == 0 ? 0.2 : 0.02));
  }
  return weight;
}

/// Calibration rows whose features are correlated and of different energy.
std::vector<float> calibration(std::int64_t rows, std::int64_t k, std::uint64_t seed) {
  Random random(seed);
  std::vector<float> x(static_cast<std::size_t>(rows * k));
  for (std::int64_t r = 0; r < rows; ++r) {
    double carried = random.normal();
    for (std::int64_t i = 0; i < k; ++i) {
      carried = 0.9 * carried + 0.4 * random.normal();
      const double energy = i % 17 == 3 ? 8.0 : 1.0;
      x[static_cast<std::size_t>(r * k + i)] = static_cast<float>(energy * carried);
    }
  }
  return x;
}

Hessian hessian_of(std::int64_t k, const std::vector<float>& rows) {
  Hessian hessian(k);
  hessian.add(rows);
  return hessian;
}

/// sum |w - w'|^0.7 over the layer.
double p_loss(const std::vector<float>& weight, const AnyQuantizedWeights& quantized) {
  const auto dense = dequantize(quantized);
  double sum = 0;
  for (std::size_t i = 0; i < weight.size(); ++i) {
    sum += std::pow(std::abs(double{weight[i]} - double{dense[i]}), 0.7);
  }
  return sum;
}

GptqOptions gptq_options(int bits, int group_size, bool act_order = false,
                         bool static_groups = false) {
  GptqOptions options;
  options.bits = bits;
  options.group_size = group_size;
  options.act_order = act_order;
  options.static_groups = static_groups;
  return options;
}

TEST_CASE("half-quadratic zeros lower the loss that they are found by") {
  const std::int64_t n = 24, k = 256;
  const auto weight = weight_with_outliers(n, k, 1);
  for (const int bits : {1, 2, 4, 8}) {
    for (const bool float_zeros : {false, true}) {
      const QuantizeOptions nearest{.bits = bits, .group_size = 64};
      QuantizeOptions options = nearest;
      options.method = QuantizeMethod::half_quadratic;
      options.float_zeros = float_zeros;
      const auto before = quantize(weight, n, k, nearest), after = quantize(weight, n, k, options);
      check_values(data_of(after), bits);
      CHECK(data_of(after).zero_kind == (float_zeros ? ZeroKind::affine : ZeroKind::integer));
      CHECK(data_of(after).scales == data_of(before).scales);
      const double ratio = p_loss(weight, after) / p_loss(weight, before);
      INFO(bits << " bits, float zeros " << float_zeros << ": loss " << ratio);
      CHECK(ratio <= 1.0);
      // A float zero has room to move; an integer one at least at two bits, with few codes.
      if (float_zeros) CHECK(ratio < 0.995);
    }
  }
}

TEST_CASE("half-quadratic zeros of weights that fit stay") {
  const std::vector<float> weight{-4, 3.5f, 0, 1, -0.5f, 2, 2.5f, -3};
  QuantizeOptions options{.bits = 4, .group_size = 8};
  options.method = QuantizeMethod::half_quadratic;
  CHECK(dequantize(quantize(weight, 1, 8, options)) == weight);
  options.float_zeros = true;
  CHECK(dequantize(quantize(weight, 1, 8, options)) == weight);
}

TEST_CASE("GPTQ of features that do not correlate is round to nearest") {
  const std::int64_t n = 19, k = 100;
  const auto weight = weight_with_outliers(n, k, 2);
  // One row for each feature, each with another size: the Hessian is diagonal.
  std::vector<float> rows(static_cast<std::size_t>(k * k));
  for (std::int64_t i = 0; i < k; ++i) {
    rows[static_cast<std::size_t>(i * k + i)] = static_cast<float>(1 + i % 5);
  }
  const auto hessian = hessian_of(k, rows);
  for (const int bits : {1, 2, 4, 8}) {
    for (const bool symmetric : {false, true}) {
      auto options = gptq_options(bits, 32);
      options.symmetric = symmetric;
      const auto a = quantize_gptq(weight, n, k, hessian, options);
      const auto b = quantize(weight, n, k, options);
      CHECK(data_of(a).qweight == data_of(b).qweight);
      CHECK(data_of(a).scales == data_of(b).scales);
      CHECK(data_of(a).zeros == data_of(b).zeros);
      CHECK(data_of(a).g_idx.empty());
    }
  }
}

TEST_CASE("GPTQ makes up for an error as least squares does") {
  // Two features, one group: once the first is rounded, the best second weight is
  // w_1 + H_01 / H_11 * (w_0 - w'_0), with H_11 damped.
  Random random(3);
  for (int round = 0; round < 200; ++round) {
    const std::vector<float> weight{static_cast<float>(random.normal()),
                                    static_cast<float>(random.normal())};
    std::vector<float> rows(12);
    for (auto& x : rows) x = static_cast<float>(random.normal());
    const auto hessian = hessian_of(2, rows);
    const auto quantized = quantize_gptq(weight, 1, 2, hessian, gptq_options(2, -1));
    const auto h = hessian.matrix();
    const double damped = h[3] + 0.01 * (h[0] + h[3]) / 2;
    const auto dense = dequantize(quantized);
    const double wanted =
        double{weight[1]} + h[1] / damped * (double{weight[0]} - double{dense[0]});
    const WeightsData& data = data_of(quantized);
    const float scale = f16_to_float(data.scales[0]);
    double nearest = std::numeric_limits<double>::infinity();
    for (int code = 0; code < 4; ++code) {
      nearest = std::min(nearest, std::abs(wanted - double{scale} * (code - data.zeros[0])));
    }
    CHECK(std::abs(wanted - double{dense[1]}) <= nearest + 1e-5 * std::abs(double{scale}));
  }
}

TEST_CASE("GPTQ makes the output's error smaller") {
  const std::int64_t n = 40, k = 192;
  const auto weight = weight_with_outliers(n, k, 4);
  const auto hessian = hessian_of(k, calibration(512, k, 5));
  for (const int bits : {2, 4, 8}) {
    for (const bool symmetric : {false, true}) {
      double nearest = 0;
      for (const auto& [act_order, static_groups] :
           {std::pair{false, false}, {true, false}, {true, true}}) {
        auto options = gptq_options(bits, 64, act_order, static_groups);
        options.symmetric = symmetric;
        if (nearest == 0) {
          nearest = relative_output_error(weight, quantize(weight, n, k, options), hessian);
        }
        const auto quantized = quantize_gptq(weight, n, k, hessian, options);
        check_values(data_of(quantized), bits);
        const double error = relative_output_error(weight, quantized, hessian);
        INFO(bits << " bits, symmetric " << symmetric << ", act-order " << act_order
                  << ", static groups " << static_groups << ": " << error << " after " << nearest);
        CHECK(error < 0.75 * nearest);
        CHECK(data_of(quantized).g_idx.empty() == (!act_order || static_groups));
      }
    }
  }
}

TEST_CASE("act-order goes by falling energy") {
  const std::int64_t k = 96;
  const auto weight = weight_with_outliers(4, k, 6);
  const auto hessian = hessian_of(k, calibration(256, k, 7));
  const auto quantized = quantize_gptq(weight, 4, k, hessian, gptq_options(4, 32, true));
  const auto& g_idx = data_of(quantized).g_idx;
  REQUIRE(g_idx.size() == 96);
  const auto energy = [&](std::size_t i) { return hessian.matrix()[i * 96 + i]; };
  for (std::size_t i = 0; i < 96; ++i) {
    for (std::size_t j = 0; j < 96; ++j) {
      if (g_idx[i] < g_idx[j]) CHECK(energy(i) >= energy(j));
    }
  }
  for (int g = 0; g < 3; ++g) CHECK(std::ranges::count(g_idx, g) == 32);
}

TEST_CASE("a Hessian is the sum of products") {
  Hessian hessian(3);
  hessian.add(std::vector<float>{1, 2, 3, -1, 0, 1});
  hessian.add(std::vector<float>{0, 0.5f, 0});
  CHECK(hessian.rows() == 3);
  const std::vector<double> expected{2, 2, 2, 2, 4.25, 6, 2, 6, 10};
  CHECK(std::ranges::equal(hessian.matrix(), expected));
}

TEST_CASE("features that calibration never saw are rounded to nearest") {
  const std::int64_t k = 64;
  const auto weight = weight_with_outliers(3, k, 8);
  auto rows = calibration(64, k, 9);
  for (std::size_t i = 0; i < rows.size(); i += 64) rows[i] = 0;
  const auto quantized = quantize_gptq(weight, 3, k, hessian_of(k, rows), gptq_options(4, 64));
  check_values(data_of(quantized), 4);
  CHECK(relative_error(weight, quantized) < 0.5);
  const auto none =
      quantize_gptq(weight, 3, k, hessian_of(k, std::vector<float>(64)), gptq_options(4, 64));
  CHECK(dequantize(none) == dequantize(quantize(weight, 3, k, gptq_options(4, 64))));
}

TEST_CASE("methods name what they refuse") {
  const auto invalid = ErrorCode::invalid_argument;
  const std::vector<float> weight(64, 1.0f);
  QuantizeOptions options;
  options.float_zeros = true;
  CHECK(refuses([&] { quantize(weight, 2, 32, options); }, invalid, "float_zeros"));
  options.method = QuantizeMethod::half_quadratic;
  options.symmetric = true;
  CHECK(refuses([&] { quantize(weight, 2, 32, options); }, invalid, "symmetric"));
  Hessian hessian(32);
  const auto run = [&](const GptqOptions& gptq) { quantize_gptq(weight, 2, 32, hessian, gptq); };
  CHECK(refuses([&] { run({}); }, invalid, "no rows"));
  CHECK(refuses([&] { hessian.add(std::vector<float>(33)); }, invalid, "33", "rows of 32"));
  std::vector<float> rows(32, 1.0f);
  rows[5] = std::numeric_limits<float>::infinity();
  CHECK(refuses([&] { hessian.add(rows); }, invalid, "[0, 5]", "inf"));
  rows[5] = 1;
  hessian.add(rows);
  CHECK_NOTHROW(run({}));
  GptqOptions bad;
  bad.damping = 0;
  CHECK(refuses([&] { run(bad); }, invalid, "damping is 0"));
  CHECK(refuses([&] { quantize_gptq(weight, 1, 64, hessian, {}); }, invalid, "32", "64"));
  CHECK(refuses([&] { Hessian(0); }, invalid, "0 features"));
}

}  // namespace
}  // namespace mpq::test

// Quantisation on the device against that on the CPU.

#include "mpq/quantize.hpp"

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "mpq/pack.hpp"
#include "support/catch.hpp"
#include "support/expect_error.hpp"
#include "support/random.hpp"

namespace mpq::test {
namespace {

void check_same(const WeightsData& device, const WeightsData& cpu) {
  CHECK(device.qweight == cpu.qweight);
  CHECK(device.scales == cpu.scales);
  CHECK(device.zeros == cpu.zeros);
  CHECK(device.zero_kind == cpu.zero_kind);
}

TEST_CASE("the device rounds to nearest as the CPU does, bit for bit", "[small]") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto symmetric = GENERATE(false, true);
  const auto dtype = GENERATE(DType::f16, DType::bf16);
  const auto group_size = GENERATE(-1, 7, 32, 128, 1000);
  const std::int64_t n = 37, k = 330;
  auto weight = random_weight(n, k, 1);
  weight[0] = 3;                                              // an outlier
  for (std::size_t i = 0; i < 130; ++i) weight[330 + i] = 0;  // a group of zeros
  for (std::size_t i = 0; i < 330; ++i) weight[660 + i] = std::abs(weight[660 + i]);
  const QuantizeOptions options{
      .bits = bits, .group_size = group_size, .symmetric = symmetric, .scale_dtype = dtype};
  const auto on_cpu = quantize(weight, n, k, options);
  const auto on_device = quantize(weight, n, k, options, Device::cuda());
  INFO("w" << bits << " group " << group_size << (symmetric ? " symmetric" : ""));
  check_values(data_of(on_device), bits);
  check_same(data_of(on_device), data_of(on_cpu));
}

TEST_CASE("the device finds the half-quadratic zeros of the CPU", "[small]") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto float_zeros = GENERATE(false, true);
  const auto group_size = GENERATE(48, 128);
  const std::int64_t n = 40, k = 384;
  const auto weight = random_weight(n, k, 2);
  const QuantizeOptions options{.bits = bits,
                                .group_size = group_size,
                                .method = QuantizeMethod::half_quadratic,
                                .float_zeros = float_zeros};
  const auto on_cpu = quantize(weight, n, k, options);
  const auto on_device = quantize(weight, n, k, options, Device::cuda());
  const double expected = relative_error(weight, on_cpu);
  const auto &a = data_of(on_device), &b = data_of(on_cpu);
  INFO("w" << bits << " group " << group_size << (float_zeros ? " float zeros" : ""));
  check_values(a, bits);
  CHECK(a.scales == b.scales);
  // std::pow rounds differently: a zero may stop an iteration sooner or later.
  CHECK(std::abs(relative_error(weight, on_device) - expected) < 0.002 * expected);
  CHECK(a.zero_kind == b.zero_kind);
  REQUIRE(a.zeros.size() == b.zeros.size());
  REQUIRE(a.affine_zeros.size() == b.affine_zeros.size());
  std::size_t others = 0;
  for (std::size_t i = 0; i < a.zeros.size(); ++i) others += a.zeros[i] != b.zeros[i] ? 1u : 0u;
  for (std::size_t i = 0; i < a.affine_zeros.size(); ++i) {
    const float step = std::abs(to_float(a.scales[i], a.dtype));
    others += std::abs(a.affine_zeros[i] - b.affine_zeros[i]) > 0.01f * step ? 1u : 0u;
  }
  CHECK(others * 50 <= a.scales.size());
}

TEST_CASE("the device refuses the weights that the CPU refuses, in the same words", "[small]") {
  const auto bad = GENERATE(std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::quiet_NaN(), 1e9f);
  auto weight = random_weight(20, 100, 3);
  weight[7 * 100 + 41] = bad;
  const QuantizeOptions options{.group_size = 32};
  const auto error = [&](Device device) {
    return error_of([&] { (void)quantize(weight, 20, 100, options, device); });
  };
  const auto on_device = error(Device::cuda()), on_cpu = error(Device::cpu());
  REQUIRE(on_device.has_value());
  REQUIRE(on_cpu.has_value());
  CHECK(on_device->code() == ErrorCode::invalid_argument);
  CHECK(std::string(on_device->what()) == on_cpu->what());
  CHECK(std::string(on_device->what()).find("output channel 7") != std::string::npos);
  CHECK(refuses([&] { (void)quantize(weight, 20, 100, options, Device::cuda(999)); },
                ErrorCode::device_unavailable, "cuda:999"));
}

TEST_CASE("weights that reach the device in several parts") {
  const std::int64_t n = 2500, k = 1 << 15;  // a part is 256 MiB
  std::vector<float> weight(static_cast<std::size_t>(n * k));
  for (std::size_t i = 0; i < weight.size(); ++i) {
    weight[i] = static_cast<float>(static_cast<std::int32_t>(i * 2654435761u)) * 0x1p-36f;
  }
  const QuantizeOptions options{.bits = 4, .group_size = 128};
  check_same(data_of(quantize(weight, n, k, options, Device::cuda())),
             data_of(quantize(weight, n, k, options)));
}

}  // namespace
}  // namespace mpq::test

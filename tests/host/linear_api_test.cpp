// How Linear is used rather than what it computes: order of calls, arguments, threads, repetition.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <thread>

#include "cpu/cpu_backend.hpp"
#include "cpu/thread_pool.hpp"
#include "support/catch.hpp"
#include "support/expect_error.hpp"
#include "support/random.hpp"
#include "support/reference.hpp"
#include "support/run_linear.hpp"

namespace mpq::test {
namespace {

constexpr std::int64_t kK = 640, kN = 330;
constexpr auto kInvalid = ErrorCode::invalid_argument;

QuantizedWeights<4> make_weights(bool act_order = false) {
  return std::get<QuantizedWeights<4>>(random_weights(
      {.k = kK, .n = kN, .group_size = 64, .act_order = act_order, .bias = true, .seed = 6}));
}

Linear<4> make_linear(bool act_order = false) {
  Linear<4> linear(make_weights(act_order), Device::cpu(), DType::f16);
  linear.prepare_params();
  return linear;
}

struct Call {
  explicit Call(const Linear<4>& linear, std::int64_t m)
      : x(random_activations(m, kK, DType::f16, 3)),
        y(static_cast<std::size_t>(m * kN)),
        workspace(Device::cpu(), linear.workspace_bytes(m)),
        x_view(x.data(), DType::f16, m, kK),
        y_view(y.data(), DType::f16, m, kN) {}
  std::vector<std::uint16_t> x, y;
  DeviceBuffer workspace;
  ConstMatrix x_view;
  Matrix y_view;
};

TEST_CASE("200 runs give the same bits") {
  const auto m = GENERATE(1, 3, 9, 80);
  const Linear<4> linear = make_linear(true);
  Call call(linear, m);
  linear.forward(call.x_view, call.y_view, call.workspace);
  const auto first = call.y;
  int different = 0;
  for (int i = 1; i < (MPQ_TESTS_SANITIZED ? 20 : 200); ++i) {
    std::fill(call.y.begin(), call.y.end(), std::uint16_t{0});
    linear.forward(call.x_view, call.y_view, call.workspace);
    different += call.y != first;
  }
  CHECK(different == 0);
}

TEST_CASE("any number of threads gives the same bits") {
  const auto m = GENERATE(1, 2, 65);
  const Linear<4> linear = make_linear();
  Call call(linear, m);
  linear.forward(call.x_view, call.y_view, call.workspace);
  const auto expected = call.y;
  for (const int threads : {1, 2, 3, 7, 64}) {
    const detail::ThreadLimit limit(threads);
    CHECK(linear.describe(m).find(fmt::format("{} thread", threads)) != std::string::npos);
    std::fill(call.y.begin(), call.y.end(), std::uint16_t{0});
    linear.forward(call.x_view, call.y_view, call.workspace);
    CHECK(call.y == expected);
  }
}

TEST_CASE("threads share a layer") {
  const Linear<4> linear = make_linear(true);
  const auto work = [&](std::int64_t m, int& wrong) {
    Call call(linear, m);
    linear.forward(call.x_view, call.y_view, call.workspace);
    const auto expected = call.y;
    for (int i = 0; i < 50; ++i) {
      std::fill(call.y.begin(), call.y.end(), std::uint16_t{0});
      linear.forward(call.x_view, call.y_view, call.workspace);
      wrong += call.y != expected;
    }
  };
  int wrong[3] = {};
  {
    const std::jthread one([&] { work(1, wrong[0]); });
    const std::jthread two([&] { work(2, wrong[1]); });
    const std::jthread many([&] { work(70, wrong[2]); });
  }
  CHECK(wrong[0] == 0);
  CHECK(wrong[1] == 0);
  CHECK(wrong[2] == 0);
}

TEST_CASE("every instruction set computes the same layer") {
  for (const auto* kernels : detail::cpu::available_kernels()) {
    for (const int bits : {1, 2, 4, 8}) {
      for (const int group_size : {-1, 16, 48, 50, 128, 512}) {
        const auto weights = random_weights(
            {.bits = bits, .k = 1100, .n = 37, .group_size = group_size, .exact = true, .seed = 4});
        const LinearConfig config = config_of(data_of(weights), DType::f16);
        const auto backend = detail::make_cpu_backend(bits, config, *kernels);
        backend->load(data_of(weights), {});
        backend->prepare({}, {});
        const DeviceBuffer workspace(Device::cpu(), backend->workspace_bytes(67));
        const auto x = random_activations(67, 1100, DType::f16, 5, true);
        Reference reference = reference_forward(weights, view(x, DType::f16, 67, 1100));
        for (const std::int64_t m : {1, 2, 3, 4, 5, 67}) {
          std::vector<std::uint16_t> y(static_cast<std::size_t>(m * 37));
          backend->forward({x.data(), DType::f16, m, 1100}, {y.data(), DType::f16, m, 37},
                           workspace, {}, {});
          int wrong = 0;
          for (std::size_t i = 0; i < y.size(); ++i) {
            wrong += y[i] != float_to_f16(static_cast<float>(reference.y[i]));
          }
          INFO(kernels->name << " w" << bits << " group " << group_size << " m " << m);
          CHECK(wrong == 0);
        }
      }
    }
  }
}

TEST_CASE("every instruction set converts all 16-bit floats") {
  std::vector<std::uint16_t> all(0x10000);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
  for (const auto* kernels : detail::cpu::available_kernels()) {
    for (const DType dtype : {DType::f16, DType::bf16}) {
      for (const std::int64_t count : {65536, 65535, 3}) {
        std::vector<float> floats(all.size(), -1.0f);
        kernels->convert(all.data(), count, dtype, floats.data());
        int wrong = 0;
        for (std::size_t i = 0; i < all.size(); ++i) {
          const float expected =
              static_cast<std::int64_t>(i) < count ? to_float(all[i], dtype) : -1.0f;
          wrong += std::isnan(expected) ? !std::isnan(floats[i]) : floats[i] != expected;
        }
        INFO(kernels->name << " " << to_string(dtype) << " " << count);
        CHECK(wrong == 0);
      }
    }
  }
}

TEST_CASE("the configuration is checked") {
  const LinearConfig good{.in_features = 64, .out_features = 32, .group_size = 32};
  const auto refused = [&](auto change, const char* value, const char* limit) {
    LinearConfig config = good;
    change(config);
    return refuses([&] { Linear<4>(config, Device::cpu()); }, kInvalid, value, limit);
  };
  CHECK_NOTHROW(Linear<4>(good, Device::cpu()));
  CHECK(refused([](auto& c) { c.in_features = 0; }, "in_features is 0", "1"));
  CHECK(refused([](auto& c) { c.out_features = -5; }, "out_features is -5", "1"));
  CHECK(refused([](auto& c) { c.group_size = 0; }, "group_size is 0", "-1"));
  CHECK(refused([](auto& c) { c.group_size = -2; }, "group_size is -2", "-1"));
  CHECK(refuses([&] { AnyLinear(3, good, Device::cpu()); }, ErrorCode::unsupported, "3"));
  CHECK(refuses([&] { Linear<4>(good, Device::cuda(-3)); }, ErrorCode::device_unavailable));
}

TEST_CASE("calls out of order are refused") {
  Linear<4> linear({.in_features = kK, .out_features = kN, .group_size = 64, .bias = true},
                   Device::cpu());
  const auto early = ErrorCode::not_prepared;
  std::vector<std::uint16_t> x(kK), y(kN);
  const ConstMatrix x_view(x.data(), DType::f16, 1, kK);
  const Matrix y_view(y.data(), DType::f16, 1, kN);
  CHECK(refuses([&] { linear.check_parameters(); }, early, "check_parameters", "load"));
  CHECK(refuses([&] { linear.prepare_params(); }, early, "prepare_params", "load"));
  CHECK(refuses([&] { (void)linear.workspace_bytes(1); }, early, "load"));
  CHECK(refuses([&] { linear.forward(x_view, y_view, {}); }, early, "forward", "load"));
  linear.load(make_weights());
  CHECK(refuses([&] { linear.forward(x_view, y_view, {}); }, early, "forward", "prepare_params"));
  CHECK_FALSE(linear.prepared());
  linear.prepare_params();
  linear.prepare_params();
  CHECK(linear.prepared());
  const Linear<4> moved = std::move(linear);
  CHECK(moved.prepared());
  const DeviceBuffer workspace(Device::cpu(), moved.workspace_bytes(1));
  CHECK_NOTHROW(moved.forward(x_view, y_view, workspace));
}

TEST_CASE("load checks the weights against the configuration") {
  const LinearConfig good{.in_features = kK, .out_features = kN, .group_size = 64, .bias = true};
  const auto refused = [&](auto change, const char* what) {
    LinearConfig config = good;
    change(config);
    Linear<4> linear(config, Device::cpu());
    return refuses([&] { linear.load(make_weights()); }, ErrorCode::invalid_weights, what);
  };
  CHECK(refused([](auto& c) { c.in_features = 641; }, "641"));
  CHECK(refused([](auto& c) { c.out_features = 331; }, "331"));
  CHECK(refused([](auto& c) { c.group_size = 32; }, "32"));
  CHECK(refused([](auto& c) { c.bias = false; }, "330"));
  Linear<4> linear(good, Device::cpu());
  auto weights = make_weights();
  weights.zeros[0] = 17;
  CHECK(refuses([&] { linear.load(weights); }, ErrorCode::invalid_weights, "17", "16"));
  AnyLinear any(2, good, Device::cpu());
  CHECK(refuses([&] { any.load(make_weights()); }, kInvalid, "4 bits", "2"));
}

TEST_CASE("check_parameters names a bad value before and after prepare_params") {
  auto weights = make_weights();
  weights.scales[static_cast<std::size_t>(3 * kN + 7)] = 0x7c00;
  Linear<4> linear(weights, Device::cpu(), DType::f16);
  const auto refused = [&] {
    return refuses([&] { linear.check_parameters(); }, ErrorCode::invalid_weights, "scale",
                   "group 3", "channel 7", "inf");
  };
  CHECK(refused());
  linear.prepare_params();
  CHECK(refused());
  linear.load(make_weights());
  CHECK_NOTHROW(linear.check_parameters());
  linear.prepare_params();
  CHECK_NOTHROW(linear.check_parameters());
}

TEST_CASE("forward checks its arguments") {
  const Linear<4> linear = make_linear();
  Call call(linear, 3);
  const auto refused = [&](auto change, const char* value, const char* limit) {
    ConstMatrix x = call.x_view;
    Matrix y = call.y_view;
    Workspace workspace = call.workspace;
    change(x, y, workspace);
    return refuses([&] { linear.forward(x, y, workspace); }, kInvalid, value, limit);
  };
  using X = ConstMatrix;
  using Y = Matrix;
  using W = Workspace;
  const auto shift = [](auto* data) { return reinterpret_cast<std::uintptr_t>(data) + 1; };
  CHECK(refused([](X& x, Y&, W&) { x.cols = 639; }, "639", "640"));
  CHECK(refused([](X&, Y& y, W&) { y.cols = 331; }, "331", "330"));
  CHECK(refused([](X& x, Y&, W&) { x.rows = -1; }, "-1", "0"));
  CHECK(refused([](X& x, Y&, W&) { x.rows = 2; }, "2 rows", "3"));
  CHECK(refused([](X& x, Y&, W&) { x.ld = 639; }, "639", "640"));
  CHECK(refused([](X&, Y& y, W&) { y.ld = 10; }, "10", "330"));
  CHECK(refused([](X& x, Y&, W&) { x.dtype = DType::bf16; }, "bf16", "f16"));
  CHECK(refused([](X&, Y& y, W&) { y.dtype = DType::bf16; }, "bf16", "f16"));
  CHECK(refused([](X& x, Y&, W&) { x.data = nullptr; }, "x", "null"));
  CHECK(refused([](X&, Y& y, W&) { y.data = nullptr; }, "y", "null"));
  CHECK(refused([&](X& x, Y&, W&) { x.data = reinterpret_cast<void*>(shift(x.data)); }, "x", "2"));
  CHECK(refused([](X&, Y&, W& w) { w.bytes -= 1; }, "workspace", "batch 3"));
  CHECK(refused([](X&, Y&, W& w) { w.data = nullptr; }, "workspace", "batch 3"));
  CHECK(refused([](X&, Y&, W& w) { w.data = static_cast<char*>(w.data) + 2; }, "workspace", "256"));
  CHECK(
      refuses([&] { linear.forward(call.x_view, call.y_view, call.workspace, {.kernel = 0}, {}); },
              kInvalid, "kernel is 0", "-1"));
  const ConstMatrix no_x(nullptr, DType::f16, 0, kK);
  const Matrix no_y(nullptr, DType::f16, 0, kN);
  CHECK_NOTHROW(linear.forward(no_x, no_y, {}));
  CHECK(refuses([&] { (void)linear.workspace_bytes(-1); }, kInvalid, "-1"));
}

TEST_CASE("the workspace is monotone and bounded on the CPU") {
  const Linear<4> linear = make_linear();
  std::size_t last = 0;
  for (const std::int64_t m : {0, 1, 2, 63, 64, 65, 100000}) {
    CHECK(linear.workspace_bytes(m) >= last);
    last = linear.workspace_bytes(m);
  }
  CHECK(linear.workspace_bytes(0) == 0);
  CHECK(last == linear.workspace_bytes(64));
}

TEST_CASE("a layer shows what it owns") {
  Linear<4> linear(make_weights(), Device::cpu(), DType::f16);
  CHECK(linear.qweight().shape == std::array<std::int64_t, 2>{kK / 8, kN});
  CHECK(linear.scales().shape == std::array<std::int64_t, 2>{10, kN});
  CHECK(linear.zeros().element == ElementType::u16);
  CHECK(linear.bias().shape == std::array<std::int64_t, 2>{1, kN});
  linear.prepare_params();
  const auto codes = linear.qweight();
  CHECK(codes.shape[0] * codes.shape[1] * 8 >= kK * kN);
  CHECK_FALSE(linear.scales().empty());
  CHECK_FALSE(linear.zeros().empty());
}

TEST_CASE("parallel_for covers every item once and passes exceptions on") {
  for (const int threads : {1, 2, 5, 200}) {
    const detail::ThreadLimit limit(threads);
    for (const std::int64_t items : {0, 1, 7, 64, 1000}) {
      for (const std::int64_t grain : {1, 4, 100}) {
        std::vector<int> count(static_cast<std::size_t>(items), 0);
        detail::parallel_for(items, grain, [&](detail::Range range) {
          for (auto i = range.begin; i < range.end; ++i) ++count[static_cast<std::size_t>(i)];
        });
        CHECK(std::count(count.begin(), count.end(), 1) == items);
      }
    }
    CHECK_THROWS_AS(detail::parallel_for(100, 1,
                                         [&](detail::Range range) {
                                           // Nested, and thrown by the last part.
                                           detail::parallel_for(4, 1, [](detail::Range) {});
                                           if (range.end == 100) throw std::runtime_error("here");
                                         }),
                    std::runtime_error);
  }
}

}  // namespace
}  // namespace mpq::test

// load_checkpoint DIR [cpu]: brings all quantised layers of a checkpoint to the best device. If
// DIR/expected.safetensors holds an input x and the exact y for it, as tests/data does, runs them
// and says how far y is off. Then times a layer of real size against the limit, which is the time
// to read its packed bytes at the rate at which this device reads memory.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <mpq/mpq.hpp>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "device_timer.hpp"

namespace {

using Layers = std::map<std::string, mpq::AnyLinear>;

/// [rows, cols], row-major.
struct HostMatrix {
  std::int64_t rows = 0, cols = 0;
  std::vector<double> values;
};

/// What forward is given and must return.
struct Problem {
  mpq::DType dtype = mpq::DType::f16;
  std::vector<std::uint16_t> x;     ///< [rows, in_features]
  std::int64_t rows = 0, cols = 0;  ///< of x
  HostMatrix y;                     ///< exact, [rows, out_features]
};

template <class T>
std::vector<T> read_tensor(const mpq::SafetensorsFile& file, const mpq::SafetensorsEntry& entry) {
  const auto bytes = file.bytes(entry);
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));  // may be misaligned
  return values;
}

/// x (F16 or BF16) and y (F64) of expected.safetensors; nothing if there is no such file.
std::optional<Problem> read_expected(const std::filesystem::path& directory) {
  const auto path = directory / "expected.safetensors";
  if (!std::filesystem::exists(path)) return std::nullopt;
  const auto file = mpq::SafetensorsFile::open(path);
  const auto* x = file.find("x");
  const auto* y = file.find("y");
  if (x == nullptr || y == nullptr || x->shape.size() != 2 || y->shape.size() != 2 ||
      y->type != mpq::SafetensorsType::F64 || x->shape[0] != y->shape[0] ||
      (x->type != mpq::SafetensorsType::F16 && x->type != mpq::SafetensorsType::BF16)) {
    std::printf("%s has no 16-bit x and F64 y to compare with\n", path.c_str());
    return std::nullopt;
  }
  return Problem{.dtype = x->type == mpq::SafetensorsType::F16 ? mpq::DType::f16 : mpq::DType::bf16,
                 .x = read_tensor<std::uint16_t>(file, *x),
                 .rows = x->shape[0],
                 .cols = x->shape[1],
                 .y = {y->shape[0], y->shape[1], read_tensor<double>(file, *y)}};
}

/// Half the distance between 16-bit floats around `value`.
double half_ulp(double value, mpq::DType dtype) {
  const int digits = dtype == mpq::DType::f16 ? 11 : 8;
  const int smallest = dtype == mpq::DType::f16 ? -14 : -126;
  const int exponent = value == 0 ? smallest : std::max(std::ilogb(value), smallest);
  return std::ldexp(0.5, exponent - digits + 1);
}

/// Compares y, element by element, with what is expected and a bound: one rounding to 16 bits,
/// float32 accumulation, and one rounding of each weight to 16 bits where the kernel says so.
/// Returns the largest error as a share of its bound.
double check_result(const Problem& problem, const mpq::AnyQuantizedWeights& weights,
                    const std::vector<std::uint16_t>& y, bool rounds_weights) {
  const std::vector<float> w = mpq::dequantize(weights);  // [out_features, in_features]
  const auto& bias = mpq::data_of(weights).bias;
  double largest = 0, its_bound = 0, largest_share = 0;
  for (std::int64_t m = 0; m < problem.rows; ++m) {
    for (std::int64_t n = 0; n < problem.y.cols; ++n) {
      double magnitude = bias.empty() ? 0 : std::abs(bias[static_cast<std::size_t>(n)]);
      for (std::int64_t k = 0; k < problem.cols; ++k) {
        const auto x = problem.x[static_cast<std::size_t>(m * problem.cols + k)];
        magnitude += std::abs(double{mpq::to_float(x, problem.dtype)} *
                              double{w[static_cast<std::size_t>(n * problem.cols + k)]});
      }
      const auto at = static_cast<std::size_t>(m * problem.y.cols + n);
      const double expected = problem.y.values[at];
      const double rounding = problem.dtype == mpq::DType::f16 ? 0x1p-11 : 0x1p-8;
      const double bound = half_ulp(expected, problem.dtype) +
                           magnitude * (0x1p-18 + (rounds_weights ? rounding : 0.0));
      const double error = std::abs(double{mpq::to_float(y[at], problem.dtype)} - expected);
      if (!(error <= largest)) largest = error, its_bound = bound;  // also when it is NaN
      if (!(error / bound <= largest_share)) largest_share = error / bound;
    }
  }
  std::printf(
      "  largest error %.3g (bound there %.3g); no element uses more than %.0f %% of its "
      "bound: %s\n",
      largest, its_bound, std::ceil(100 * largest_share), largest_share <= 1 ? "right" : "WRONG");
  return largest_share;
}

/// Bytes of codes, scales and zeros as checkpoints pack them.
double packed_bytes(const mpq::AnyQuantizedWeights& weights) {
  const auto& data = mpq::data_of(weights);
  const double bits = mpq::bits_of(weights);
  const auto n = static_cast<double>(data.out_features);
  const double zero_bits = data.zero_kind == mpq::ZeroKind::integer  ? bits
                           : data.zero_kind == mpq::ZeroKind::affine ? 32
                                                                     : 0;
  return n *
         (static_cast<double>(data.in_features) * bits +
          static_cast<double>(data.groups()) * (16 + zero_bits)) /
         8;
}

/// Runs x through the layers in turn, all the same weights: checks the first's y, times all.
/// Returns whether y was right.
bool run(const std::vector<const mpq::AnyLinear*>& layers, const mpq::AnyQuantizedWeights& weights,
         const Problem& problem, example::DeviceTimer& timer) {
  const mpq::AnyLinear& layer = *layers[0];
  const mpq::Device device = layer.device();
  const std::size_t y_size = problem.y.values.size();
  mpq::DeviceBuffer x_device(device, 2 * problem.x.size()), y_device(device, 2 * y_size);
  const mpq::DeviceBuffer workspace(device, layer.workspace_bytes(problem.rows));
  const mpq::ConstMatrix x{x_device.data(), problem.dtype, problem.rows, problem.cols};
  const mpq::Matrix y{y_device.data(), problem.dtype, problem.rows, problem.y.cols};
  x_device.copy_from_host(problem.x.data(), x_device.size());

  layer.forward(x, y, workspace);
  std::vector<std::uint16_t> y_host(y_size);
  y_device.copy_to_host(y_host.data(), y_device.size());
  const std::string kernel = layer.describe(problem.rows);
  std::printf("  x [%lld, %lld] through %s\n", static_cast<long long>(problem.rows),
              static_cast<long long>(problem.cols), kernel.c_str());
  const bool right = check_result(problem, weights, y_host, kernel.starts_with("prefill")) <= 1;

  std::vector<std::function<void(mpq::StreamRef)>> calls;
  for (const mpq::AnyLinear* l : layers) {
    calls.push_back([=, &workspace](mpq::StreamRef s) { l->forward(x, y, workspace, s); });
  }
  const double us = timer.call_us(calls), bytes = packed_bytes(weights);
  const double limit = timer.read_us(bytes);
  std::printf("  %.1f us a forward; a plain read of its %.1f KB takes %.1f us: %.2f of the limit\n",
              us, bytes * 1e-3, limit, limit / us);
  if (bytes < 1e6) {
    std::printf(
        "  (so small that the time is not in the reading: %s costs more than reading so "
        "little)\n",
        timer.fixed_cost());
  }
  return right;
}

Problem random_problem(const mpq::AnyQuantizedWeights& weights, std::int64_t rows,
                       std::mt19937& random) {
  const auto& data = mpq::data_of(weights);
  Problem problem{.x = {}, .rows = rows, .cols = data.in_features, .y = {}};
  problem.y = {rows, data.out_features, {}};
  std::normal_distribution<float> normal;
  for (std::int64_t i = 0; i < rows * data.in_features; ++i) {
    problem.x.push_back(mpq::float_to_f16(normal(random)));
  }
  const std::vector<float> w = mpq::dequantize(weights);
  for (std::int64_t m = 0; m < rows; ++m) {
    for (std::int64_t n = 0; n < data.out_features; ++n) {
      double sum = 0;
      for (std::int64_t k = 0; k < data.in_features; ++k) {
        const auto x = problem.x[static_cast<std::size_t>(m * data.in_features + k)];
        sum += double{mpq::f16_to_float(x)} *
               double{w[static_cast<std::size_t>(n * data.in_features + k)]};
      }
      problem.y.values.push_back(sum);
    }
  }
  return problem;
}

/// A layer of real size, quantised here: with as many copies as it takes to find no weight in a
/// cache, as in a model.
bool run_large(mpq::Device device, example::DeviceTimer& timer) {
  constexpr std::int64_t kFeatures = 4096;
  constexpr double kColdBytes = 400e6;
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 0.02f);
  std::vector<float> dense(static_cast<std::size_t>(kFeatures * kFeatures));
  for (float& w : dense) w = normal(random);
  const auto weights = mpq::quantize(dense, kFeatures, kFeatures, {.bits = 4, .group_size = 128});
  std::vector<mpq::AnyLinear> copies;
  while (static_cast<double>(copies.size()) * packed_bytes(weights) < kColdBytes) {
    copies.emplace_back(weights, device, mpq::DType::f16);
    copies.back().prepare_params();
  }
  mpq::StreamRef().synchronize(device);
  std::vector<const mpq::AnyLinear*> layers;
  for (const auto& copy : copies) layers.push_back(&copy);
  std::printf(
      "\na layer of real size: %lldx%lld, 4 bits, groups of 128, quantised from random "
      "weights\n",
      static_cast<long long>(kFeatures), static_cast<long long>(kFeatures));
  return run(layers, weights, random_problem(weights, 1, random), timer);
}

Layers load_all(const mpq::Checkpoint& checkpoint, mpq::Device device,
                std::optional<mpq::DType> dtype) {
  Layers layers;
  for (const mpq::LayerInfo& info : checkpoint.layers()) {
    layers.emplace(info.name,
                   mpq::AnyLinear(checkpoint.read(info.name), device, dtype.value_or(info.dtype)));
    std::printf("  %s: %s, %d bits, %lldx%lld, group size %d, zeros: %s%s%s\n", info.name.c_str(),
                info.format.c_str(), info.bits, static_cast<long long>(info.out_features),
                static_cast<long long>(info.in_features), info.group_size,
                mpq::to_string(info.zero_kind), info.act_order ? ", act-order" : "",
                info.bias ? ", bias" : "");
  }
  mpq::prepare_layers(layers);
  mpq::StreamRef().synchronize(device);
  return layers;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2 || argc > 3 || (argc == 3 && std::string_view(argv[2]) != "cpu")) {
    std::fprintf(stderr, "usage: load_checkpoint DIR [cpu]\n");
    return 2;
  }
  const mpq::Device device = argc == 3 ? mpq::Device::cpu() : mpq::Device::best();
  std::printf("device %s: %s\n", mpq::to_string(device).c_str(), mpq::name_of(device).c_str());
  const auto timer = example::make_timer(device);

  const auto checkpoint = mpq::Checkpoint::open(argv[1]);
  const auto expected = read_expected(argv[1]);
  std::printf("%s\n", argv[1]);
  const Layers layers =
      load_all(checkpoint, device, expected ? std::optional(expected->dtype) : std::nullopt);
  bool right = true;
  for (const auto& [name, layer] : layers) {
    if (expected && layer.config().in_features == expected->cols &&
        layer.config().out_features == expected->y.cols) {
      right = run({&layer}, checkpoint.read(name), *expected, *timer) && right;
    }
  }
  right = run_large(device, *timer) && right;
  return right ? 0 : 1;
} catch (const std::exception& e) {
  std::fprintf(stderr, "load_checkpoint: %s\n", e.what());
  return 1;
}

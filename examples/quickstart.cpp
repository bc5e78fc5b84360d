// Quantises random weights to 4 bits, multiplies a batch with them and checks the result.
#include <cmath>
#include <cstdio>
#include <mpq/mpq.hpp>
#include <random>
#include <variant>
#include <vector>

int main() try {
  constexpr std::int64_t kIn = 1024, kOut = 512, kBatch = 4;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> dense(kOut * kIn);  // [out_features, in_features]
  for (float& w : dense) w = 0.02f * normal(random);
  std::vector<std::uint16_t> x(kBatch * kIn), y(kBatch * kOut);  // f16, row-major
  for (std::uint16_t& value : x) value = mpq::float_to_f16(normal(random));

  // Once per layer.
  const auto quantized = mpq::quantize(dense, kOut, kIn, {.bits = 4, .group_size = 128});
  const mpq::Device device = mpq::Device::best();
  mpq::Linear<4> linear({.in_features = kIn, .out_features = kOut, .group_size = 128}, device);
  linear.load(std::get<mpq::QuantizedWeights<4>>(quantized));
  linear.check_parameters();
  linear.prepare_params();

  // Once per forward call, from memory that the caller owns.
  const mpq::DeviceBuffer workspace(device, linear.workspace_bytes(kBatch));
  mpq::DeviceBuffer x_device(device, 2 * x.size()), y_device(device, 2 * y.size());
  x_device.copy_from_host(x.data(), 2 * x.size());
  linear.forward({x_device.data(), mpq::DType::f16, kBatch, kIn},
                 {y_device.data(), mpq::DType::f16, kBatch, kOut}, workspace);
  y_device.copy_to_host(y.data(), 2 * y.size());

  // Against the same weights as dense floats.
  const std::vector<float> w = mpq::dequantize(quantized);
  double largest = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    double sum = 0;
    for (std::size_t k = 0; k < kIn; ++k) {
      sum += double{mpq::f16_to_float(x[i / kOut * kIn + k])} * double{w[i % kOut * kIn + k]};
    }
    largest = std::max(largest, std::abs(sum - double{mpq::f16_to_float(y[i])}));
  }
  std::printf("%s (%s): %s\n", mpq::to_string(device).c_str(), mpq::name_of(device).c_str(),
              linear.describe(kBatch).c_str());
  std::printf("quantisation error of w %.3f, largest error of y %.2g\n",
              mpq::relative_error(dense, quantized), largest);
  return largest < 2e-3 ? 0 : 1;  // |y| stays below 4, where half an ulp of f16 is 0.001
} catch (const mpq::Error& error) {
  std::fprintf(stderr, "%s: %s\n", mpq::to_string(error.code()), error.what());
  return 1;
}

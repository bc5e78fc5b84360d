// Quantises random weights, runs them on the CPU and checks y against the dense product.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <mpq/mpq.hpp>
#include <random>
#include <utility>
#include <variant>
#include <vector>

#include "host_only.hpp"

int main() try {
  constexpr std::int64_t kIn = 256, kOut = 96, kBatch = 3;
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> dense(kIn * kOut);
  for (float& w : dense) w = normal(random);
  std::vector<std::uint16_t> x(kBatch * kIn), y(kBatch * kOut);
  for (auto& value : x) value = mpq::float_to_f16(normal(random));

  auto any = mpq::quantize(dense, kOut, kIn, {.bits = 4, .group_size = 64});
  const std::vector<float> w = mpq::dequantize(any);
  mpq::Linear<4> linear(std::get<mpq::QuantizedWeights<4>>(any), mpq::Device::cpu(),
                        mpq::DType::f16);
  linear.check_parameters();
  linear.prepare_params();
  const mpq::DeviceBuffer workspace(mpq::Device::cpu(), linear.workspace_bytes(kBatch));
  linear.forward({x.data(), mpq::DType::f16, kBatch, kIn},
                 {y.data(), mpq::DType::f16, kBatch, kOut}, workspace);

  double largest = 0;
  for (std::int64_t m = 0; m < kBatch; ++m) {
    for (std::int64_t n = 0; n < kOut; ++n) {
      double sum = 0;
      for (std::int64_t k = 0; k < kIn; ++k) {
        sum += double{mpq::f16_to_float(x[m * kIn + k])} * double{w[n * kIn + k]};
      }
      largest = std::max(largest, std::abs(sum - double{mpq::f16_to_float(y[m * kOut + n])}));
    }
  }
  const mpq::Version version = host_only_version();
  std::printf("mpq %d.%d.%d, %d CUDA devices: largest error %g\n", version.major, version.minor,
              version.patch, mpq::Device::cuda_count(), largest);
  return largest < 0.05 ? 0 : 1;  // |y| is about 16, half an ulp of f16 there 0.008
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}

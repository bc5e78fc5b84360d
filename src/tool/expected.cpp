#include "expected.hpp"

#include <algorithm>
#include <cmath>

namespace mpq::tool {

namespace {

template <class Weights>
void multiply(Expected& expected, const Weights& data, const std::vector<float>& dense,
              const std::vector<std::uint16_t>& x, DType dtype) {
  const auto n = static_cast<std::size_t>(data.out_features);
  const auto k = static_cast<std::size_t>(data.in_features);
  std::vector<double> values(x.size());
  std::ranges::transform(x, values.begin(), [&](auto bits) { return to_float(bits, dtype); });
  for (std::size_t row = 0; row < x.size() / k; ++row) {
    for (std::size_t channel = 0; channel < n; ++channel) {
      double sum = data.bias.empty() ? 0 : data.bias[channel], size = std::abs(sum);
      for (std::size_t i = 0; i < k; ++i) {
        const double product = values[row * k + i] * double{dense[channel * k + i]};
        sum += product;
        size += std::abs(product);
      }
      expected.y.push_back(sum);
      expected.magnitude.push_back(size);
    }
  }
}

/// Half the distance between 16-bit floats around `value`.
double half_ulp(double value, DType dtype) {
  const int digits = dtype == DType::f16 ? 11 : 8, least = dtype == DType::f16 ? -14 : -126;
  const int exponent = value == 0 ? least : std::max(std::ilogb(value), least);
  return std::ldexp(0.5, exponent - digits + 1);
}

}  // namespace

std::vector<std::uint16_t> make_input(std::int64_t rows, std::int64_t k, DType dtype) {
  std::vector<std::uint16_t> x(static_cast<std::size_t>(rows * k));
  std::uint32_t state = 12345;
  for (auto& value : x) {
    state = state * 1664525u + 1013904223u;
    value = from_float(static_cast<float>(static_cast<std::int32_t>(state)) * 0x1p-31f, dtype);
  }
  return x;
}

Expected::Expected(const WeightsData& weights, const std::vector<float>& dense,
                   const std::vector<std::uint16_t>& x, DType type)
    : in_features(weights.in_features), dtype(type) {
  multiply(*this, weights, dense, x, dtype);
}

Expected::Expected(const MixedWeights& weights, const std::vector<float>& dense,
                   const std::vector<std::uint16_t>& x, DType type)
    : in_features(weights.in_features), dtype(type), mixed(true) {
  multiply(*this, weights, dense, x, dtype);
}

double Expected::largest_share(const std::vector<std::uint16_t>& result,
                               bool weights_rounded) const {
  const double largest = dtype == DType::f16 ? 65504.0 : 0x1.fep127;
  double share = 0;
  for (std::size_t i = 0; i < std::min(result.size(), y.size()); ++i) {
    const double value = to_float(result[i], dtype), reference = y[i];
    double bound = magnitude[i] * 0x1p-17 + half_ulp(reference, dtype);
    if (weights_rounded) {
      bound += magnitude[i] * (dtype == DType::f16 ? 0x1p-11 : 0x1p-8);
      // subnormal weights
      if (dtype == DType::f16) bound += static_cast<double>(in_features) * 0x1p-25;
    }
    // Of pieces each is rounded to 16 bits, and so is x times channel_scale.
    if (mixed) bound += magnitude[i] * (dtype == DType::f16 ? 0x1p-10 : 0x1p-7);
    if (std::isinf(value) && std::abs(reference) + bound >= largest) continue;
    const double each = std::abs(value - reference) / bound;
    if (!(each <= share)) share = std::isnan(each) ? HUGE_VAL : each;
  }
  return share;
}

}  // namespace mpq::tool

#include "support/reference.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "mpq/kernel_shape.hpp"
#include "mpq/pack.hpp"

namespace mpq::test {
namespace {

// Accumulation in float32 commits, per addition, half an ulp of the partial sum: at most 2^-24 of
// sum |x||w|. In a chain of c additions these add up to c * 2^-24 at worst, and to about
// sqrt(c) * 2^-24 as they really fall. Kernels add in several chains: a lane, a warp or a tile of K
// each (tensor cores moreover truncate, 2^-23 each, in steps of 16 columns), so the K of tests, up
// to some thousands, makes chains of at most a few hundred links. 2^-18 = 64 * 2^-24 is what a
// chain of 4096 random or of 64 worst-case roundings reaches. A wrong code, scale or group is off
// by about 1 / K of the magnitude, so for K up to 2^14 it does not hide in it.
constexpr double kAccumulation = 0x1p-18;

double ulp_of(double value, DType dtype) {
  const int digits = dtype == DType::f16 ? 11 : 8;
  const int min_exponent = dtype == DType::f16 ? -14 : -126;
  if (!std::isfinite(value)) return 0;
  const int exponent = value == 0 ? min_exponent : std::max(std::ilogb(value), min_exponent);
  return std::ldexp(1.0, exponent - digits + 1);
}

double element_of(const ConstMatrix& matrix, std::int64_t row, std::int64_t col) {
  std::uint16_t bits;
  std::memcpy(&bits, static_cast<const char*>(matrix.data) + 2 * (row * matrix.ld + col), 2);
  return to_float(bits, matrix.dtype);
}

// The exact weight of input feature k: the scale, code and zero that the form stores, in float64,
// where none of s * q, q - z and s * (q - z) is rounded.
double weight_of(const WeightsData& w, int bits, int code, std::int64_t k, std::int64_t n) {
  const std::int64_t g = !w.g_idx.empty()     ? w.g_idx[static_cast<std::size_t>(k)]
                         : w.group_size == -1 ? 0
                                              : k / w.group_size;
  const auto at = static_cast<std::size_t>(g * w.out_features + n);
  const double scale = to_float(w.scales[at], w.dtype);
  switch (w.zero_kind) {
    case ZeroKind::none:
      return scale * (code - (1 << (bits - 1)));
    case ZeroKind::integer:
      return scale * (code - static_cast<int>(w.zeros[at]));
    case ZeroKind::affine:
      break;
  }
  return scale * code + static_cast<double>(w.affine_zeros[at]);
}

// y of one_hot_rows: the weights [in_features, out_features], rounded once.
std::vector<std::uint16_t> rounded_weights(const AnyQuantizedWeights& weights, DType dtype) {
  const std::int64_t in = data_of(weights).in_features, out = data_of(weights).out_features;
  const auto dense = dequantize(weights);
  std::vector<std::uint16_t> rounded(dense.size());
  for (std::int64_t k = 0; k < in; ++k) {
    for (std::int64_t n = 0; n < out; ++n) {
      rounded[static_cast<std::size_t>(k * out + n)] =
          from_float(dense[static_cast<std::size_t>(n * in + k)], dtype);
    }
  }
  return rounded;
}

}  // namespace

Reference reference_forward(const AnyQuantizedWeights& weights, const ConstMatrix& x_host) {
  AnyQuantizedWeights plain = weights;
  decompress(data_of(plain));
  const WeightsData& w = data_of(plain);
  const int bits = bits_of(plain);
  const std::int64_t k = w.in_features, n = w.out_features, m = x_host.rows;
  if (x_host.cols != k) {
    throw std::logic_error(fmt::format("x has {} columns, the weights {}", x_host.cols, k));
  }
  const std::vector<std::uint8_t> codes = unpack(w.qweight, k, n, bits);

  Reference reference{.rows = m, .cols = n, .in_features = k, .max_x = 0, .y = {}, .magnitude = {}};
  std::vector<double> x(static_cast<std::size_t>(m * k));
  for (std::int64_t r = 0; r < m; ++r) {
    for (std::int64_t c = 0; c < k; ++c) {
      const double value = element_of(x_host, r, c);
      x[static_cast<std::size_t>(r * k + c)] = value;
      if (std::isfinite(value)) reference.max_x = std::max(reference.max_x, std::abs(value));
    }
  }
  reference.y.assign(static_cast<std::size_t>(m * n), 0.0);
  reference.magnitude.assign(reference.y.size(), 0.0);
  std::vector<double> row(static_cast<std::size_t>(n));
  for (std::int64_t c = 0; c < k; ++c) {
    for (std::int64_t i = 0; i < n; ++i) {
      row[static_cast<std::size_t>(i)] =
          weight_of(w, bits, codes[static_cast<std::size_t>(c * n + i)], c, i);
    }
    for (std::int64_t r = 0; r < m; ++r) {
      const double value = x[static_cast<std::size_t>(r * k + c)];
      double* y = reference.y.data() + r * n;
      double* magnitude = reference.magnitude.data() + r * n;
      for (std::int64_t i = 0; i < n; ++i) {
        const double product = value * row[static_cast<std::size_t>(i)];
        y[i] += product;
        magnitude[i] += std::abs(product);
      }
    }
  }
  if (!w.bias.empty()) {
    for (std::size_t i = 0; i < reference.y.size(); ++i) {
      const double bias = w.bias[i % static_cast<std::size_t>(n)];
      reference.y[i] += bias;
      reference.magnitude[i] += std::abs(bias);
    }
  }
  return reference;
}

double error_bound(const Reference& reference, std::size_t element, DType y_dtype,
                   bool weights_rounded) {
  const double magnitude = reference.magnitude[element];
  double bound = kAccumulation * magnitude + 0.5 * ulp_of(reference.y[element], y_dtype);
  if (weights_rounded) {
    // Half an ulp of each weight, and for f16 weights below 2^-14, whose ulp does not shrink with
    // them, half of 2^-24 each.
    bound += magnitude * (y_dtype == DType::f16 ? 0x1p-11 : 0x1p-8);
    if (y_dtype == DType::f16) {
      bound += static_cast<double>(reference.in_features) * reference.max_x * 0x1p-25;
    }
  }
  return bound;
}

std::vector<std::uint16_t> rounded(const Reference& reference, DType dtype) {
  std::vector<std::uint16_t> y;
  y.reserve(reference.y.size());
  for (const double value : reference.y) y.push_back(from_float(static_cast<float>(value), dtype));
  return y;
}

std::vector<std::uint16_t> one_hot_rows(std::int64_t in_features, DType dtype) {
  std::vector<std::uint16_t> x(static_cast<std::size_t>(in_features * in_features), 0);
  for (std::int64_t k = 0; k < in_features; ++k) {
    x[static_cast<std::size_t>(k * in_features + k)] = from_float(1.f, dtype);
  }
  return x;
}

std::optional<std::string> find_weight_mismatch(const AnyQuantizedWeights& weights,
                                                const std::vector<std::uint16_t>& y, DType dtype,
                                                const KernelConfig& config, bool narrow_zeros) {
  const int bits = bits_of(weights);
  const bool general = config.family == KernelFamily::prefill && config.isa == Isa::sm90a &&
                       !multiplies_raised_codes(config, bits) && bits > 1;
  AnyQuantizedWeights plain = weights;
  decompress(data_of(plain));
  const WeightsData& w = data_of(plain);
  const bool affine = w.zero_kind == ZeroKind::affine && !narrow_zeros;
  const bool rounds_more = general && (affine || (bits == 8 && w.dtype != dtype));
  const auto expected = rounded_weights(weights, dtype);
  const std::vector<std::uint8_t> codes = unpack(w.qweight, w.in_features, w.out_features, bits);
  const int digits = dtype == DType::f16 ? 11 : 8;
  if (y.size() != expected.size()) {
    return fmt::format("y has {} elements, the weights {}", y.size(), expected.size());
  }
  for (std::size_t at = 0; at < y.size(); ++at) {
    if (y[at] == expected[at]) continue;
    const auto k = static_cast<std::int64_t>(at) / w.out_features;
    const auto n = static_cast<std::int64_t>(at) % w.out_features;
    const double weight = weight_of(w, bits, codes[at], k, n), value = to_float(y[at], dtype);
    double bound = 0;
    if (rounds_more) {
      // What is left of an affine zero when a multiple of the scale between those of the codes is
      // taken from it: at most half of the last place of a number as large as they are.
      const double zero = -weight_of(w, bits, 0, k, n);
      const double scale = (weight_of(w, bits, 1, k, n) + zero), most = scale * (1 << bits);
      double rest = std::abs(scale) * std::ldexp(0.51, bits - digits);
      if (std::abs(zero) > std::abs(most)) rest = std::abs(zero - most);
      if (zero * scale < 0) rest = std::abs(zero);
      bound = std::ldexp(rest, -digits);
      if (dtype == DType::f16) bound += 0x1p-25;
      // There the scale has a rest, too, whose product is rounded with that.
      if (dtype == DType::bf16) bound += bound + std::ldexp(std::abs(weight) + rest, -2 * digits);
      bound += 0.5 * ulp_of(weight, dtype);
    }
    if (!(std::abs(value - weight) <= bound)) {
      return fmt::format("the weight of column {}, channel {} is {}, expected {} within {}", k, n,
                         value, weight, bound);
    }
  }
  return std::nullopt;
}

std::optional<std::string> find_mismatch(const Reference& reference, const ConstMatrix& y_host,
                                         bool weights_rounded) {
  if (y_host.rows != reference.rows || y_host.cols != reference.cols) {
    return fmt::format("y is [{}, {}], the reference [{}, {}]", y_host.rows, y_host.cols,
                       reference.rows, reference.cols);
  }
  const double largest = y_host.dtype == DType::f16 ? 65504.0 : 0x1.fep127;
  for (std::int64_t r = 0; r < reference.rows; ++r) {
    for (std::int64_t c = 0; c < reference.cols; ++c) {
      const auto at = static_cast<std::size_t>(r * reference.cols + c);
      const double value = element_of(y_host, r, c), expected = reference.y[at];
      const double bound = error_bound(reference, at, y_host.dtype, weights_rounded);
      const bool right =
          std::isnan(expected)   ? std::isnan(value)
          : std::isinf(expected) ? value == expected
          // An overflow is right where the bound reaches past the largest finite value.
          : std::isinf(value) ? std::abs(expected) + bound >= largest &&
                                    std::signbit(value) == std::signbit(expected)
                              : std::abs(value - expected) <= bound;
      if (!right) {
        return fmt::format("y[{}, {}] is {}, expected {} within {} (off by {})", r, c, value,
                           expected, bound, std::abs(value - expected));
      }
    }
  }
  return std::nullopt;
}

}  // namespace mpq::test

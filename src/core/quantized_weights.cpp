#include "mpq/quantized_weights.hpp"

#include <cmath>
#include <limits>
#include <string_view>

#include "core/format.hpp"
#include "core/statistics.hpp"
#include "mpq/error.hpp"

namespace mpq {
namespace {

// Columns and groups are counted in std::int32_t (g_idx), and with both extents below 2^31 no
// product of shapes here leaves std::int64_t.
constexpr std::int64_t kMaxExtent = std::numeric_limits<std::int32_t>::max();

template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ErrorCode::invalid_weights, detail::format(format, std::forward<Args>(args)...));
}

template <class T>
void check_size(const char* name, const std::vector<T>& values, std::int64_t rows,
                std::int64_t cols) {
  if (values.size() != static_cast<std::size_t>(rows * cols)) {
    fail("{} has {} values, expected {} = {} x {}", name, values.size(), rows * cols, rows, cols);
  }
}

template <class T>
void check_empty(const char* name, const std::vector<T>& values, std::string_view reason) {
  if (!values.empty()) {
    fail("{} has {} values, expected none with {}", name, values.size(), reason);
  }
}

void check_double_quantized(const WeightsData& weights) {
  const DoubleQuantized& dq = *weights.double_quantized;
  const std::int64_t n = weights.out_features, groups = weights.groups();
  const bool with_zeros = dq.kind == DoubleQuantized::Kind::scale_and_zero;
  const ZeroKind needed = with_zeros ? ZeroKind::affine : ZeroKind::integer;
  if (weights.zero_kind != needed) {
    fail("double-quantised {} need zero_kind {}, not {}",
         with_zeros ? "scales and zeros" : "scales", to_string(needed),
         to_string(weights.zero_kind));
  }
  if (!dq.per_channel &&
      (dq.dq_group_size < 1 || dq.dq_group_size > n || n % dq.dq_group_size != 0)) {
    fail("dq_group_size is {}, expected a divisor of out_features {}", dq.dq_group_size, n);
  }
  const std::int64_t rows = dq.per_channel ? 1 : groups;
  const std::int64_t cols = dq.per_channel ? n : n / dq.dq_group_size;
  check_size("double_quantized.codes", dq.codes, groups, n);
  check_size("double_quantized.scale_scales", dq.scale_scales, rows, cols);
  check_size("double_quantized.scale_zeros", dq.scale_zeros, rows, cols);
  check_size("double_quantized.zero_scales", dq.zero_scales, with_zeros ? rows : 0, cols);
  check_size("double_quantized.zero_zeros", dq.zero_zeros, with_zeros ? rows : 0, cols);
}

// (code - zero) * scale, each operation rounded to the 16-bit type. Computing in float32 and
// rounding gives the same bits as computing in that type, since float32 has more than twice its
// precision.
float decompress_value(int code, std::uint16_t zero, std::uint16_t scale, DType dtype) {
  const float difference =
      to_float(from_float(static_cast<float>(code) - to_float(zero, dtype), dtype), dtype);
  return to_float(from_float(difference * to_float(scale, dtype), dtype), dtype);
}

// `values` [rows, cols] of 16-bit floats.
void check_finite(const char* name, const std::vector<std::uint16_t>& values, std::int64_t cols,
                  DType dtype, std::string_view cols_name) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (const float value = to_float(values[i], dtype); !std::isfinite(value)) {
      const auto at = static_cast<std::int64_t>(i);
      fail("{} of group {}, {} {} is {}, expected a finite value", name, at / cols, cols_name,
           at % cols, value);
    }
  }
}

void check_finite(const char* name, const std::vector<float>& values, std::int64_t cols) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      const auto at = static_cast<std::int64_t>(i);
      fail("{} of group {}, output channel {} is {}, expected a finite value", name, at / cols,
           at % cols, values[i]);
    }
  }
}

}  // namespace

AnyQuantizedWeights make_quantized_weights(int bits, WeightsData data) {
  switch (bits) {
    case 1:
      return QuantizedWeights<1>{std::move(data)};
    case 2:
      return QuantizedWeights<2>{std::move(data)};
    case 4:
      return QuantizedWeights<4>{std::move(data)};
    case 8:
      return QuantizedWeights<8>{std::move(data)};
    default:
      break;
  }
  throw Error(ErrorCode::unsupported,
              detail::format("weights of {} bits are not supported, expected 1, 2, 4 or 8", bits));
}

void check_structure(const WeightsData& weights, int bits) {
  if (!is_supported_bits(bits)) fail("bits is {}, expected 1, 2, 4 or 8", bits);
  const std::int64_t k = weights.in_features, n = weights.out_features;
  if (k < 1 || k > kMaxExtent) fail("in_features is {}, expected 1 to {}", k, kMaxExtent);
  if (n < 1 || n > kMaxExtent) fail("out_features is {}, expected 1 to {}", n, kMaxExtent);
  if (weights.group_size < 1 && weights.group_size != -1) {
    fail("group_size is {}, expected -1 or at least 1", weights.group_size);
  }
  const std::int64_t groups = weights.groups();
  check_size("qweight", weights.qweight, ceil_div(k * bits, 32), n);

  if (weights.double_quantized) {
    check_double_quantized(weights);
    check_empty("scales", weights.scales, "double-quantised scales");
  } else {
    check_size("scales", weights.scales, groups, n);
  }

  if (weights.zero_kind == ZeroKind::integer) {
    check_size("zeros", weights.zeros, groups, n);
    for (std::size_t i = 0; i < weights.zeros.size(); ++i) {
      if (weights.zeros[i] > (1 << bits)) {
        const auto at = static_cast<std::int64_t>(i);
        fail("zero of group {}, output channel {} is {}, expected 0 to {}", at / n, at % n,
             weights.zeros[i], 1 << bits);
      }
    }
  } else {
    check_empty("zeros", weights.zeros,
                detail::format("zero_kind {}", to_string(weights.zero_kind)));
  }

  if (weights.zero_kind != ZeroKind::affine) {
    check_empty("affine_zeros", weights.affine_zeros,
                detail::format("zero_kind {}", to_string(weights.zero_kind)));
  } else if (weights.double_quantized) {
    check_empty("affine_zeros", weights.affine_zeros, "double-quantised zeros");
  } else {
    check_size("affine_zeros", weights.affine_zeros, groups, n);
  }

  if (!weights.g_idx.empty()) {
    check_size("g_idx", weights.g_idx, k, 1);
    for (std::size_t i = 0; i < weights.g_idx.size(); ++i) {
      if (weights.g_idx[i] < 0 || weights.g_idx[i] >= groups) {
        fail("g_idx of input feature {} is {}, expected 0 to {}", i, weights.g_idx[i], groups - 1);
      }
    }
  }
  if (!weights.bias.empty()) check_size("bias", weights.bias, n, 1);
}

void check_values(const WeightsData& weights, int bits) {
  check_structure(weights, bits);
  const std::int64_t n = weights.out_features;
  if (weights.double_quantized) {
    const DoubleQuantized& dq = *weights.double_quantized;
    const std::int64_t cols = dq.per_channel ? n : n / dq.dq_group_size;
    const std::string_view cols_name = dq.per_channel ? "output channel" : "channel group";
    check_finite("scale_scales", dq.scale_scales, cols, weights.dtype, cols_name);
    check_finite("scale_zeros", dq.scale_zeros, cols, weights.dtype, cols_name);
    check_finite("zero_scales", dq.zero_scales, cols, weights.dtype, cols_name);
    check_finite("zero_zeros", dq.zero_zeros, cols, weights.dtype, cols_name);
    // Finite parameters can still decompress to more than the 16-bit type holds.
    const WeightsData plain = detail::plain_statistics(weights);
    check_finite("decompressed scale", plain.scales, n, weights.dtype, "output channel");
    check_finite("decompressed zero", plain.affine_zeros, n);
  }
  check_finite("scale", weights.scales, n, weights.dtype, "output channel");
  check_finite("zero", weights.affine_zeros, n);
  for (std::size_t i = 0; i < weights.bias.size(); ++i) {
    if (!std::isfinite(weights.bias[i])) {
      fail("bias of output channel {} is {}, expected a finite value", i, weights.bias[i]);
    }
  }
}

void decompress(WeightsData& weights) {
  if (!weights.double_quantized) return;
  const DoubleQuantized dq = std::move(*weights.double_quantized);
  weights.double_quantized.reset();
  const DType dtype = weights.dtype;
  const std::int64_t n = weights.out_features, groups = weights.groups();
  const bool with_zeros = dq.kind == DoubleQuantized::Kind::scale_and_zero;
  weights.scales.resize(static_cast<std::size_t>(groups * n));
  if (with_zeros) weights.affine_zeros.resize(static_cast<std::size_t>(groups * n));
  for (std::int64_t g = 0; g < groups; ++g) {
    for (std::int64_t c = 0; c < n; ++c) {
      const auto at = static_cast<std::size_t>(g * n + c);
      const auto parameter = static_cast<std::size_t>(
          dq.per_channel ? c : g * (n / dq.dq_group_size) + c / dq.dq_group_size);
      const int code = dq.codes[at];
      weights.scales[at] =
          from_float(decompress_value(with_zeros ? code >> 4 : code, dq.scale_zeros[parameter],
                                      dq.scale_scales[parameter], dtype),
                     dtype);
      if (with_zeros) {  // w = s * q - zero: b is its negative, exactly
        weights.affine_zeros[at] = -decompress_value(code & 15, dq.zero_zeros[parameter],
                                                     dq.zero_scales[parameter], dtype);
      }
    }
  }
}

WeightsData detail::plain_statistics(const WeightsData& weights) {
  WeightsData plain;
  plain.in_features = weights.in_features;
  plain.out_features = weights.out_features;
  plain.group_size = weights.group_size;
  plain.dtype = weights.dtype;
  plain.zero_kind = weights.zero_kind;
  plain.scales = weights.scales;
  plain.zeros = weights.zeros;
  plain.affine_zeros = weights.affine_zeros;
  plain.g_idx = weights.g_idx;
  plain.bias = weights.bias;
  plain.double_quantized = weights.double_quantized;
  decompress(plain);
  return plain;
}

}  // namespace mpq

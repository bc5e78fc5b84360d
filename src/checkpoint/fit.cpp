// Weights of one form in the form of another: exactly where that can be, else the nearest.

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "checkpoint/encoding.hpp"
#include "checkpoint/text.hpp"
#include "core/statistics.hpp"
#include "cpu/thread_pool.hpp"
#include "mpq/pack.hpp"

namespace mpq::detail {

namespace {

// From this group size on GBA stores scales and zeros as they are (gba.cpp).
constexpr std::int64_t kPlainGroupSize = 256;
// Channels that share parameters where nothing else is asked for, as in most published models.
constexpr std::int64_t kUsualDqGroup = 32;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::int32_t group_of(const WeightsData& weights, std::int64_t k) {
  if (!weights.g_idx.empty()) return weights.g_idx[static_cast<std::size_t>(k)];
  return weights.group_size == -1 ? 0 : static_cast<std::int32_t>(k / weights.group_size);
}

/// The real number z of w = s * (q - z), for every group and channel. NaN: s is 0 and b is not, so
/// that there is none.
std::vector<double> real_zeros(const WeightsData& weights, int bits) {
  std::vector<double> zeros(weights.scales.size(), 1 << (bits - 1));
  for (std::size_t i = 0; i < zeros.size(); ++i) {
    if (weights.zero_kind == ZeroKind::integer) zeros[i] = weights.zeros[i];
    if (weights.zero_kind != ZeroKind::affine) continue;
    const double s = to_float(weights.scales[i], weights.dtype), b = weights.affine_zeros[i];
    if (s != 0) {
      zeros[i] = -b / s;
    } else if (b != 0) {
      zeros[i] = std::numeric_limits<double>::quiet_NaN();
    }
  }
  return zeros;
}

/// Replaces each code by nearest(code, index of its scale), clamped to what the width holds.
/// Whether no code was clamped.
template <class Nearest>
bool rewrite_codes(WeightsData& weights, int bits, const Nearest& nearest) {
  const std::int64_t k = weights.in_features, n = weights.out_features;
  auto codes = unpack(weights.qweight, k, n, bits);
  const double most = (1 << bits) - 1;
  std::vector<std::uint8_t> clamped(static_cast<std::size_t>(k));
  parallel_for(k, 16, [&](Range range) {
    for (std::int64_t i = range.begin; i < range.end; ++i) {
      const std::int64_t first = group_of(weights, i) * n;
      for (std::int64_t c = 0; c < n; ++c) {
        auto& code = codes[static_cast<std::size_t>(i * n + c)];
        const double wanted = nearest(code, static_cast<std::size_t>(first + c));
        const double rounded = std::clamp(std::nearbyint(wanted), 0.0, most);
        if (rounded != wanted) clamped[static_cast<std::size_t>(i)] = 1;
        code = static_cast<std::uint8_t>(rounded);
      }
    }
  });
  weights.qweight = pack(codes, k, n, bits);
  return std::ranges::find(clamped, 1) == clamped.end();
}

/// The smallest and largest code of every group and channel.
struct CodeRange {
  std::vector<std::uint8_t> low, high;

  CodeRange(const WeightsData& weights, int bits)
      : low(weights.scales.size(), 255), high(weights.scales.size(), 0) {
    const std::int64_t n = weights.out_features;
    const auto codes = unpack(weights.qweight, weights.in_features, n, bits);
    for (std::int64_t k = 0; k < weights.in_features; ++k) {
      const std::int64_t first = group_of(weights, k) * n;
      for (std::int64_t c = 0; c < n; ++c) {
        const std::uint8_t code = codes[static_cast<std::size_t>(k * n + c)];
        const auto at = static_cast<std::size_t>(first + c);
        low[at] = std::min(low[at], code);
        high[at] = std::max(high[at], code);
      }
    }
  }
};

/// How the codes of one group and channel change: q' = factor * q + offset.
struct CodeMap {
  double factor = 1, offset = 0;
};

/// Brings one group and channel to an integer zero in [least, most] and says what becomes of its
/// codes. `scale` may change.
class ZeroFit {
 public:
  ZeroFit(int bits, int least, int most) : largest_((1 << bits) - 1), least_(least), most_(most) {}

  /// w = b throughout, with a scale of 0: as w = s * (q - z) with q - z = 1 (or -1, where there is
  /// no code above z) and s = b.
  CodeMap constant(float b, float& scale, std::uint16_t& zero) const {
    const bool above = least_ < largest_;
    zero = static_cast<std::uint16_t>(least_);
    scale = above ? b : -b;
    return {0, double(above ? least_ + 1 : least_ - 1)};
  }

  /// The nearest integer zero, if that cuts off at most a step of the codes [low, high].
  std::optional<CodeMap> shifted(double real_zero, int low, int high, std::uint16_t& zero) const {
    const double nearest = clamped(real_zero), shift = nearest - real_zero;
    if (low + shift < -1 || high + shift > largest_ + 1) return std::nullopt;
    zero = static_cast<std::uint16_t>(nearest);
    return CodeMap{1, shift};
  }

  /// A new scale, for a zero far outside of what the format has: the weights' range, with 0 in it,
  /// over all codes.
  CodeMap spread(double real_zero, int low, int high, DType dtype, float& scale,
                 std::uint16_t& zero) const {
    const double a = scale * (low - real_zero), b = scale * (high - real_zero);
    const double least = std::min({a, b, 0.0}), most = std::max({a, b, 0.0});
    const float wanted =
        to_float(from_float(static_cast<float>((most - least) / largest_), dtype), dtype);
    if (wanted == 0) {  // too small for the type: all weights become 0
      zero = static_cast<std::uint16_t>(least_);
      scale = 0;
      return {0, double(least_)};
    }
    const double nearest = clamped(-least / wanted);
    zero = static_cast<std::uint16_t>(nearest);
    const double factor = double{scale} / wanted;
    scale = wanted;
    return {factor, nearest - factor * real_zero};
  }

 private:
  double clamped(double zero) const {
    return std::clamp(std::nearbyint(zero), double(least_), double(most_));
  }
  int largest_, least_, most_;
};

}  // namespace

Fitted fit_integer_zeros(WeightsData weights, int bits, int least, int most) {
  decompress(weights);
  const auto real = real_zeros(weights, bits);
  Fitted fitted{std::move(weights), true};
  WeightsData& data = fitted.weights;
  const ZeroFit fit(bits, least, most);
  std::vector<std::uint16_t> zeros(real.size());
  std::vector<CodeMap> maps(real.size());
  std::optional<CodeRange> range;  // only where something changes
  for (std::size_t i = 0; i < real.size(); ++i) {
    float scale = to_float(data.scales[i], data.dtype);
    if (std::isnan(real[i])) {
      maps[i] = fit.constant(data.affine_zeros[i], scale, zeros[i]);
    } else if (real[i] >= least && real[i] <= most && real[i] == std::nearbyint(real[i])) {
      zeros[i] = static_cast<std::uint16_t>(real[i]);
      continue;
    } else {
      if (!range) range.emplace(data, bits);
      const auto shifted = fit.shifted(real[i], range->low[i], range->high[i], zeros[i]);
      maps[i] =
          shifted ? *shifted
                  : fit.spread(real[i], range->low[i], range->high[i], data.dtype, scale, zeros[i]);
    }
    data.scales[i] = from_float(scale, data.dtype);
    const bool held = to_float(data.scales[i], data.dtype) == scale;
    fitted.exact = fitted.exact && held && (maps[i].factor == 1 || std::isnan(real[i]));
  }
  const auto changes = [](const CodeMap& map) { return map.factor != 1 || map.offset != 0; };
  if (std::ranges::any_of(maps, changes) &&
      !rewrite_codes(data, bits, [&](std::uint8_t code, std::size_t at) {
        return maps[at].factor * code + maps[at].offset;
      })) {
    fitted.exact = false;
  }
  data.zeros = std::move(zeros);
  data.affine_zeros.clear();
  data.zero_kind = ZeroKind::integer;
  return fitted;
}

Fitted fit_f16_scales(Fitted fitted) {
  WeightsData& data = fitted.weights;
  if (data.dtype == DType::f16) return fitted;
  for (auto& scale : data.scales) {
    const float value = to_float(scale, data.dtype);
    scale = float_to_f16(value);
    if (f16_to_float(scale) == value) continue;
    fitted.exact = false;
    if (std::isfinite(value) && !std::isfinite(f16_to_float(scale))) {
      fail(ErrorCode::unsupported, "a scale is {}, beyond the largest f16 of 65504", value);
    }
  }
  data.dtype = DType::f16;
  return fitted;
}

namespace {

/// Parameters with which four bits hold values of [low, high].
struct Nibbles {
  std::uint16_t scale = 0, zero = 0;
  DType dtype;

  Nibbles(float low, float high, DType dtype_) : dtype(dtype_) {
    float step = to_float(from_float((high - low) / 15.0f, dtype), dtype);
    // Values that hardly differ: a zero of so many steps would not be held by the type.
    if (std::abs(low) >= 1024 * step)
      step = low == 0 ? 1.0f : to_float(from_float(low, dtype), dtype);
    scale = from_float(step, dtype);
    zero = from_float(-low / step, dtype);
  }
  std::uint8_t code(float value) const {
    const float steps = value / to_float(scale, dtype) + to_float(zero, dtype);
    return static_cast<std::uint8_t>(std::clamp(std::nearbyint(steps), 0.0f, 15.0f));
  }
};

/// The nearest double-quantised statistics to plain affine ones.
DoubleQuantized double_quantized(const WeightsData& plain) {
  const std::int64_t n = plain.out_features, groups = plain.groups();
  DoubleQuantized dq;
  dq.dq_group_size = n % kUsualDqGroup == 0 ? kUsualDqGroup : n;
  dq.codes.resize(plain.scales.size());
  for (std::int64_t first = 0; first < groups * n; first += dq.dq_group_size) {
    float low[2] = {kInfinity, kInfinity}, high[2] = {-kInfinity, -kInfinity};
    for (std::int64_t c = 0; c < dq.dq_group_size; ++c) {
      const auto at = static_cast<std::size_t>(first + c);
      const float values[2] = {to_float(plain.scales[at], plain.dtype), -plain.affine_zeros[at]};
      for (int i = 0; i < 2; ++i) {
        low[i] = std::min(low[i], values[i]);
        high[i] = std::max(high[i], values[i]);
      }
    }
    const Nibbles scales(low[0], high[0], plain.dtype), zeros(low[1], high[1], plain.dtype);
    dq.scale_scales.push_back(scales.scale);
    dq.scale_zeros.push_back(scales.zero);
    dq.zero_scales.push_back(zeros.scale);
    dq.zero_zeros.push_back(zeros.zero);
    for (std::int64_t c = 0; c < dq.dq_group_size; ++c) {
      const auto at = static_cast<std::size_t>(first + c);
      const unsigned high_code = scales.code(to_float(plain.scales[at], plain.dtype));
      const unsigned low_code = zeros.code(-plain.affine_zeros[at]);
      dq.codes[at] = static_cast<std::uint8_t>(high_code << 4 | low_code);
    }
  }
  return dq;
}

/// Any zeros as affine ones; b = -s * z is exact in float32.
void to_affine(WeightsData& weights, int bits) {
  if (weights.zero_kind == ZeroKind::affine) return;
  const auto zeros = real_zeros(weights, bits);
  weights.affine_zeros.resize(zeros.size());
  for (std::size_t i = 0; i < zeros.size(); ++i) {
    weights.affine_zeros[i] =
        -to_float(weights.scales[i], weights.dtype) * static_cast<float>(zeros[i]);
  }
  weights.zeros.clear();
  weights.zero_kind = ZeroKind::affine;
}

}  // namespace

Fitted fit_gba(WeightsData weights, int bits) {
  const std::int64_t size = weights.group_size == -1 ? weights.in_features : weights.group_size;
  Fitted fitted{std::move(weights), true};
  WeightsData& data = fitted.weights;
  const bool plain = size >= kPlainGroupSize;
  if (data.double_quantized && !plain) return fitted;
  decompress(data);
  to_affine(data, bits);
  const WeightsData before = plain_statistics(data);
  if (plain) {
    for (auto& zero : data.affine_zeros) zero = to_float(from_float(zero, data.dtype), data.dtype);
  } else {
    data.double_quantized = double_quantized(data);
    data.scales.clear();
    data.affine_zeros.clear();
  }
  const WeightsData after = plain_statistics(data);
  if (after.scales == before.scales && after.affine_zeros == before.affine_zeros) return fitted;
  fitted.exact = false;
  rewrite_codes(data, bits, [&](std::uint8_t code, std::size_t at) {
    const double s = to_float(after.scales[at], data.dtype);
    const double w =
        double{to_float(before.scales[at], data.dtype)} * code + double{before.affine_zeros[at]};
    return s == 0 ? 0.0 : (w - double{after.affine_zeros[at]}) / s;
  });
  return fitted;
}

}  // namespace mpq::detail

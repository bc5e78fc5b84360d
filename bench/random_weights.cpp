#include "random_weights.hpp"

#include <algorithm>
#include <cmath>
#include <random>
#include <thread>
#include <vector>

namespace mpq::bench {
namespace {

// Finaliser of splitmix64: random bits from a counter, so that threads need no common state.
constexpr std::uint64_t mix(std::uint64_t v) noexcept {
  v += 0x9e3779b97f4a7c15u;
  v = (v ^ (v >> 30)) * 0xbf58476d1ce4e5b9u;
  v = (v ^ (v >> 27)) * 0x94d049bb133111ebu;
  return v ^ (v >> 31);
}

// values[i] = make(random bits of i), by all cores.
template <class T, class Make>
void fill(std::vector<T>& values, std::size_t count, std::uint64_t seed, const Make& make) {
  values.resize(count);
  const std::size_t cores = std::max(1u, std::thread::hardware_concurrency());
  constexpr std::size_t kWorthAThread = std::size_t{1} << 20;
  const std::size_t parts = std::clamp<std::size_t>(count / kWorthAThread, 1, cores);
  const auto fill_part = [&](std::size_t part) {
    const std::size_t end = count * (part + 1) / parts;
    for (std::size_t i = count * part / parts; i < end; ++i) values[i] = make(mix(seed + i));
  };
  std::vector<std::jthread> threads;
  for (std::size_t part = 1; part < parts; ++part) threads.emplace_back(fill_part, part);
  fill_part(0);
}

// log2 of scales, but for their mantissas: weights are at most about 1/2.
constexpr int scale_exponent(int bits) {
  return bits == 8 ? -10 : -6;
}

// 2^exponent with a random mantissa.
std::uint16_t random_scale(std::uint64_t random, int exponent, DType dtype) {
  const auto bits = static_cast<std::uint32_t>(random >> 32);
  return static_cast<std::uint16_t>(
      dtype == DType::f16 ? static_cast<std::uint32_t>(15 + exponent) << 10 | (bits & 0x3ffu)
                          : static_cast<std::uint32_t>(127 + exponent) << 7 | (bits & 0x7fu));
}

// Scales from 2^exponent to twice that, affine zeros in (-range, 0].
DoubleQuantized random_statistics(const LayerSpec& spec, int exponent, float range,
                                  std::uint64_t seed) {
  const auto n = static_cast<std::size_t>(spec.shape.n);
  const std::size_t groups = static_cast<std::size_t>(spec.groups());
  const std::size_t parts = groups * n / LayerSpec::kDqGroupSize;
  const auto all = [&](float value) {
    return std::vector<std::uint16_t>(parts, from_float(value, spec.dtype));
  };
  DoubleQuantized dq{.dq_group_size = LayerSpec::kDqGroupSize,
                     .codes = {},
                     .scale_scales = all(std::ldexp(1.f, exponent - 4)),
                     .scale_zeros = all(-16.f),
                     .zero_scales = all(range / 16),
                     .zero_zeros = all(0.f)};
  fill(dq.codes, groups * n, seed,
       [](std::uint64_t random) { return static_cast<std::uint8_t>(random >> 56); });
  return dq;
}

// Even over [0, 1).
float random_unit(std::uint64_t random) {
  return static_cast<float>(random >> 40) * 0x1p-24f;
}

}  // namespace

AnyQuantizedWeights make_random_weights(const LayerSpec& spec, bool act_order, bool bias,
                                        std::uint64_t seed) {
  WeightsData w;
  w.in_features = spec.shape.k;
  w.out_features = spec.shape.n;
  w.group_size = spec.group_size;
  w.dtype = spec.zeros == Zeros::integer_f16 ? DType::f16 : spec.dtype;
  w.zero_kind = kind_of(spec.zeros);

  const auto n = static_cast<std::size_t>(spec.shape.n);
  const auto words = static_cast<std::size_t>(ceil_div(spec.shape.k * spec.bits, 32)) * n;
  const auto statistics = static_cast<std::size_t>(spec.groups()) * n;
  const auto stream = [&](std::uint64_t i) { return mix(mix(seed) + i); };  // one per tensor

  // Every pattern of bits is a code.
  fill(w.qweight, words, stream(0),
       [](std::uint64_t random) { return static_cast<std::uint32_t>(random >> 32); });
  const std::uint64_t zero_count = (std::uint64_t{1} << spec.bits) + 1;  // 0 ... 2^bits
  const int exponent = scale_exponent(spec.bits);
  // Of affine zeros, downwards.
  const float range = std::ldexp(static_cast<float>(zero_count - 1), exponent);
  if (double_quantized(spec.zeros)) {
    w.double_quantized = random_statistics(spec, exponent, range, stream(1));
  } else {
    fill(w.scales, statistics, stream(1),
         [&](std::uint64_t random) { return random_scale(random, exponent, w.dtype); });
  }
  if (w.zero_kind == ZeroKind::integer) {
    fill(w.zeros, statistics, stream(2), [&](std::uint64_t random) {
      return static_cast<std::uint16_t>((random >> 32) % zero_count);
    });
  } else if (spec.zeros == Zeros::affine || spec.zeros == Zeros::affine_f32) {
    fill(w.affine_zeros, statistics, stream(2), [&](std::uint64_t random) {
      const float zero = -range * random_unit(random);
      if (spec.zeros == Zeros::affine_f32) return zero;
      return to_float(from_float(zero, spec.dtype), spec.dtype);
    });
  }
  if (act_order) {
    w.g_idx.resize(static_cast<std::size_t>(spec.shape.k));
    for (std::size_t k = 0; k < w.g_idx.size(); ++k) {
      w.g_idx[k] = spec.group_size == -1
                       ? 0
                       : static_cast<std::int32_t>(k / static_cast<std::size_t>(spec.group_size));
    }
    std::shuffle(w.g_idx.begin(), w.g_idx.end(), std::mt19937_64(stream(3)));
  }
  if (bias) {
    fill(w.bias, n, stream(4), [](std::uint64_t random) { return 2 * random_unit(random) - 1; });
  }
  return make_quantized_weights(spec.bits, std::move(w));
}

}  // namespace mpq::bench

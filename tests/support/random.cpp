#include "support/random.hpp"

#include <cmath>
#include <numbers>
#include <utility>

#include "mpq/pack.hpp"

namespace mpq::test {

std::uint64_t Random::bits() noexcept {
  std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

std::int64_t Random::integer(std::int64_t low, std::int64_t high) noexcept {
  // The bias of the remainder is below 2^-32 for the ranges that tests use.
  return low + static_cast<std::int64_t>(bits() % static_cast<std::uint64_t>(high - low + 1));
}

double Random::uniform() noexcept {
  return static_cast<double>(bits() >> 11) * 0x1p-53;
}

double Random::normal() noexcept {  // Box and Muller, one of the two values
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
  return radius * std::cos(2.0 * std::numbers::pi * uniform());
}

namespace {

std::vector<std::int32_t> random_groups(const WeightsSpec& spec, std::int64_t groups,
                                        Random& random) {
  std::vector<std::int32_t> g_idx(static_cast<std::size_t>(spec.k));
  const bool irregular = spec.seed % 2 == 1;
  const std::int64_t size = spec.group_size == -1 ? spec.k : spec.group_size;
  for (std::size_t i = 0; i < g_idx.size(); ++i) {
    g_idx[i] = static_cast<std::int32_t>(irregular ? random.integer(0, groups - 1)
                                                   : static_cast<std::int64_t>(i) / size);
  }
  for (std::size_t i = g_idx.size(); i > 1; --i) {
    std::swap(g_idx[i - 1],
              g_idx[static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(i) - 1))]);
  }
  return g_idx;
}

// size: of scales.
void add_plain_statistics(const WeightsSpec& spec, std::size_t size, Random& random,
                          WeightsData& data) {
  data.scales.resize(size);
  for (auto& scale : data.scales) {
    const double value = spec.exact ? std::ldexp(1.0, static_cast<int>(random.integer(-2, 1)))
                                    : std::exp2(random.uniform() * 2.0 - 1.0) / 64.0;
    scale = from_float(static_cast<float>(value), spec.scale_dtype);
  }
  if (spec.zero_kind == ZeroKind::integer) {
    data.zeros.resize(size);
    for (auto& zero : data.zeros) {
      zero = static_cast<std::uint16_t>(random.integer(0, 1 << spec.bits));
    }
  } else if (spec.zero_kind == ZeroKind::affine) {
    data.affine_zeros.resize(size);
    for (std::size_t i = 0; i < size; ++i) {
      // Around the middle of the codes, as asymmetric quantisers place it; where narrow_zeros does
      // not say otherwise with all of float32's bits, so that a kernel that rounds b early is found
      // out.
      const int middle = 1 << (spec.bits - 1);
      const double scale = to_float(data.scales[i], spec.scale_dtype);
      data.affine_zeros[i] =
          spec.exact ? static_cast<float>(random.integer(-middle, middle))
                     : static_cast<float>(-scale * (middle + random.normal() * 0.25 * middle));
      if (spec.narrow_zeros) {
        data.affine_zeros[i] =
            to_float(from_float(data.affine_zeros[i], spec.scale_dtype), spec.scale_dtype);
      }
    }
  }
}

// Scales of about 2^-6, zeros around the middle of the codes.
DoubleQuantized random_statistics(const WeightsSpec& spec, std::int64_t groups, Random& random) {
  const std::int64_t parts = groups * (spec.n / spec.dq_group_size);
  const auto around = [&](double value) {
    std::vector<std::uint16_t> values(static_cast<std::size_t>(parts));
    for (auto& v : values) {
      v = from_float(static_cast<float>(value * (1 + 0.25 * random.uniform())), spec.scale_dtype);
    }
    return values;
  };
  DoubleQuantized dq{.dq_group_size = spec.dq_group_size,
                     .codes = {},
                     .scale_scales = around(0x1p-10),
                     .scale_zeros = around(-12.3),
                     .zero_scales = around(0x1p-11 * (1 << spec.bits)),
                     .zero_zeros = around(-4.7)};
  dq.codes.resize(static_cast<std::size_t>(groups * spec.n));
  for (auto& code : dq.codes) code = static_cast<std::uint8_t>(random.bits() >> 56);
  return dq;
}

}  // namespace

AnyQuantizedWeights random_weights(const WeightsSpec& spec) {
  Random random(spec.seed * 0x2545f4914f6cdd1du + static_cast<std::uint64_t>(spec.bits));
  WeightsData data;
  data.in_features = spec.k;
  data.out_features = spec.n;
  data.group_size = spec.group_size;
  data.dtype = spec.scale_dtype;
  data.zero_kind = spec.zero_kind;
  const auto size = static_cast<std::size_t>(data.groups() * spec.n);

  std::vector<std::uint8_t> codes(static_cast<std::size_t>(spec.k * spec.n));
  for (auto& code : codes) code = static_cast<std::uint8_t>(random.bits() >> (64 - spec.bits));
  data.qweight = pack(codes, spec.k, spec.n, spec.bits);
  // Bits past K in the last row are ignored by definition: make them say something wrong.
  if (const auto used = static_cast<int>(spec.k * spec.bits % 32); used != 0) {
    const auto rows = ceil_div(spec.k * spec.bits, 32);
    for (std::int64_t n = 0; n < spec.n; ++n) {
      data.qweight[static_cast<std::size_t>((rows - 1) * spec.n + n)] |=
          static_cast<std::uint32_t>(random.bits()) << used;
    }
  }

  if (spec.dq_group_size != 0) {
    data.double_quantized = random_statistics(spec, data.groups(), random);
  } else {
    add_plain_statistics(spec, size, random, data);
  }
  if (spec.act_order) data.g_idx = random_groups(spec, data.groups(), random);
  if (spec.bias) {
    data.bias.resize(static_cast<std::size_t>(spec.n));
    for (auto& bias : data.bias) {
      bias = spec.exact ? static_cast<float>(random.integer(-8, 8))
                        : static_cast<float>(random.normal());
    }
  }
  return make_quantized_weights(spec.bits, std::move(data));
}

std::vector<float> random_weight(std::int64_t n, std::int64_t k, std::uint64_t seed) {
  Random random(seed);
  std::vector<float> weight(static_cast<std::size_t>(n * k));
  for (auto& w : weight) w = static_cast<float>(random.normal() * 0.02);
  return weight;
}

std::vector<std::uint16_t> random_activations(std::int64_t m, std::int64_t ld, DType dtype,
                                              std::uint64_t seed, bool exact) {
  Random random(seed + 0x5851f42d4c957f2du);
  std::vector<std::uint16_t> x(static_cast<std::size_t>(m * ld));
  for (auto& value : x) {
    value = from_float(
        exact ? static_cast<float>(random.integer(-4, 4)) : static_cast<float>(random.normal()),
        dtype);
  }
  return x;
}

}  // namespace mpq::test

#include "mpq/mixed_weights.hpp"

#include <algorithm>
#include <map>

#include "core/format.hpp"
#include "cpu/thread_pool.hpp"
#include "mpq/error.hpp"
#include "mpq/pack.hpp"

namespace mpq {
namespace {

template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ErrorCode::invalid_weights, detail::format(format, std::forward<Args>(args)...));
}

void check_size(const char* name, std::size_t size, std::int64_t expected) {
  if (size != static_cast<std::size_t>(expected)) {
    fail("{} has {} values, expected {}", name, size, expected);
  }
}

std::int64_t end_of(const MixedWeights& weights, std::size_t group) {
  return group + 1 < weights.groups.size() ? weights.groups[group + 1].first : weights.in_features;
}

std::int32_t feature_at(const MixedWeights& weights, std::int64_t k) {
  return weights.feature.empty() ? static_cast<std::int32_t>(k)
                                 : weights.feature[static_cast<std::size_t>(k)];
}

/// Groups of one width as weights of their own. Their sizes may differ: g_idx says what is whose,
/// and group_size is one with which there are at least as many groups; those too many are unused.
MixedPiece piece_of(const MixedWeights& weights, int bits, const std::vector<std::size_t>& groups) {
  const std::int64_t n = weights.out_features;
  MixedPiece piece;
  WeightsData data;
  std::vector<std::uint8_t> codes;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const std::int64_t first = weights.groups[groups[i]].first, end = end_of(weights, groups[i]);
    for (std::int64_t k = first; k < end; ++k) {
      piece.features.push_back(feature_at(weights, k));
      data.g_idx.push_back(static_cast<std::int32_t>(i));
    }
    codes.insert(codes.end(), weights.codes.begin() + first * n, weights.codes.begin() + end * n);
  }
  data.in_features = static_cast<std::int64_t>(piece.features.size());
  data.out_features = n;
  data.dtype = weights.dtype;
  data.zero_kind = ZeroKind::affine;
  const auto count = static_cast<std::int64_t>(groups.size());
  const std::int64_t widest = end_of(weights, groups[0]) - weights.groups[groups[0]].first;
  const auto usual = [&](std::int64_t k) { return k / widest; };
  bool regular = true;
  for (std::size_t k = 0; k < data.g_idx.size(); ++k) {
    regular = regular && data.g_idx[k] == usual(static_cast<std::int64_t>(k));
  }
  data.group_size =
      static_cast<int>(regular ? widest : std::max<std::int64_t>(1, data.in_features / count));
  if (regular) data.g_idx.clear();
  data.scales.resize(static_cast<std::size_t>(data.groups() * n));
  data.affine_zeros.resize(data.scales.size());
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const auto from = static_cast<std::ptrdiff_t>(groups[i]) * n;
    const auto to = static_cast<std::ptrdiff_t>(i) * n;
    std::copy_n(weights.scales.begin() + from, n, data.scales.begin() + to);
    std::copy_n(weights.affine_zeros.begin() + from, n, data.affine_zeros.begin() + to);
  }
  data.qweight = pack(codes, data.in_features, n, bits);
  piece.weights = make_quantized_weights(bits, std::move(data));
  return piece;
}

}  // namespace

void check_structure(const MixedWeights& weights) {
  const std::int64_t k = weights.in_features, n = weights.out_features;
  const auto groups = static_cast<std::int64_t>(weights.groups.size());
  if (k < 1 || n < 1 || groups < 1) {
    fail("in_features {}, out_features {} and {} groups, expected at least 1 each", k, n, groups);
  }
  check_size("codes", weights.codes.size(), k * n);
  check_size("scales", weights.scales.size(), groups * n);
  check_size("affine_zeros", weights.affine_zeros.size(), groups * n);
  if (!weights.channel_scale.empty()) {
    check_size("channel_scale", weights.channel_scale.size(), k);
  }
  if (!weights.bias.empty()) check_size("bias", weights.bias.size(), n);
  std::int64_t last = -1;
  for (const auto& group : weights.groups) {
    if (group.bits < 1 || group.bits > 8) fail("a group of {} bits, expected 1 to 8", group.bits);
    if (group.first <= last || group.first >= k || (last == -1 && group.first != 0)) {
      fail("a group begins at {} after one at {}, of {} input features", group.first, last, k);
    }
    last = group.first;
  }
  if (weights.feature.empty()) return;
  check_size("feature", weights.feature.size(), k);
  std::vector<bool> seen(weights.feature.size());
  for (std::size_t i = 0; i < seen.size(); ++i) {
    const std::int32_t feature = weights.feature[i];
    if (feature < 0 || feature >= k || seen[static_cast<std::size_t>(feature)]) {
      fail("feature of place {} is {}, expected each of 0 to {} once", i, feature, k - 1);
    }
    seen[static_cast<std::size_t>(feature)] = true;
  }
}

std::vector<float> dequantize(const MixedWeights& weights) {
  check_structure(weights);
  const std::int64_t k = weights.in_features, n = weights.out_features;
  std::vector<float> out(static_cast<std::size_t>(k * n));
  detail::parallel_for(n, 16, [&](detail::Range range) {
    for (std::size_t g = 0; g < weights.groups.size(); ++g) {
      for (std::int64_t place = weights.groups[g].first; place < end_of(weights, g); ++place) {
        const std::int64_t feature = feature_at(weights, place);
        for (std::int64_t c = range.begin; c < range.end; ++c) {
          const auto at = g * static_cast<std::size_t>(n) + static_cast<std::size_t>(c);
          const float q = weights.codes[static_cast<std::size_t>(place * n + c)];
          float w = to_float(weights.scales[at], weights.dtype) * q + weights.affine_zeros[at];
          if (!weights.channel_scale.empty()) {
            w *= weights.channel_scale[static_cast<std::size_t>(feature)];
          }
          out[static_cast<std::size_t>(c * k + feature)] = w;
        }
      }
    }
  });
  return out;
}

std::vector<MixedPiece> pieces_of(const MixedWeights& weights) {
  check_structure(weights);
  std::map<int, std::vector<std::size_t>, std::greater<>> by_width;
  for (std::size_t g = 0; g < weights.groups.size(); ++g) {
    by_width[weights.groups[g].bits].push_back(g);
  }
  for (const auto& [bits, groups] : by_width) {
    if (is_supported_bits(bits)) continue;
    throw Error(
        ErrorCode::unsupported,
        detail::format("{} of {} groups have {} bits, which no Linear runs: 1, 2, 4 and 8 do",
                       groups.size(), weights.groups.size(), bits));
  }
  std::vector<MixedPiece> pieces;
  for (const auto& [bits, groups] : by_width) pieces.push_back(piece_of(weights, bits, groups));
  data_of(pieces.front().weights).bias = weights.bias;
  return pieces;
}

}  // namespace mpq

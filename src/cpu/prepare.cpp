#include "cpu/prepare.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <numeric>

#include "core/statistics.hpp"
#include "cpu/thread_pool.hpp"

namespace mpq::detail::cpu {
namespace {

// Stable: columns of a group stay in order.
std::vector<std::int32_t> sort_by_group(const std::vector<std::int32_t>& g_idx,
                                        std::int64_t groups) {
  std::vector<std::int32_t> next(static_cast<std::size_t>(groups) + 1, 0);
  for (const std::int32_t g : g_idx) ++next[static_cast<std::size_t>(g) + 1];
  std::partial_sum(next.begin(), next.end(), next.begin());
  std::vector<std::int32_t> source(g_idx.size());
  for (std::size_t i = 0; i < g_idx.size(); ++i) {
    source[static_cast<std::size_t>(next[static_cast<std::size_t>(g_idx[i])]++)] =
        static_cast<std::int32_t>(i);
  }
  return source;
}

// Group of each of the layer's columns; padding belongs to the last column's.
std::vector<std::int32_t> groups_of_columns(const WeightsData& weights, const PreparedLayer& to) {
  std::vector<std::int32_t> groups(static_cast<std::size_t>(to.layer.k_padded));
  const std::int64_t size = weights.group_size == -1 ? weights.in_features : weights.group_size;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const auto column = std::min(static_cast<std::int64_t>(i), weights.in_features - 1);
    groups[i] =
        to.source.empty()
            ? static_cast<std::int32_t>(column / size)
            : weights.g_idx[static_cast<std::size_t>(to.source[static_cast<std::size_t>(column)])];
  }
  return groups;
}

// Finds where groups begin, and with that how the kernels walk along K.
void order_groups(const WeightsData& weights, PreparedLayer& to) {
  Layer& layer = to.layer;
  const int steps = 32 / layer.bits, chunk = chunk_columns(layer.bits);
  const std::int64_t k = weights.in_features;
  const std::int64_t size = layer.groups == 1 ? round_up(k, chunk) : weights.group_size;
  std::vector<std::int32_t> groups = groups_of_columns(weights, to);
  bool regular = size % chunk == 0 || (size % kStep == 0 && chunk % size == 0);
  for (std::int64_t i = 0; regular && i < k; ++i) {
    regular = groups[static_cast<std::size_t>(i)] == i / size;
  }
  if (regular) {
    layer.run_steps = static_cast<int>(std::min<std::int64_t>(steps, size / kStep));
    layer.runs_per_group = std::max<std::int64_t>(1, size / chunk);
    return;
  }
  layer.run_steps = 0;
  to.column_group = std::move(groups);
  to.step_group.resize(to.column_group.size() / kStep);
  for (std::size_t step = 0; step < to.step_group.size(); ++step) {
    const auto begin = to.column_group.begin() + static_cast<std::ptrdiff_t>(step * kStep);
    const bool one = std::all_of(begin, begin + kStep, [&](std::int32_t g) { return g == *begin; });
    to.step_group[step] = one ? *begin : -1;
  }
  layer.column_group = to.column_group.data();
  layer.step_group = to.step_group.data();
}

// [G, N] to tiles.
template <class T>
std::vector<T> tile_statistics(const Layer& layer, const std::vector<T>& values) {
  const std::int64_t stride = layer.statistics_stride();
  std::vector<T> tiled(static_cast<std::size_t>(layer.tiles() * stride));
  for (std::int64_t g = 0; g < layer.groups; ++g) {
    const T* row = values.data() + g * layer.n;
    for (std::int64_t n = 0; n < layer.n; ++n) {
      tiled[static_cast<std::size_t>(n / kTileChannels * stride + g * kTileChannels +
                                     n % kTileChannels)] = row[n];
    }
  }
  return tiled;
}

// Codes of tiles [range), a few tiles at a time: their words of a row of qweight are neighbours.
template <int WBits>
void tile_codes(const WeightsData& weights, const PreparedLayer& to, Range range,
                std::uint32_t* out) {
  constexpr int kPerWord = 32 / WBits, kSteps = 32 / WBits, kColumns = chunk_columns(WBits);
  constexpr std::uint32_t kMask = (1u << WBits) - 1;
  constexpr std::int64_t kTiles = 4;
  const Layer& layer = to.layer;
  const std::int64_t k = weights.in_features, n = layer.n;
  std::vector<std::uint8_t> codes(
      static_cast<std::size_t>(kTiles * kTileChannels * layer.k_padded));
  for (std::int64_t first = range.begin; first < range.end; first += kTiles) {
    const std::int64_t tiles = std::min(kTiles, range.end - first);
    const std::int64_t first_n = first * kTileChannels;
    const std::int64_t channels = std::min(tiles * kTileChannels, n - first_n);
    if (channels < tiles * kTileChannels) std::fill(codes.begin(), codes.end(), std::uint8_t{0});
    for (std::int64_t i = 0; i < k; ++i) {
      const std::int64_t column = to.source.empty() ? i : to.source[static_cast<std::size_t>(i)];
      const std::uint32_t* words = weights.qweight.data() + column / kPerWord * n + first_n;
      const auto shift = static_cast<int>(column % kPerWord) * WBits;
      for (std::int64_t c = 0; c < channels; ++c) {
        codes[static_cast<std::size_t>(c * layer.k_padded + i)] =
            static_cast<std::uint8_t>((words[c] >> shift) & kMask);
      }
    }
    for (std::int64_t t = 0; t < tiles; ++t) {
      std::uint32_t* target = out + (first + t) * layer.tile_words();
      for (std::int64_t chunk = 0; chunk < layer.k_padded; chunk += kColumns) {
        for (std::int64_t c = 0; c < kTileChannels; ++c, target += kStep) {
          const std::uint8_t* from =
              codes.data() + (t * kTileChannels + c) * layer.k_padded + chunk;
          for (int lane = 0; lane < kStep; ++lane) target[lane] = 0;
          for (int step = 0; step < kSteps; ++step) {
            for (int lane = 0; lane < kStep; ++lane) {
              target[lane] |= static_cast<std::uint32_t>(from[step * kStep + lane])
                              << (WBits * step);
            }
          }
        }
      }
    }
  }
}

}  // namespace

PreparedLayer prepare(const WeightsData& weights, int bits) {
  PreparedLayer to;
  Layer& layer = to.layer;
  layer.bits = bits;
  layer.n = weights.out_features;
  layer.k_padded = round_up(weights.in_features, chunk_columns(bits));
  layer.groups = weights.groups();
  layer.zero_kind = weights.zero_kind;
  layer.scale_dtype = weights.dtype;
  if (!weights.g_idx.empty() && !std::is_sorted(weights.g_idx.begin(), weights.g_idx.end())) {
    to.source = sort_by_group(weights.g_idx, layer.groups);
  }
  order_groups(weights, to);

  to.codes =
      DeviceBuffer(Device::cpu(), static_cast<std::size_t>(layer.tiles() * layer.tile_words()) *
                                      sizeof(std::uint32_t));
  auto* codes = static_cast<std::uint32_t*>(to.codes.data());
  layer.codes = codes;
  parallel_for(layer.tiles(), 4, [&](Range range) {
    switch (bits) {
      case 1:
        return tile_codes<1>(weights, to, range, codes);
      case 2:
        return tile_codes<2>(weights, to, range, codes);
      case 4:
        return tile_codes<4>(weights, to, range, codes);
      default:
        return tile_codes<8>(weights, to, range, codes);
    }
  });

  const auto set_statistics = [&](const WeightsData& plain) {
    to.scales = tile_statistics(layer, plain.scales);
    if (plain.zero_kind == ZeroKind::integer) to.zeros = tile_statistics(layer, plain.zeros);
    if (plain.zero_kind == ZeroKind::affine) {
      to.affine_zeros = tile_statistics(layer, plain.affine_zeros);
    }
  };
  if (weights.double_quantized) {
    set_statistics(plain_statistics(weights));
  } else {
    set_statistics(weights);
  }
  to.bias = weights.bias;
  layer.scales = to.scales.data();
  layer.zeros = to.zeros.data();
  layer.affine_zeros = to.affine_zeros.data();
  layer.bias = to.bias.empty() ? nullptr : to.bias.data();
  return to;
}

}  // namespace mpq::detail::cpu

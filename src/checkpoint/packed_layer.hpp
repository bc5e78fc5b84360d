#pragma once
// What formats have in common: first what all need, then what GPTQ and GBA share (codes packed
// along K in the canonical order, g_idx, zeros packed along N).

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "checkpoint/settings.hpp"
#include "checkpoint/tensors.hpp"
#include "mpq/checkpoint.hpp"
#include "mpq/quantized_weights.hpp"

namespace mpq::detail {

/// Name and bytes.
LayerInfo begin_info(const LayerTensors& tensors);

/// From the settings. Throws Error(invalid_file) if they do not tell.
int known_bits(const LayerTensors& tensors, const LayerSettings& settings);

/// From the settings, else -1 for one group. Throws Error(invalid_file) if they do not tell.
int known_group_size(const LayerTensors& tensors, const LayerSettings& settings,
                     std::int64_t groups);

/// Throws Error(invalid_file) naming `source` unless both extents are at least 1, and
/// Error(unsupported) where they pass what a Linear takes.
void check_features(const LayerInfo& info, const Tensor& source);

/// Checks bias [N], optional, and sets LayerInfo::bias.
void inspect_bias(const LayerTensors& tensors, LayerInfo& info);

/// Checks `g_idx` I32 [K], its values too; whether it is something else than k / group_size.
bool inspect_g_idx(const Tensor& g_idx, const LayerInfo& info);

/// ceil(K / group_size).
std::int64_t groups_of(const LayerInfo& info);

/// Shape, types and bias; codes, statistics and g_idx are left to the format.
WeightsData begin_data(const LayerTensors& tensors, const LayerInfo& info);

/// The [cols, rows] transpose of values [rows, cols].
template <class T>
std::vector<T> transposed(const std::vector<T>& values, std::int64_t rows, std::int64_t cols) {
  // In squares, so that both sides stay in the cache.
  constexpr std::int64_t kSide = 32;
  std::vector<T> out(values.size());
  for (std::int64_t r0 = 0; r0 < rows; r0 += kSide) {
    for (std::int64_t c0 = 0; c0 < cols; c0 += kSide) {
      for (std::int64_t c = c0; c < std::min(cols, c0 + kSide); ++c) {
        for (std::int64_t r = r0; r < std::min(rows, r0 + kSide); ++r) {
          out[static_cast<std::size_t>(c * rows + r)] =
              values[static_cast<std::size_t>(r * cols + c)];
        }
      }
    }
  }
  return out;
}

/// Name, bits, shape, group_size, act_order, bias and bytes of a layer whose tensor `statistics`
/// has one row for each group. Checks qweight, g_idx and bias.
LayerInfo inspect_packed(const LayerTensors& tensors, const LayerSettings& settings,
                         const Tensor& statistics);

/// Shape, codes, g_idx and bias; statistics are left to the format.
WeightsData decode_packed(const LayerTensors& tensors, const LayerInfo& info);

/// Checks qzeros I32 [G, ceil(N * bits / 32)].
void inspect_qzeros(const LayerTensors& tensors, const LayerInfo& info);

/// Integer zeros [G, N]: the stored codes plus `offset`, which is not masked and so may give
/// 2^bits.
std::vector<std::uint16_t> decode_qzeros(const LayerTensors& tensors, const LayerInfo& info,
                                         unsigned offset);

}  // namespace mpq::detail

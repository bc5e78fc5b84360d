#pragma once
// What GPTQ and GBA have in common: codes packed along K, g_idx, bias, and zeros packed along N.

#include <cstdint>
#include <vector>

#include "checkpoint/settings.hpp"
#include "checkpoint/tensors.hpp"
#include "mpq/checkpoint.hpp"
#include "mpq/quantized_weights.hpp"

namespace mpq::detail {

/// Name, bits, shape, group_size, act_order, bias and bytes of a layer whose tensor `statistics`
/// has one row for each group. Checks qweight, g_idx and bias.
LayerInfo inspect_packed(const LayerTensors& tensors, const LayerSettings& settings,
                         const Tensor& statistics);

/// ceil(K / group_size).
std::int64_t groups_of(const LayerInfo& info);

/// Shape, codes, g_idx and bias; statistics are left to the format.
WeightsData decode_packed(const LayerTensors& tensors, const LayerInfo& info);

/// Checks qzeros I32 [G, ceil(N * bits / 32)].
void inspect_qzeros(const LayerTensors& tensors, const LayerInfo& info);

/// Integer zeros [G, N]: the stored codes plus `offset`, which is not masked and so may give
/// 2^bits.
std::vector<std::uint16_t> decode_qzeros(const LayerTensors& tensors, const LayerInfo& info,
                                         unsigned offset);

}  // namespace mpq::detail

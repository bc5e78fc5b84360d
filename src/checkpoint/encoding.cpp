#include "checkpoint/encoding.hpp"

#include <algorithm>

namespace mpq::detail {

namespace {

/// Whether `dtype` holds all values.
bool holds(DType dtype, const std::vector<float>& values) {
  return std::ranges::all_of(
      values, [dtype](float value) { return to_float(from_float(value, dtype), dtype) == value; });
}

}  // namespace

SafetensorsType type_of(DType dtype) {
  return dtype == DType::f16 ? SafetensorsType::F16 : SafetensorsType::BF16;
}

std::vector<std::uint32_t> clean_codes(const WeightsData& weights, int bits) {
  std::vector<std::uint32_t> words = weights.qweight;
  const std::int64_t used = weights.in_features * bits % 32;
  if (used == 0) return words;
  const std::uint32_t mask = (1u << used) - 1u;
  for (auto i = words.size() - static_cast<std::size_t>(weights.out_features); i < words.size();
       ++i) {
    words[i] &= mask;
  }
  return words;
}

std::vector<std::int32_t> full_g_idx(const WeightsData& weights) {
  if (!weights.g_idx.empty()) return weights.g_idx;
  std::vector<std::int32_t> g_idx(static_cast<std::size_t>(weights.in_features));
  if (weights.group_size == -1) return g_idx;
  for (std::size_t k = 0; k < g_idx.size(); ++k) {
    g_idx[k] = static_cast<std::int32_t>(k / static_cast<std::size_t>(weights.group_size));
  }
  return g_idx;
}

void append_bias(const WeightsData& weights, std::vector<EncodedTensor>& tensors) {
  if (weights.bias.empty()) return;
  for (const DType dtype : {weights.dtype, DType::f16, DType::bf16}) {
    if (!holds(dtype, weights.bias)) continue;
    std::vector<std::uint16_t> halves;
    for (const float value : weights.bias) halves.push_back(from_float(value, dtype));
    tensors.push_back(encoded("bias", type_of(dtype), {weights.out_features}, halves));
    return;
  }
  tensors.push_back(encoded("bias", SafetensorsType::F32, {weights.out_features}, weights.bias));
}

EncodedTensor encoded_qzeros(const WeightsData& weights, int bits, unsigned offset) {
  const std::int64_t groups = weights.groups(), n = weights.out_features, per_word = 32 / bits;
  const std::int64_t row_words = ceil_div(n, per_word);
  std::vector<std::uint32_t> words(static_cast<std::size_t>(groups * row_words));
  for (std::int64_t g = 0; g < groups; ++g) {
    for (std::int64_t c = 0; c < n; ++c) {
      const std::uint32_t code = weights.zeros[static_cast<std::size_t>(g * n + c)] - offset;
      words[static_cast<std::size_t>(g * row_words + c / per_word)] |= code
                                                                       << (c % per_word * bits);
    }
  }
  return encoded("qzeros", SafetensorsType::I32, {groups, row_words}, words);
}

const WrittenLayer& usual_layer(std::span<const WrittenLayer> layers,
                                bool (*same)(const WrittenLayer&, const WrittenLayer&)) {
  // Few kinds of layers in a model: each is compared with the kinds found so far.
  std::vector<std::pair<const WrittenLayer*, std::size_t>> kinds;
  for (const auto& layer : layers) {
    const auto kind =
        std::ranges::find_if(kinds, [&](const auto& k) { return same(*k.first, layer); });
    if (kind == kinds.end()) {
      kinds.emplace_back(&layer, 1);
    } else {
      ++kind->second;
    }
  }
  return *std::ranges::max_element(kinds, {}, [](const auto& k) { return k.second; })->first;
}

}  // namespace mpq::detail

#include "checkpoint/packed_layer.hpp"

#include <limits>

#include "checkpoint/text.hpp"

namespace mpq::detail {

namespace {

constexpr std::int64_t kMaxFeatures = std::numeric_limits<std::int32_t>::max();

/// Whether g_idx is something else than k / group_size. Checks its values.
bool reorders(const std::vector<std::int32_t>& values, const Tensor& g_idx, const LayerInfo& info) {
  const std::int64_t groups = groups_of(info);
  const std::int64_t group_size = info.group_size == -1 ? info.in_features : info.group_size;
  bool other = false;
  for (std::int64_t k = 0; k < info.in_features; ++k) {
    const std::int32_t group = values[static_cast<std::size_t>(k)];
    if (group < 0 || group >= groups) {
      fail(ErrorCode::invalid_weights, "{} is {} at [{}], expected 0 to {}", g_idx.where(), group,
           k, groups - 1);
    }
    other = other || group != k / group_size;
  }
  return other;
}

}  // namespace

LayerInfo begin_info(const LayerTensors& tensors) {
  LayerInfo info;
  info.name = tensors.prefix();
  info.bytes = tensors.bytes();
  return info;
}

int known_bits(const LayerTensors& tensors, const LayerSettings& settings) {
  if (settings.bits) return *settings.bits;
  fail(ErrorCode::invalid_file,
       "layer {}: no settings file tells its bits; give them (option bits)",
       in_quotes(tensors.prefix()));
}

int known_group_size(const LayerTensors& tensors, const LayerSettings& settings,
                     std::int64_t groups) {
  if (settings.group_size) return *settings.group_size;
  if (groups == 1) return -1;
  fail(ErrorCode::invalid_file,
       "layer {}: it has {} groups and no settings file tells their size; give it (option "
       "group_size)",
       in_quotes(tensors.prefix()), groups);
}

void check_features(const LayerInfo& info, const Tensor& source) {
  if (info.in_features < 1 || info.out_features < 1) {
    fail(ErrorCode::invalid_file, "{} has shape {}, expected no empty dimension", source.where(),
         shape_text(source.shape()));
  }
  if (info.in_features > kMaxFeatures || info.out_features > kMaxFeatures) {
    fail(ErrorCode::unsupported, "layer {}: in_features {} and out_features {}, limit {}",
         in_quotes(info.name), info.in_features, info.out_features, kMaxFeatures);
  }
}

void inspect_bias(const LayerTensors& tensors, LayerInfo& info) {
  const Tensor* bias = tensors.find("bias");
  if (bias == nullptr) return;
  bias->of_type({SafetensorsType::F16, SafetensorsType::BF16, SafetensorsType::F32})
      .of_shape({info.out_features}, "out_features");
  info.bias = true;
}

bool inspect_g_idx(const Tensor& g_idx, const LayerInfo& info) {
  g_idx.of_type({SafetensorsType::I32}).of_shape({info.in_features}, "in_features");
  return reorders(g_idx.values<std::int32_t>(), g_idx, info);
}

std::int64_t groups_of(const LayerInfo& info) {
  return info.group_size == -1 ? 1 : ceil_div(info.in_features, info.group_size);
}

WeightsData begin_data(const LayerTensors& tensors, const LayerInfo& info) {
  WeightsData data;
  data.in_features = info.in_features;
  data.out_features = info.out_features;
  data.group_size = info.group_size;
  data.dtype = info.dtype;
  data.zero_kind = info.zero_kind;
  if (info.bias) data.bias = tensors.get("bias").floats();
  return data;
}

LayerInfo inspect_packed(const LayerTensors& tensors, const LayerSettings& settings,
                         const Tensor& statistics) {
  LayerInfo info = begin_info(tensors);
  info.bits = known_bits(tensors, settings);

  const Tensor& qweight = tensors.get("qweight");
  qweight.of_type({SafetensorsType::I32}).of_rank(2, "in_features * bits / 32, out_features");
  const std::int64_t rows = qweight.shape()[0];
  info.out_features = qweight.shape()[1];
  if (rows < 1 || info.out_features < 1) {
    fail(ErrorCode::invalid_file, "{} has shape {}, expected no empty dimension", qweight.where(),
         shape_text(qweight.shape()));
  }
  // Only g_idx tells K when the last word of a column is not full.
  const Tensor* g_idx = tensors.find("g_idx");
  if (g_idx != nullptr) {
    g_idx->of_type({SafetensorsType::I32}).of_rank(1, "in_features");
    if (g_idx->shape()[0] < 1) {
      fail(ErrorCode::invalid_file, "{} has shape [0], expected one group for each input feature",
           g_idx->where());
    }
    info.in_features = g_idx->shape()[0];
  } else {
    info.in_features = rows * (32 / info.bits);
  }
  check_features(info, qweight);
  qweight.of_shape({ceil_div(info.in_features * info.bits, 32), info.out_features},
                   "in_features * bits / 32, out_features");

  if (statistics.shape().empty()) {
    fail(ErrorCode::invalid_file, "{} has shape [], expected one row for each group",
         statistics.where());
  }
  info.group_size = known_group_size(tensors, settings, statistics.shape()[0]);
  if (g_idx != nullptr) {
    info.act_order = inspect_g_idx(*g_idx, info);
  } else if (settings.desc_act.value_or(false)) {
    fail(ErrorCode::invalid_file,
         "layer {}: settings say desc_act, but tensor {} with its order is missing",
         in_quotes(info.name), in_quotes(info.name + ".g_idx"));
  }
  inspect_bias(tensors, info);
  return info;
}

WeightsData decode_packed(const LayerTensors& tensors, const LayerInfo& info) {
  WeightsData data = begin_data(tensors, info);
  data.qweight = tensors.get("qweight").values<std::uint32_t>();
  if (info.act_order) data.g_idx = tensors.get("g_idx").values<std::int32_t>();
  return data;
}

void inspect_qzeros(const LayerTensors& tensors, const LayerInfo& info) {
  tensors.get("qzeros")
      .of_type({SafetensorsType::I32})
      .of_shape({groups_of(info), ceil_div(info.out_features * info.bits, 32)},
                "groups, out_features * bits / 32");
}

std::vector<std::uint16_t> decode_qzeros(const LayerTensors& tensors, const LayerInfo& info,
                                         unsigned offset) {
  const auto words = tensors.get("qzeros").values<std::uint32_t>();
  const std::int64_t groups = groups_of(info), n = info.out_features;
  const std::int64_t row_words = ceil_div(n * info.bits, 32), per_word = 32 / info.bits;
  const std::uint32_t mask = (1u << info.bits) - 1u;
  std::vector<std::uint16_t> zeros(static_cast<std::size_t>(groups * n));
  for (std::int64_t g = 0; g < groups; ++g) {
    for (std::int64_t c = 0; c < n; ++c) {
      const std::uint32_t word = words[static_cast<std::size_t>(g * row_words + c / per_word)];
      const std::uint32_t code = (word >> (c % per_word * info.bits)) & mask;
      zeros[static_cast<std::size_t>(g * n + c)] = static_cast<std::uint16_t>(code + offset);
    }
  }
  return zeros;
}

}  // namespace mpq::detail

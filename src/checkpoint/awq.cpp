// AutoAWQ, GEMM version: 4 bits.
//
//   qweight I32 [K, N/8]   nibble i of word c is column 8c + kOrder[i]
//   qzeros  I32 [G, N/8]   in the same order        scales [G, N]      bias [N], optional
//
// w = s * (q - z), z as it is stored. Settings: bits | w_bit, group_size | q_group_size,
// zero_point, version; what modules_to_not_convert names is dense and shows as that.

#include <array>

#include "checkpoint/awq_order.hpp"
#include "checkpoint/format.hpp"
#include "checkpoint/packed_layer.hpp"
#include "checkpoint/text.hpp"
#include "cpu/thread_pool.hpp"

namespace mpq::detail {

namespace {

using namespace std::string_view_literals;

constexpr std::array kMarks{"qweight"sv, "qzeros"sv};

// GPTQ's names; but there qweight is as wide as scales.
bool claims(const LayerTensors& tensors) {
  const Tensor* qweight = tensors.find("qweight");
  const Tensor* scales = tensors.find("scales");
  return qweight != nullptr && scales != nullptr && tensors.has("qzeros") &&
         qweight->shape().size() == 2 && scales->shape().size() == 2 &&
         qweight->shape()[1] < scales->shape()[1] &&
         qweight->shape()[1] == scales->shape()[1] / kAwqColumns;
}

LayerInfo inspect(const LayerTensors& tensors, const LayerSettings& settings) {
  LayerInfo info = begin_info(tensors);
  info.bits = settings.bits.value_or(4);
  if (info.bits != 4) {
    fail(ErrorCode::unsupported, "layer {}: AWQ of {} bits, supported are 4", in_quotes(info.name),
         info.bits);
  }
  const Tensor& qweight = tensors.get("qweight");
  qweight.of_type({SafetensorsType::I32}).of_rank(2, "in_features, out_features / 8");
  const Tensor& scales = tensors.get("scales").of_rank(2, "groups, out_features");
  info.in_features = qweight.shape()[0];
  info.out_features = scales.shape()[1];
  check_features(info, scales);
  qweight.of_shape({info.in_features, ceil_div(info.out_features, kAwqColumns)},
                   "in_features, out_features / 8");
  if (info.out_features % kAwqColumns != 0) {
    fail(ErrorCode::invalid_file, "{} has shape {}, out_features is no multiple of {}",
         scales.where(), shape_text(scales.shape()), kAwqColumns);
  }
  info.group_size = known_group_size(tensors, settings, scales.shape()[0]);
  scales.of_shape({groups_of(info), info.out_features}, "groups, out_features");
  tensors.get("qzeros")
      .of_type({SafetensorsType::I32})
      .of_shape({groups_of(info), info.out_features / kAwqColumns}, "groups, out_features / 8");
  inspect_bias(tensors, info);
  info.zero_kind = ZeroKind::integer;
  info.dtype = scales.exact_dtype();
  return info;
}

/// Words [rows, N/8] to codes along K: [ceil(rows/8), N].
std::vector<std::uint32_t> to_canonical(const std::vector<std::uint32_t>& words, std::int64_t rows,
                                        std::int64_t n) {
  const std::int64_t row_words = n / kAwqColumns;
  std::vector<std::uint32_t> out(static_cast<std::size_t>(ceil_div(rows, 8) * n));
  parallel_for(ceil_div(rows, 8), 4, [&](Range range) {
    for (std::int64_t k = range.begin * 8; k < std::min(rows, range.end * 8); ++k) {
      for (std::int64_t c = 0; c < row_words; ++c) {
        const std::uint32_t word = words[static_cast<std::size_t>(k * row_words + c)];
        std::uint32_t* target = out.data() + k / 8 * n + c * kAwqColumns;
        for (std::size_t i = 0; i < kAwqOrder.size(); ++i) {
          target[kAwqOrder[i]] |= ((word >> (4 * i)) & 15u) << (k % 8 * 4);
        }
      }
    }
  });
  return out;
}

std::vector<std::uint16_t> zeros(const LayerTensors& tensors, const LayerInfo&) {
  const auto qzeros = tensors.get("qzeros").values<std::uint32_t>();
  std::vector<std::uint16_t> out(qzeros.size() * kAwqOrder.size());
  for (std::size_t at = 0; at < qzeros.size(); ++at) {
    for (std::size_t i = 0; i < kAwqOrder.size(); ++i) {
      out[at * kAwqOrder.size() + kAwqOrder[i]] =
          static_cast<std::uint16_t>((qzeros[at] >> (4 * i)) & 15u);
    }
  }
  return out;
}

WeightsData decode(const LayerTensors& tensors, const LayerInfo& info) {
  WeightsData data = begin_data(tensors, info);
  data.qweight = to_canonical(tensors.get("qweight").values<std::uint32_t>(), info.in_features,
                              info.out_features);
  data.scales = tensors.get("scales").halves(info.dtype);
  data.zeros = zeros(tensors, info);
  return data;
}

Fitted fit(WeightsData weights, int bits) {
  if (bits != 4) fail(ErrorCode::unsupported, "AWQ holds 4 bits, not {}", bits);
  if (weights.out_features % kAwqColumns != 0) {
    fail(ErrorCode::unsupported, "AWQ holds multiples of {} out_features, not {}", kAwqColumns,
         weights.out_features);
  }
  if (!weights.g_idx.empty()) fail(ErrorCode::unsupported, "AWQ has no act-order (g_idx)");
  return fit_f16_scales(fit_integer_zeros(std::move(weights), bits, 0, 15));
}

std::vector<EncodedTensor> encode(const WeightsData& weights, int) {
  const std::int64_t k = weights.in_features, n = weights.out_features, groups = weights.groups();
  const std::int64_t row_words = n / kAwqColumns;
  std::vector<std::uint32_t> qweight(static_cast<std::size_t>(k * row_words));
  parallel_for(k, 16, [&](Range range) {
    for (std::int64_t at = range.begin * row_words; at < range.end * row_words; ++at) {
      const std::int64_t row = at / row_words, column = at % row_words * kAwqColumns;
      const std::uint32_t* source = weights.qweight.data() + row / 8 * n + column;
      std::uint32_t word = 0;
      for (std::size_t i = 0; i < kAwqOrder.size(); ++i) {
        word |= ((source[kAwqOrder[i]] >> (row % 8 * 4)) & 15u) << (4 * i);
      }
      qweight[static_cast<std::size_t>(at)] = word;
    }
  });
  std::vector<std::uint32_t> qzeros(static_cast<std::size_t>(groups * row_words));
  for (std::size_t at = 0; at < qzeros.size(); ++at) {
    for (std::size_t i = 0; i < kAwqOrder.size(); ++i) {
      const std::uint32_t zero = weights.zeros[at * kAwqOrder.size() + kAwqOrder[i]];
      qzeros[at] |= zero << (4 * i);
    }
  }
  std::vector<EncodedTensor> tensors{
      encoded("qweight", SafetensorsType::I32, {k, row_words}, qweight),
      encoded("qzeros", SafetensorsType::I32, {groups, row_words}, qzeros),
      encoded("scales", SafetensorsType::F16, {groups, n}, weights.scales)};
  append_bias(weights, tensors);
  return tensors;
}

SettingsTree written_settings(std::span<const WrittenLayer> layers,
                              const std::vector<std::string>& dense) {
  for (const auto& layer : layers) {
    if (layer.group_size == layers[0].group_size) continue;
    fail(ErrorCode::unsupported, "AWQ has one group_size for all layers: {} has {}, {} has {}",
         in_quotes(layers[0].name), layers[0].group_size, in_quotes(layer.name), layer.group_size);
  }
  return SettingsTree{}
      .set("quant_method", "awq")
      .set("bits", 4)
      .set("group_size", layers[0].group_size)
      .set("zero_point", true)
      .set("version", "gemm")
      .set("modules_to_not_convert", dense);
}

constexpr FormatWriter kWriter{fit, encode, written_settings, "quant_config.json"};

}  // namespace

/// quant_config.json, which AutoAWQ wrote before there was config.json, has no quant_method.
void read_awq_settings(const SettingsObject& object, std::string_view, LayerSettings& settings) {
  const auto method = object.text({"quant_method"});
  const bool bare = !method && object.integer({"w_bit"}) && object.integer({"q_group_size"});
  if (method != "awq" && !bare) return;
  const auto version = object.text({"version"});
  if (version && *version != "gemm" && *version != "GEMM") {
    fail(ErrorCode::unsupported, "{}: AWQ version {} is not supported, only \"gemm\"",
         object.where(), in_quotes(*version));
  }
  if (!settings.format) settings.format = "awq";
}

constinit const Format kAwq{"awq", kMarks, claims, inspect, decode, &kWriter, zeros};

}  // namespace mpq::detail

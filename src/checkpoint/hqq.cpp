// HQQ, axis 1. W [N, K] is seen as [R, g] with R = N * K / g; with p = 8 / b codes in a byte, byte
// row r of W_q U8 [R/p, g] holds rows r, r + R/p, r + 2R/p, ..., the first in the highest bits.
//
//   scale, zero [R, 1]        shape I64 [2] = N, K        nbits, group_size, axis I64 []
//   bias [N], optional
//
// w = (q - z) * s with z a float: w = s * q + b with b = -z * s, which float32 holds exactly for
// 16-bit z and s. The scalars are also in the settings: quant_config.weight_quant_params, for all
// layers or for those whose names end in a key of quant_config.

#include <array>

#include "checkpoint/format.hpp"
#include "checkpoint/packed_layer.hpp"
#include "checkpoint/text.hpp"
#include "mpq/pack.hpp"

namespace mpq::detail {

namespace {

using namespace std::string_view_literals;

constexpr std::array kMarks{"W_q"sv, "nbits"sv};

bool claims(const LayerTensors& tensors) {
  return tensors.has("W_q") || (tensors.has("nbits") && tensors.has("zero"));
}

/// A scalar of the layer, from its tensor.
std::optional<std::int64_t> scalar(const LayerTensors& tensors, const char* name) {
  const Tensor* tensor = tensors.find(name);
  if (tensor == nullptr) return std::nullopt;
  const auto values = tensor->integers();
  if (values.size() != 1) {
    fail(ErrorCode::invalid_file, "{} has shape {}, expected one value", tensor->where(),
         shape_text(tensor->shape()));
  }
  return values[0];
}

void inspect_shape(const LayerTensors& tensors, LayerInfo& info) {
  const Tensor& shape = tensors.get("shape").of_shape({2}, "two extents");
  const auto extents = shape.integers();
  info.out_features = extents[0];
  info.in_features = extents[1];
  if (info.out_features < 1 || info.in_features < 1) {
    fail(ErrorCode::invalid_file, "{} is {}, expected at least 1 each", shape.where(),
         shape_text(extents));
  }
  check_features(info, shape);
}

/// Bits and axis; what only newer and rarer files have is refused by name.
void inspect_scalars(const LayerTensors& tensors, const LayerSettings& settings, LayerInfo& info) {
  const auto told = scalar(tensors, "nbits");
  const std::int64_t bits = told ? *told : known_bits(tensors, settings);
  if (bits < 1 || bits > 8 || !is_supported_bits(static_cast<int>(bits))) {
    fail(ErrorCode::unsupported, "layer {}: nbits is {}, supported are 1, 2, 4 and 8",
         in_quotes(info.name), bits);
  }
  info.bits = static_cast<int>(bits);
  if (const auto axis = scalar(tensors, "axis").value_or(1); axis != 1) {
    fail(ErrorCode::unsupported, "layer {}: HQQ axis is {}, supported is 1", in_quotes(info.name),
         axis);
  }
}

void inspect_groups(const LayerTensors& tensors, const LayerSettings& settings, LayerInfo& info,
                    const Tensor& scale) {
  const std::int64_t n = info.out_features, k = info.in_features;
  std::int64_t size = scalar(tensors, "group_size").value_or(settings.group_size.value_or(-1));
  if (size == -1) size = k;
  if (size < 1 || k % size != 0) {
    fail(size < 1 ? ErrorCode::invalid_file : ErrorCode::unsupported,
         "layer {}: group_size {} does not divide in_features {}", in_quotes(info.name), size, k);
  }
  const std::int64_t rows = n * (k / size);
  const std::int64_t per_byte = 8 / info.bits;
  if (rows % per_byte != 0) {
    fail(ErrorCode::invalid_file, "layer {}: {} groups do not fill bytes of {}",
         in_quotes(info.name), rows, per_byte);
  }
  info.group_size = static_cast<int>(size);
  tensors.get("W_q")
      .of_type({SafetensorsType::U8})
      .of_shape({rows / per_byte, size}, "groups * bits / 8, group_size");
  scale.of_shape({rows, 1}, "groups, 1");
}

LayerInfo inspect(const LayerTensors& tensors, const LayerSettings& settings) {
  LayerInfo info = begin_info(tensors);
  inspect_scalars(tensors, settings, info);
  inspect_shape(tensors, info);
  const Tensor& scale = tensors.get("scale").of_rank(2, "groups, 1");
  inspect_groups(tensors, settings, info, scale);
  tensors.get("zero")
      .of_type({SafetensorsType::F16, SafetensorsType::BF16, SafetensorsType::F32})
      .of_shape({scale.shape()[0], 1}, "groups, 1");
  inspect_bias(tensors, info);
  info.zero_kind = ZeroKind::affine;
  info.dtype = scale.exact_dtype();
  return info;
}

/// Codes [K, N].
std::vector<std::uint8_t> unpack_codes(const std::vector<std::uint8_t>& bytes,
                                       const LayerInfo& info) {
  const std::int64_t n = info.out_features, k = info.in_features;
  const std::int64_t part = static_cast<std::int64_t>(bytes.size());  // codes of one part
  const auto mask = static_cast<std::uint8_t>((1u << info.bits) - 1u);
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(n * k));
  for (std::int64_t row = 0; row < n; ++row) {
    for (std::int64_t i = 0; i < k; ++i) {
      const std::int64_t flat = row * k + i;
      const int shift = 8 - info.bits * static_cast<int>(flat / part + 1);
      codes[static_cast<std::size_t>(i * n + row)] =
          static_cast<std::uint8_t>((bytes[static_cast<std::size_t>(flat % part)] >> shift) & mask);
    }
  }
  return codes;
}

WeightsData decode(const LayerTensors& tensors, const LayerInfo& info) {
  WeightsData data = begin_data(tensors, info);
  const std::int64_t n = info.out_features, groups = groups_of(info);
  data.qweight = pack(unpack_codes(tensors.get("W_q").values<std::uint8_t>(), info),
                      info.in_features, n, info.bits);
  // R runs over channels and, within each, over groups.
  data.scales = transposed(tensors.get("scale").halves(info.dtype), n, groups);
  data.affine_zeros = transposed(tensors.get("zero").floats(), n, groups);
  for (std::size_t i = 0; i < data.scales.size(); ++i) {
    data.affine_zeros[i] *= -to_float(data.scales[i], info.dtype);
  }
  return data;
}

/// The parameters of a layer: {weight_quant_params: {...}}, or the parameters themselves.
void fill_parameters(const SettingsObject& object, LayerSettings& settings) {
  const auto inner = object.object_if("weight_quant_params");
  const SettingsObject& parameters = inner ? *inner : object;
  if (parameters.integer({"axis"}).value_or(1) != 1) {
    fail(ErrorCode::unsupported, "{}: HQQ axis is {}, supported is 1", parameters.where(),
         *parameters.integer({"axis"}));
  }
  settings.fill(parameters);
}

}  // namespace

void read_hqq_settings(const SettingsObject& object, std::string_view layer,
                       LayerSettings& settings) {
  if (object.text({"quant_method"}) != "hqq") return;
  if (!settings.format) settings.format = "hqq";
  const auto config = object.object_if("quant_config");
  if (!config || layer.empty()) return;
  if (const auto entry = entry_by_name(*config, layer)) {
    fill_parameters(*entry, settings);
  } else if (config->object_if("weight_quant_params")) {
    fill_parameters(*config, settings);
  }
}

constinit const Format kHqq{"hqq", kMarks, claims, inspect, decode};

}  // namespace mpq::detail

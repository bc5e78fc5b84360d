// GBA (bitorch-engine's MPQ layer, GreenBitAI's models). qweight, g_idx and bias as in GPTQ; with
// C = N / dq_group_size (dq_group_size -1: C = 1), t the layer's 16-bit type:
//
//   symmetric   qstatistic U8 [G, C, dq]: scale code in the high nibble, zero code in the low
//               scale = (high - qscales_zeros) * qscales_scales
//               zero  = (low  - qzeros_zeros)  * qzeros_scales     parameters t [G, C, 1]
//               w = q * scale - zero
//   asymmetric  qscales U8 [G, C, dq] or [G, N]: scale as above;   qzeros packed as in GPTQ, + 1
//               w = scale * (q - zero)
//   dq_mode 1   qscales_zeros and qscales_scales are [1, N, 1]
//   groups of 256 input features and more: scales and zeros are stored [G, N], not quantised; what
//               else the file holds of them was never filled in by its writer
//
// Double-quantised statistics stay so in the canonical form; decompress() has the arithmetic.

#include <algorithm>
#include <array>

#include "checkpoint/format.hpp"
#include "checkpoint/packed_layer.hpp"
#include "checkpoint/text.hpp"

namespace mpq::detail {

namespace {

using namespace std::string_view_literals;

constexpr std::array kMarks{"qweight"sv, "qstatistic"sv, "qscales"sv};

// From this size on the writer stores plain statistics.
constexpr std::int64_t kPlainGroupSize = 256;

constexpr auto kParameterMeaning = "groups, out_features / dq_group_size, 1";

bool claims(const LayerTensors& tensors) {
  return tensors.has("qstatistic") || tensors.has("qscales") ||
         (tensors.has("scales") && tensors.has("zeros") && !tensors.has("qzeros"));
}

/// A parameter that exists once for each output channel: dq_mode 1.
bool per_channel(const Tensor& parameter, std::int64_t n) {
  return parameter.shape() == std::vector<std::int64_t>{1, n, 1};
}

/// C: in how many parts the output channels are cut. From the settings, else from the tensors.
std::int64_t parts_of(const LayerTensors& tensors, const LayerSettings& settings,
                      const LayerInfo& info, const Tensor& codes) {
  const std::int64_t n = info.out_features;
  if (settings.dq_group_size) {
    const std::int64_t size = *settings.dq_group_size == -1 ? n : *settings.dq_group_size;
    if (n % size != 0) {
      fail(ErrorCode::invalid_file, "layer {}: dq_group_size {} does not divide out_features {}",
           in_quotes(info.name), size, n);
    }
    return n / size;
  }
  const Tensor& parameter = tensors.get("qscales_scales");
  const Tensor* told = codes.shape().size() == 3                                     ? &codes
                       : parameter.shape().size() == 3 && !per_channel(parameter, n) ? &parameter
                                                                                     : nullptr;
  if (told == nullptr) return 1;
  const std::int64_t parts = told->shape()[1];
  if (parts < 1 || n % parts != 0) {
    fail(ErrorCode::invalid_file,
         "{} has shape {}, its second dimension does not divide out_features {}", told->where(),
         shape_text(told->shape()), n);
  }
  return parts;
}

/// The parameters' common type and shapes.
void inspect_parameters(const LayerTensors& tensors, const LayerSettings& settings, LayerInfo& info,
                        std::int64_t parts, bool asymmetric) {
  const std::int64_t groups = groups_of(info), n = info.out_features;
  const Tensor& first = tensors.get("qscales_scales");
  first.of_type({SafetensorsType::F16, SafetensorsType::BF16});
  const bool mode_1 = settings.dq_mode ? *settings.dq_mode == 1 : per_channel(first, n);
  for (const char* name : {"qscales_scales", "qscales_zeros"}) {
    const Tensor& parameter = tensors.get(name).of_type({first.type()});
    if (mode_1) {
      parameter.of_shape({1, n, 1}, "1, out_features, 1 (dq_mode 1)");
    } else {
      parameter.of_shape({groups, parts, 1}, kParameterMeaning);
    }
  }
  if (!asymmetric) {
    for (const char* name : {"qzeros_scales", "qzeros_zeros"}) {
      tensors.get(name).of_type({first.type()}).of_shape({groups, parts, 1}, kParameterMeaning);
    }
  }
  info.dtype = first.type() == SafetensorsType::F16 ? DType::f16 : DType::bf16;
}

void inspect_codes(const LayerInfo& info, const Tensor& codes, std::int64_t parts,
                   bool asymmetric) {
  const std::int64_t groups = groups_of(info), n = info.out_features;
  codes.of_type({SafetensorsType::U8});
  if (asymmetric && codes.shape().size() == 2) {
    codes.of_shape({groups, n}, "groups, out_features");
  } else {
    codes.of_shape({groups, parts, n / parts},
                   "groups, out_features / dq_group_size, dq_group_size");
  }
}

LayerInfo inspect(const LayerTensors& tensors, const LayerSettings& settings) {
  if (kGbaMixed.claims(tensors)) return kGbaMixed.inspect(tensors, settings);
  const bool asymmetric =
      settings.asymmetric.value_or(!tensors.has("qstatistic") && tensors.has("qzeros"));
  // Any tensor with a row for each group serves to find out about the groups.
  const char* codes_name = asymmetric ? "qscales" : "qstatistic";
  const Tensor* codes = tensors.find(codes_name);
  const Tensor* scales = tensors.find("scales");
  const Tensor& rows = codes != nullptr    ? *codes
                       : scales != nullptr ? *scales
                                           : tensors.get(codes_name);
  LayerInfo info = inspect_packed(tensors, settings, rows);
  const std::int64_t groups = groups_of(info), n = info.out_features;
  info.zero_kind = asymmetric ? ZeroKind::integer : ZeroKind::affine;
  if (asymmetric) inspect_qzeros(tensors, info);
  info.double_quantized =
      (info.group_size == -1 ? info.in_features : info.group_size) < kPlainGroupSize;
  if (!info.double_quantized) {
    const Tensor& plain = tensors.get("scales").of_shape({groups, n}, "groups, out_features");
    info.dtype = plain.exact_dtype();
    if (!asymmetric) {
      tensors.get("zeros")
          .of_type({SafetensorsType::F16, SafetensorsType::BF16, SafetensorsType::F32})
          .of_shape({groups, n}, "groups, out_features");
    }
    return info;
  }
  const Tensor& found = tensors.get(codes_name);
  const std::int64_t parts = parts_of(tensors, settings, info, found);
  inspect_codes(info, found, parts, asymmetric);
  inspect_parameters(tensors, settings, info, parts, asymmetric);
  return info;
}

/// `parameter` [1, N, 1] or [G, C, 1] for every group and channel: [G, N].
std::vector<std::uint16_t> spread(const Tensor& parameter, std::int64_t groups, std::int64_t n) {
  const auto values = parameter.values<std::uint16_t>();
  const std::int64_t rows = parameter.shape()[0], parts = parameter.shape()[1];
  std::vector<std::uint16_t> out(static_cast<std::size_t>(groups * n));
  for (std::int64_t g = 0; g < groups; ++g) {
    for (std::int64_t c = 0; c < n; ++c) {
      out[static_cast<std::size_t>(g * n + c)] =
          values[static_cast<std::size_t>((rows == 1 ? 0 : g) * parts + c / (n / parts))];
    }
  }
  return out;
}

DoubleQuantized decode_statistics(const LayerTensors& tensors, const LayerInfo& info) {
  const bool with_zeros = info.zero_kind == ZeroKind::affine;
  const std::int64_t groups = groups_of(info), n = info.out_features;
  const Tensor& scales = tensors.get("qscales_scales");
  const Tensor& zeros = tensors.get("qscales_zeros");
  DoubleQuantized dq;
  dq.kind = with_zeros ? DoubleQuantized::Kind::scale_and_zero : DoubleQuantized::Kind::scale;
  dq.codes = tensors.get(with_zeros ? "qstatistic" : "qscales").values<std::uint8_t>();
  const bool mode_1 = per_channel(scales, n);
  if (mode_1 && with_zeros) {
    // Scales' parameters by channel and zeros' by group: only one for each of both says both.
    dq.dq_group_size = 1;
    dq.scale_scales = spread(scales, groups, n);
    dq.scale_zeros = spread(zeros, groups, n);
    dq.zero_scales = spread(tensors.get("qzeros_scales"), groups, n);
    dq.zero_zeros = spread(tensors.get("qzeros_zeros"), groups, n);
    return dq;
  }
  dq.per_channel = mode_1;
  dq.dq_group_size = mode_1 ? 1 : n / scales.shape()[1];
  dq.scale_scales = scales.values<std::uint16_t>();
  dq.scale_zeros = zeros.values<std::uint16_t>();
  if (with_zeros) {
    dq.zero_scales = tensors.get("qzeros_scales").values<std::uint16_t>();
    dq.zero_zeros = tensors.get("qzeros_zeros").values<std::uint16_t>();
  }
  return dq;
}

std::vector<std::uint16_t> zeros(const LayerTensors& tensors, const LayerInfo& info) {
  return decode_qzeros(tensors, info, 1);
}

WeightsData decode(const LayerTensors& tensors, const LayerInfo& info) {
  WeightsData data = decode_packed(tensors, info);
  if (info.zero_kind == ZeroKind::integer) data.zeros = zeros(tensors, info);
  if (info.double_quantized) {
    data.double_quantized = decode_statistics(tensors, info);
    return data;
  }
  data.scales = tensors.get("scales").halves(info.dtype);
  if (info.zero_kind == ZeroKind::affine) {
    data.affine_zeros = tensors.get("zeros").floats();
    for (float& zero : data.affine_zeros) zero = -zero;
  }
  return data;
}

/// Asymmetric where that loses nothing (asymmetric GBA itself; integer zeros of large groups), else
/// symmetric.
Fitted fit(WeightsData weights, int bits) {
  const auto& dq = weights.double_quantized;
  const std::int64_t size = weights.group_size == -1 ? weights.in_features : weights.group_size;
  if (dq && dq->kind == DoubleQuantized::Kind::scale && size < kPlainGroupSize &&
      std::ranges::find(weights.zeros, 0) == weights.zeros.end()) {
    return {std::move(weights), true};
  }
  if (size >= kPlainGroupSize && weights.zero_kind != ZeroKind::affine) {
    return fit_integer_zeros(std::move(weights), bits, 1, 1 << bits);
  }
  return fit_gba(std::move(weights), bits);
}

void encode_double_quantized(const WeightsData& weights, int bits,
                             std::vector<EncodedTensor>& tensors) {
  const DoubleQuantized& dq = *weights.double_quantized;
  const std::int64_t n = weights.out_features, groups = weights.groups();
  const bool symmetric = dq.kind == DoubleQuantized::Kind::scale_and_zero;
  // What has parameters by channel still has its codes in parts, all of N or as wide as bits say.
  const std::int64_t size = dq.per_channel ? n : dq.dq_group_size;
  const std::vector<std::int64_t> blocks{groups, n / size, size}, rows{groups, n};
  tensors.push_back(encoded(symmetric ? "qstatistic" : "qscales", SafetensorsType::U8,
                            symmetric || bits == 4 ? blocks : rows, dq.codes));
  const auto add = [&](const char* name, const std::vector<std::uint16_t>& values) {
    if (values.empty()) return;
    const std::vector<std::int64_t> by_channel{1, n, 1}, by_block{groups, n / size, 1};
    tensors.push_back(
        encoded(name, type_of(weights.dtype), dq.per_channel ? by_channel : by_block, values));
  };
  add("qscales_scales", dq.scale_scales);
  add("qscales_zeros", dq.scale_zeros);
  add("qzeros_scales", dq.zero_scales);
  add("qzeros_zeros", dq.zero_zeros);
  if (!symmetric) tensors.push_back(encoded_qzeros(weights, bits, 1));
}

std::vector<EncodedTensor> encode(const WeightsData& weights, int bits) {
  const std::int64_t n = weights.out_features, groups = weights.groups();
  std::vector<EncodedTensor> tensors{
      encoded("qweight", SafetensorsType::I32, {ceil_div(weights.in_features * bits, 32), n},
              clean_codes(weights, bits)),
      encoded("g_idx", SafetensorsType::I32, {weights.in_features}, full_g_idx(weights))};
  append_bias(weights, tensors);
  if (weights.double_quantized) {
    encode_double_quantized(weights, bits, tensors);
    return tensors;
  }
  tensors.push_back(encoded("scales", type_of(weights.dtype), {groups, n}, weights.scales));
  if (weights.zero_kind == ZeroKind::integer) {
    tensors.push_back(encoded_qzeros(weights, bits, 1));
    return tensors;
  }
  std::vector<std::uint16_t> zeros;
  for (const float b : weights.affine_zeros) zeros.push_back(from_float(-b, weights.dtype));
  tensors.push_back(encoded("zeros", type_of(weights.dtype), {groups, n}, zeros));
  return tensors;
}

bool same_settings(const WrittenLayer& a, const WrittenLayer& b) {
  return a.bits == b.bits && a.group_size == b.group_size && a.zero_kind == b.zero_kind &&
         a.dq_group_size == b.dq_group_size && a.per_channel == b.per_channel;
}

void set_layer(SettingsTree& settings, const WrittenLayer& layer) {
  settings.set("bits", layer.bits)
      .set("group_size", layer.group_size)
      .set("asym", layer.zero_kind == ZeroKind::integer)
      .set("dq_group_size", layer.dq_group_size)
      .set("dq_mode", layer.per_channel ? 1 : 2);
}

SettingsTree written_settings(std::span<const WrittenLayer> layers,
                              const std::vector<std::string>&) {
  const WrittenLayer& usual = usual_layer(layers, same_settings);
  SettingsTree settings, strategy;
  settings.set("quant_method", "gba");
  set_layer(settings, usual);
  for (const auto& layer : layers) {
    if (same_settings(layer, usual)) continue;
    SettingsTree entry;
    set_layer(entry, layer);
    strategy.set(layer.name, entry);
  }
  if (!strategy.members.empty()) settings.set("strategy", strategy);
  return settings;
}

constexpr FormatWriter kWriter{fit, encode, written_settings, "quantize_config.json"};

}  // namespace

/// quantize_config.json: "strategy" maps layers, by their whole name or the end of it, to settings.
/// quant_strategy.json: "measurement" -> block -> layer -> {"bits": [4], "bits_prop": [1],
/// "group_size": {"4": 128}}, several bits being a mix of widths inside the layer.
void read_gba_settings(const SettingsObject& object, std::string_view layer,
                       LayerSettings& settings) {
  if (const auto strategy = object.object_if("strategy")) {
    if (const auto entry = entry_by_name(*strategy, layer)) settings.fill(*entry);
  }
  const auto measurement = object.object_if("measurement");
  if (!measurement) return;
  for (const auto& [block, layers] : measurement->members()) {
    if (!layers || !layer.starts_with(block + ".")) continue;
    const auto entry = entry_by_name(*layers, layer.substr(block.size() + 1));
    if (!entry) continue;
    const auto bits = entry->integers("bits");
    if (bits.size() != 1) return;  // of a mix the tensors tell
    if (!settings.bits) settings.bits = bits[0];
    const auto sizes = entry->object_if("group_size");
    if (!settings.group_size && sizes) {
      settings.group_size = sizes->integer({std::to_string(bits[0]).c_str()});
    }
    return;
  }
}

constinit const Format kGba{"gba", kMarks, claims, inspect, decode, &kWriter, zeros};

}  // namespace mpq::detail

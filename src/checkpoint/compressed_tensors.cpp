// compressed-tensors (llm-compressor), pack-quantized. With p = 32 / b codes in a word, o =
// 2^(b-1):
//
//   weight_packed     I32 [N, ceil(K/p)]   q + o along K       weight_scale [N, G]
//   weight_zero_point I32 [ceil(N/p), G]   z + o along N       weight_shape I64 [2]
//   weight_g_idx      I32 [K], optional                        bias [N], optional
//
// w = s * (q - z) with q and z in [-o, o): unsigned codes and zeros are what is stored. Symmetric:
// z is 0, there is no zero point. Versions before zero points were packed hold them as I8 [N, G].
// A weight_g_idx of -1 throughout is one that was never filled in.
//
// Settings: config_groups.*.{targets, weights{num_bits, symmetric, strategy, group_size}}; a target
// is a class of layers, a layer's name or "re:" and a pattern. What `ignore` names is dense.

#include <algorithm>
#include <array>

#include "checkpoint/format.hpp"
#include "checkpoint/packed_layer.hpp"
#include "checkpoint/pattern.hpp"
#include "checkpoint/text.hpp"

namespace mpq::detail {

namespace {

using namespace std::string_view_literals;

constexpr std::array kMarks{"weight_packed"sv, "weight_shape"sv};

bool claims(const LayerTensors& tensors) {
  return tensors.has("weight_packed") || tensors.has("weight_shape");
}

void inspect_shape(const LayerTensors& tensors, LayerInfo& info) {
  const Tensor& shape = tensors.get("weight_shape");
  shape.of_shape({2}, "two extents");
  const auto extents = shape.integers();
  info.out_features = extents[0];
  info.in_features = extents[1];
  if (std::ranges::min(extents) < 1) {
    fail(ErrorCode::invalid_file, "{} is {}, expected at least 1 each", shape.where(),
         shape_text(extents));
  }
  check_features(info, shape);
}

void inspect_zero_point(const Tensor& zero_point, const LayerInfo& info) {
  const std::int64_t groups = groups_of(info), n = info.out_features;
  if (zero_point.type() == SafetensorsType::I8) {
    zero_point.of_shape({n, groups}, "out_features, groups");
    return;
  }
  zero_point.of_type({SafetensorsType::I32, SafetensorsType::I8})
      .of_shape({ceil_div(n * info.bits, 32), groups}, "out_features * bits / 32, groups");
}

bool inspect_order(const Tensor& g_idx, const LayerInfo& info) {
  g_idx.of_type({SafetensorsType::I32}).of_shape({info.in_features}, "in_features");
  const auto values = g_idx.values<std::int32_t>();
  if (std::ranges::all_of(values, [](std::int32_t group) { return group == -1; })) return false;
  return inspect_g_idx(g_idx, info);
}

LayerInfo inspect(const LayerTensors& tensors, const LayerSettings& settings) {
  LayerInfo info = begin_info(tensors);
  info.bits = known_bits(tensors, settings);
  inspect_shape(tensors, info);
  tensors.get("weight_packed")
      .of_type({SafetensorsType::I32})
      .of_shape({info.out_features, ceil_div(info.in_features * info.bits, 32)},
                "out_features, in_features * bits / 32");
  const Tensor& scale = tensors.get("weight_scale").of_rank(2, "out_features, groups");
  info.group_size = known_group_size(tensors, settings, scale.shape()[1]);
  scale.of_shape({info.out_features, groups_of(info)}, "out_features, groups");
  info.dtype = scale.exact_dtype();
  info.zero_kind = ZeroKind::none;
  if (const Tensor* zero_point = tensors.find("weight_zero_point")) {
    inspect_zero_point(*zero_point, info);
    info.zero_kind = ZeroKind::integer;
  } else if (!settings.symmetric.value_or(true)) {
    tensors.get("weight_zero_point");  // says that it is missing
  }
  if (const Tensor* g_idx = tensors.find("weight_g_idx")) {
    info.act_order = inspect_order(*g_idx, info);
  }
  inspect_bias(tensors, info);
  return info;
}

/// Zeros [G, N].
std::vector<std::uint16_t> zeros(const LayerTensors& tensors, const LayerInfo& info) {
  const Tensor& zero_point = tensors.get("weight_zero_point");
  const std::int64_t groups = groups_of(info), n = info.out_features;
  std::vector<std::uint16_t> out(static_cast<std::size_t>(groups * n));
  if (zero_point.type() == SafetensorsType::I8) {
    const auto values = zero_point.values<std::int8_t>();
    const int offset = 1 << (info.bits - 1);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto row = static_cast<std::int64_t>(i) / groups;
      const auto group = static_cast<std::int64_t>(i) % groups;
      const int zero = values[i] + offset;
      if (zero < 0 || zero > 2 * offset - 1) {
        fail(ErrorCode::invalid_weights, "{} is {} at [{}, {}], expected {} to {}",
             zero_point.where(), values[i], row, group, -offset, offset - 1);
      }
      out[static_cast<std::size_t>(group * n + row)] = static_cast<std::uint16_t>(zero);
    }
    return out;
  }
  const auto words = zero_point.values<std::uint32_t>();
  const std::int64_t per_word = 32 / info.bits;
  const std::uint32_t mask = (1u << info.bits) - 1u;
  for (std::int64_t group = 0; group < groups; ++group) {
    for (std::int64_t c = 0; c < n; ++c) {
      const std::uint32_t word = words[static_cast<std::size_t>(c / per_word * groups + group)];
      out[static_cast<std::size_t>(group * n + c)] =
          static_cast<std::uint16_t>((word >> (c % per_word * info.bits)) & mask);
    }
  }
  return out;
}

WeightsData decode(const LayerTensors& tensors, const LayerInfo& info) {
  WeightsData data = begin_data(tensors, info);
  const std::int64_t n = info.out_features;
  data.qweight = transposed(tensors.get("weight_packed").values<std::uint32_t>(), n,
                            ceil_div(info.in_features * info.bits, 32));
  data.scales = transposed(tensors.get("weight_scale").halves(info.dtype), n, groups_of(info));
  if (info.zero_kind == ZeroKind::integer) data.zeros = zeros(tensors, info);
  if (info.act_order) data.g_idx = tensors.get("weight_g_idx").values<std::int32_t>();
  return data;
}

/// How closely a target names a layer: by its name, by a pattern, by its class; 0: not at all.
int closeness(const std::string& target, std::string_view layer, const std::string& where) {
  if (target == layer) return 3;
  if (target.starts_with("re:")) {
    const auto matches = matches_beginning(layer, std::string_view(target).substr(3));
    if (!matches) {
      fail(ErrorCode::unsupported, "{}: target {} is not understood", where, in_quotes(target));
    }
    return *matches ? 2 : 0;
  }
  // A class, of which the tensors' names say nothing: layers with packed weights are "Linear".
  return target == "Linear" ? 1 : 0;
}

void check_pack_quantized(const SettingsObject& object) {
  const auto format = object.text({"format"});
  if (!format || *format == "pack-quantized" || *format == "mixed-precision") return;
  fail(ErrorCode::unsupported, "{}: compressed-tensors format {} is not supported, only {}",
       object.where(), in_quotes(*format), in_quotes("pack-quantized"));
}

void fill_weights(const SettingsObject& group, LayerSettings& settings) {
  const auto weights = group.object_if("weights");
  if (!weights) return;
  if (weights->text({"type"}).value_or("int") != "int") {
    fail(ErrorCode::unsupported, "{}: type {} is not supported, only \"int\"", weights->where(),
         in_quotes(*weights->text({"type"})));
  }
  const auto strategy = weights->text({"strategy"}).value_or("group");
  if (strategy != "group" && strategy != "channel") {
    fail(ErrorCode::unsupported, "{}: strategy {} is not supported, only {} and {}",
         weights->where(), in_quotes(strategy), in_quotes("group"), in_quotes("channel"));
  }
  if (!settings.group_size && strategy == "channel") settings.group_size = -1;
  settings.fill(*weights);
}

Fitted fit(WeightsData weights, int bits) {
  decompress(weights);
  if (weights.zero_kind == ZeroKind::none) return {std::move(weights), true};
  return fit_integer_zeros(std::move(weights), bits, 0, (1 << bits) - 1);
}

EncodedTensor encoded_zero_point(const WeightsData& weights, int bits) {
  const std::int64_t groups = weights.groups(), n = weights.out_features, per_word = 32 / bits;
  const std::int64_t rows = ceil_div(n, per_word);
  std::vector<std::uint32_t> words(static_cast<std::size_t>(rows * groups));
  for (std::int64_t g = 0; g < groups; ++g) {
    for (std::int64_t c = 0; c < n; ++c) {
      const std::uint32_t zero = weights.zeros[static_cast<std::size_t>(g * n + c)];
      words[static_cast<std::size_t>(c / per_word * groups + g)] |= zero << (c % per_word * bits);
    }
  }
  return encoded("weight_zero_point", SafetensorsType::I32, {rows, groups}, words);
}

std::vector<EncodedTensor> encode(const WeightsData& weights, int bits) {
  const std::int64_t n = weights.out_features, groups = weights.groups();
  const std::int64_t row_words = ceil_div(weights.in_features * bits, 32);
  std::vector<EncodedTensor> tensors{encoded("weight_packed", SafetensorsType::I32, {n, row_words},
                                             transposed(clean_codes(weights, bits), row_words, n)),
                                     encoded("weight_scale", type_of(weights.dtype), {n, groups},
                                             transposed(weights.scales, groups, n)),
                                     encoded("weight_shape", SafetensorsType::I64, {2},
                                             std::vector<std::int64_t>{n, weights.in_features})};
  if (weights.zero_kind == ZeroKind::integer) tensors.push_back(encoded_zero_point(weights, bits));
  if (!weights.g_idx.empty()) {
    tensors.push_back(
        encoded("weight_g_idx", SafetensorsType::I32, {weights.in_features}, weights.g_idx));
  }
  append_bias(weights, tensors);
  return tensors;
}

bool same_settings(const WrittenLayer& a, const WrittenLayer& b) {
  return a.bits == b.bits && a.group_size == b.group_size && a.zero_kind == b.zero_kind &&
         a.act_order == b.act_order;
}

SettingsTree group_settings(const WrittenLayer& layer, std::vector<std::string> targets) {
  SettingsTree weights;
  weights.set("num_bits", layer.bits)
      .set("type", "int")
      .set("symmetric", layer.zero_kind == ZeroKind::none);
  if (layer.group_size == -1) {
    weights.set("strategy", "channel");
  } else {
    weights.set("strategy", "group").set("group_size", layer.group_size);
  }
  if (layer.act_order) weights.set("actorder", "group");
  return SettingsTree{}.set("targets", std::move(targets)).set("weights", weights);
}

/// Most layers are in the group of the class "Linear", the others in groups that name them.
SettingsTree written_settings(std::span<const WrittenLayer> layers,
                              const std::vector<std::string>& dense) {
  const WrittenLayer& usual = usual_layer(layers, same_settings);
  std::vector<std::pair<const WrittenLayer*, std::vector<std::string>>> others;
  for (const auto& layer : layers) {
    if (same_settings(layer, usual)) continue;
    auto kind = std::ranges::find_if(
        others, [&](const auto& other) { return same_settings(*other.first, layer); });
    if (kind == others.end()) kind = others.insert(others.end(), {&layer, {}});
    kind->second.push_back(layer.name);
  }
  SettingsTree groups;
  groups.set("group_0", group_settings(usual, {"Linear"}));
  for (auto& [layer, names] : others) {
    groups.set(detail::format("group_{}", groups.members.size()),
               group_settings(*layer, std::move(names)));
  }
  return SettingsTree{}
      .set("quant_method", "compressed-tensors")
      .set("format", "pack-quantized")
      .set("quantization_status", "compressed")
      .set("config_groups", groups)
      .set("ignore", dense);
}

constexpr FormatWriter kWriter{fit, encode, written_settings, nullptr};

}  // namespace

void read_compressed_tensors_settings(const SettingsObject& object, std::string_view layer,
                                      LayerSettings& settings) {
  if (object.text({"quant_method"}) != "compressed-tensors") return;
  check_pack_quantized(object);
  if (!settings.format) settings.format = "compressed-tensors";
  const auto groups = object.object_if("config_groups");
  if (!groups || layer.empty()) return;
  int closest = 0;
  std::optional<SettingsObject> chosen;
  for (const auto& [name, group] : groups->members()) {
    if (!group) continue;
    for (const auto& target : group->texts("targets")) {
      const int close = closeness(target, layer, group->where());
      if (close <= closest) continue;
      closest = close;
      chosen = group;
    }
  }
  if (!chosen) return;
  check_pack_quantized(*chosen);
  fill_weights(*chosen, settings);
}

constinit const Format kCompressedTensors{
    "compressed-tensors", kMarks, claims, inspect, decode, &kWriter, zeros};

}  // namespace mpq::detail

// MLX, affine mode.
//
//   weight U32 [N, K*b/32]  packed along K      scales, biases [N, K/g]      bias [N], optional
//
// w = s * q + beta. Settings: config.json -> quantization {bits, group_size, mode}, in which a
// member that is called like a layer has that layer's own.

#include <array>

#include "checkpoint/format.hpp"
#include "checkpoint/packed_layer.hpp"
#include "checkpoint/text.hpp"

namespace mpq::detail {

namespace {

using namespace std::string_view_literals;

constexpr std::array kMarks{"biases"sv};

bool claims(const LayerTensors& tensors) {
  const Tensor* weight = tensors.find("weight");
  return weight != nullptr && weight->type() == SafetensorsType::U32 && tensors.has("biases");
}

LayerInfo inspect(const LayerTensors& tensors, const LayerSettings& settings) {
  LayerInfo info = begin_info(tensors);
  info.bits = known_bits(tensors, settings);
  const Tensor& weight = tensors.get("weight");
  weight.of_type({SafetensorsType::U32}).of_rank(2, "out_features, in_features * bits / 32");
  info.out_features = weight.shape()[0];
  info.in_features = weight.shape()[1] * (32 / info.bits);
  check_features(info, weight);
  const Tensor& scales = tensors.get("scales").of_rank(2, "out_features, groups");
  info.group_size = known_group_size(tensors, settings, scales.shape()[1]);
  if (info.group_size != -1 && info.in_features % info.group_size != 0) {
    fail(ErrorCode::invalid_file, "layer {}: group_size {} does not divide in_features {}",
         in_quotes(info.name), info.group_size, info.in_features);
  }
  scales.of_shape({info.out_features, groups_of(info)}, "out_features, groups");
  tensors.get("biases")
      .of_type({SafetensorsType::F16, SafetensorsType::BF16, SafetensorsType::F32})
      .of_shape({info.out_features, groups_of(info)}, "out_features, groups");
  inspect_bias(tensors, info);
  info.zero_kind = ZeroKind::affine;
  info.dtype = scales.exact_dtype();
  return info;
}

WeightsData decode(const LayerTensors& tensors, const LayerInfo& info) {
  WeightsData data = begin_data(tensors, info);
  const std::int64_t n = info.out_features, groups = groups_of(info);
  data.qweight = transposed(tensors.get("weight").values<std::uint32_t>(), n,
                            info.in_features * info.bits / 32);
  data.scales = transposed(tensors.get("scales").halves(info.dtype), n, groups);
  data.affine_zeros = transposed(tensors.get("biases").floats(), n, groups);
  return data;
}

}  // namespace

/// MLX names no method; its object is known by having bits and group_size and no other tool's key.
void read_mlx_settings(const SettingsObject& object, std::string_view layer,
                       LayerSettings& settings) {
  const bool own = !object.text({"quant_method", "method", "checkpoint_format", "format"}) &&
                   !object.integer({"w_bit"}) && object.text({"mode"});
  if (own && *object.text({"mode"}) != "affine") {
    fail(ErrorCode::unsupported, "{}: mode {} is not supported, only \"affine\"", object.where(),
         in_quotes(*object.text({"mode"})));
  }
  if (layer.empty()) return;
  if (const auto entry = object.object_if(std::string(layer))) settings.fill(*entry);
}

constinit const Format kMlx{"mlx", kMarks, claims, inspect, decode};

}  // namespace mpq::detail

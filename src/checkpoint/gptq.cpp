// GPTQ (AutoGPTQ, GPTQModel, bitorch-engine's MPQ layer without GBA), versions 1 and 2.
//
//   qweight I32 [ceil(K*b/32), N]  the canonical order      scales [G, N]      bias [N], optional
//   qzeros  I32 [G, ceil(N*b/32)]  packed along N           g_idx I32 [K], optional
//
// w = s * (q - z), with z the stored code + 1 in version 1 and the stored code in version 2. Policy
// for version 1: always stored + 1, not masked, so z is in [1, 2^b]. Some files say "gptq" and hold
// version 2 zeros, or the other way round. For symmetric weights that shows: each zero is then
// 2^(b-1), one word again and again (4 bits: 0x88888888 in version 2, 0x77777777 in version 1).
// Such a layer is read as what it is, and LayerInfo::note says so; a caller who names the format is
// obeyed. Nothing proves it of asymmetric zeros: there the file is believed.
//
// Settings: `dynamic` maps patterns to overrides.

#include <algorithm>
#include <array>
#include <cstring>

#include "checkpoint/format.hpp"
#include "checkpoint/packed_layer.hpp"
#include "checkpoint/pattern.hpp"
#include "checkpoint/text.hpp"

namespace mpq::detail {

namespace {

using namespace std::string_view_literals;

constexpr std::array kMarks{"qweight"sv, "qzeros"sv};

bool claims_v1(const LayerTensors& tensors) {
  return !tensors.has("qstatistic") && !tensors.has("qscales");
}

// Names and shapes are those of version 1: only a setting tells them apart.
bool claims_v2(const LayerTensors&) {
  return false;
}

/// Whether every stored zero of the layer is `code`.
bool all_zeros_are(const LayerTensors& tensors, const LayerInfo& info, std::uint32_t code) {
  const Tensor& qzeros = tensors.get("qzeros");
  const auto bytes = qzeros.file->bytes(*qzeros.entry);
  const std::int64_t n = info.out_features, per_word = 32 / info.bits;
  const std::int64_t row_words = ceil_div(n, per_word);
  std::uint32_t full = 0;
  for (int i = 0; i < per_word; ++i) full |= code << (i * info.bits);
  const auto used = static_cast<int>(n - (row_words - 1) * per_word) * info.bits;
  const std::uint32_t last_mask = used == 32 ? ~0u : (1u << used) - 1u;
  for (std::size_t i = 0; i < bytes.size() / 4; ++i) {
    std::uint32_t word = 0;
    std::memcpy(&word, bytes.data() + 4 * i, 4);
    const bool last = static_cast<std::int64_t>(i) % row_words == row_words - 1;
    if (((word ^ full) & (last ? last_mask : ~0u)) != 0) return false;
  }
  return true;
}

/// Few zeros may all be the same by chance.
constexpr std::int64_t kTellingZeros = 64;

/// Notes a layer whose zeros are those of symmetric weights in the other version.
void correct_version(const LayerTensors& tensors, const LayerSettings& settings, int version,
                     LayerInfo& info) {
  const bool told = settings.symmetric.value_or(false);
  if (info.bits == 1 || (!told && groups_of(info) * info.out_features < kTellingZeros)) return;
  const auto middle = 1u << (info.bits - 1);
  if (!all_zeros_are(tensors, info, version == 1 ? middle : middle - 1)) return;
  const char* actual = version == 1 ? "gptq_v2" : "gptq";
  info.note = detail::format(
      "labelled {}, but every stored zero is {}, as {} stores the zero {} of symmetric weights: {}",
      version == 1 ? "gptq" : "gptq_v2", version == 1 ? middle : middle - 1, actual, middle,
      settings.format_is_forced ? "read as the caller says" : detail::format("read as {}", actual));
  if (!settings.format_is_forced) info.format = actual;
}

template <int kVersion>
LayerInfo inspect(const LayerTensors& tensors, const LayerSettings& settings) {
  const Tensor& scales = tensors.get("scales").of_rank(2, "groups, out_features");
  LayerInfo info = inspect_packed(tensors, settings, scales);
  scales.of_shape({groups_of(info), info.out_features}, "groups, out_features");
  inspect_qzeros(tensors, info);
  info.zero_kind = ZeroKind::integer;
  info.dtype = scales.exact_dtype();
  correct_version(tensors, settings, kVersion, info);
  return info;
}

template <unsigned kZeroOffset>
std::vector<std::uint16_t> zeros(const LayerTensors& tensors, const LayerInfo& info) {
  return decode_qzeros(tensors, info, kZeroOffset);
}

template <unsigned kZeroOffset>
WeightsData decode(const LayerTensors& tensors, const LayerInfo& info) {
  WeightsData data = decode_packed(tensors, info);
  data.scales = tensors.get("scales").halves(info.dtype);
  data.zeros = zeros<kZeroOffset>(tensors, info);
  return data;
}

template <int kVersion>
Fitted fit(WeightsData weights, int bits) {
  constexpr int kLeast = kVersion == 1 ? 1 : 0;
  return fit_integer_zeros(std::move(weights), bits, kLeast, (1 << bits) - 1 + kLeast);
}

template <int kVersion>
std::vector<EncodedTensor> encode(const WeightsData& weights, int bits) {
  const std::int64_t n = weights.out_features;
  std::vector<EncodedTensor> tensors{
      encoded("qweight", SafetensorsType::I32, {ceil_div(weights.in_features * bits, 32), n},
              clean_codes(weights, bits)),
      encoded_qzeros(weights, bits, kVersion == 1 ? 1 : 0),
      encoded("scales", type_of(weights.dtype), {weights.groups(), n}, weights.scales),
      encoded("g_idx", SafetensorsType::I32, {weights.in_features}, full_g_idx(weights))};
  append_bias(weights, tensors);
  return tensors;
}

bool same_settings(const WrittenLayer& a, const WrittenLayer& b) {
  return a.bits == b.bits && a.group_size == b.group_size;
}

template <int kVersion>
SettingsTree written_settings(std::span<const WrittenLayer> layers,
                              const std::vector<std::string>&) {
  const WrittenLayer& usual = usual_layer(layers, same_settings);
  SettingsTree settings, dynamic;
  settings.set("bits", usual.bits)
      .set("group_size", usual.group_size)
      .set("desc_act", std::ranges::any_of(layers, &WrittenLayer::act_order))
      .set("sym", std::ranges::all_of(layers, &WrittenLayer::symmetric))
      .set("quant_method", "gptq")
      .set("checkpoint_format", kVersion == 1 ? "gptq" : "gptq_v2");
  for (const auto& layer : layers) {
    if (same_settings(layer, usual)) continue;
    dynamic.set("+:" + exact_pattern(layer.name),
                SettingsTree{}.set("bits", layer.bits).set("group_size", layer.group_size));
  }
  if (!dynamic.members.empty()) settings.set("dynamic", dynamic);
  return settings;
}

constexpr FormatWriter kWriterV1{fit<1>, encode<1>, written_settings<1>, "quantize_config.json"};
constexpr FormatWriter kWriterV2{fit<2>, encode<2>, written_settings<2>, "quantize_config.json"};

}  // namespace

/// The overrides of the first pattern of `dynamic` that matches the beginning of the name, as
/// GPTQModel reads it: "+:regex" or "regex" overrides, "-:regex" says that there is nothing to say.
void read_gptq_settings(const SettingsObject& object, std::string_view layer,
                        LayerSettings& settings) {
  const auto dynamic = object.object_if("dynamic");
  if (!dynamic || layer.empty()) return;
  for (const auto& [key, overrides] : dynamic->members()) {
    std::string_view pattern = key;
    const bool excludes = pattern.starts_with("-:");
    if (excludes || pattern.starts_with("+:")) pattern.remove_prefix(2);
    const auto matches = matches_beginning(layer, pattern);
    if (!matches) {
      fail(ErrorCode::unsupported, "{}: pattern {} is not understood", dynamic->where(),
           in_quotes(key));
    }
    if (!*matches) continue;
    if (!excludes && overrides) settings.fill(*overrides);
    return;
  }
}

constinit const Format kGptq{"gptq",    kMarks,     claims_v1, inspect<1>,
                             decode<1>, &kWriterV1, zeros<1>};
constinit const Format kGptqV2{"gptq_v2", kMarks,     claims_v2, inspect<2>,
                               decode<0>, &kWriterV2, zeros<0>};

}  // namespace mpq::detail

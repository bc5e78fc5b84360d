#include "checkpoint/settings.hpp"

#include "checkpoint/format.hpp"
#include "checkpoint/pattern.hpp"
#include "checkpoint/text.hpp"

namespace mpq::detail {

namespace {

/// The method names a format, except that GPTQ's variants are told by a second key.
void fill_format(LayerSettings& settings, const SettingsObject& object) {
  if (settings.format) return;
  auto method = object.text({"quant_method", "method"});
  if (method.value_or("gptq") == "gptq") {
    auto variant = object.text({"checkpoint_format", "format"});
    if (object.boolean({"is_marlin_format"}).value_or(false)) variant = "marlin";
    if (variant) method = variant;
  }
  settings.format = method;
}

LayerSettings from_directory_name(const std::filesystem::path& directory) {
  LayerSettings settings;
  std::error_code error;
  const auto canonical = std::filesystem::canonical(directory, error);
  const std::string name = canonical.filename().string();
  if (error) return settings;
  for (const char* form : {"w([1-8])a16g([0-9]{1,6})", "([1-8])-?bit-groupsize([0-9]{1,6})"}) {
    const auto groups = first_match(name, form);
    if (groups.empty()) continue;
    settings.bits = std::stoi(groups[1]);
    settings.group_size = std::stoi(groups[2]);
    break;
  }
  return settings;
}

void check_ranges(const LayerSettings& s, ErrorCode code, const std::string& where) {
  if (s.bits && !is_supported_bits(*s.bits)) {
    fail(ErrorCode::unsupported, "{}: bits is {}, supported are 1, 2, 4 and 8", where, *s.bits);
  }
  if (s.group_size && *s.group_size != -1 && *s.group_size < 1) {
    fail(code, "{}: group_size is {}, expected -1 or at least 1", where, *s.group_size);
  }
  if (s.dq_group_size && *s.dq_group_size != -1 && *s.dq_group_size < 1) {
    fail(code, "{}: dq_group_size is {}, expected -1 or at least 1", where, *s.dq_group_size);
  }
  if (s.dq_mode && *s.dq_mode != 1 && *s.dq_mode != 2) {
    fail(code, "{}: dq_mode is {}, expected 1 or 2", where, *s.dq_mode);
  }
}

/// The part of config.json that is about quantisation. Old compressed-tensors files call it
/// compression_config; MLX writes `quantization`, newer versions the same as quantization_config.
std::optional<SettingsObject> quantization_of(const SettingsObject& config) {
  if (auto inner = config.object("quantization_config")) return inner;
  if (auto inner = config.object_if("compression_config")) return inner;
  return config.object_if("quantization");
}

}  // namespace

void LayerSettings::fill(const SettingsObject& object) {
  fill_format(*this, object);
  if (!bits) bits = object.integer({"bits", "w_bit", "num_bits", "nbits"});
  if (!group_size) group_size = object.integer({"group_size", "q_group_size"});
  if (!asymmetric) asymmetric = object.boolean({"asym"});
  if (!dq_group_size) dq_group_size = object.integer({"dq_group_size"});
  if (!dq_mode) dq_mode = object.integer({"dq_mode"});
  if (!desc_act) desc_act = object.boolean({"desc_act"});
  if (!symmetric) symmetric = object.boolean({"sym", "symmetric"});
}

std::optional<SettingsObject> entry_by_name(const SettingsObject& object, std::string_view layer) {
  while (true) {
    if (auto entry = object.object_if(std::string(layer))) return entry;
    const auto dot = layer.find('.');
    if (dot == std::string_view::npos) return std::nullopt;
    layer.remove_prefix(dot + 1);
  }
}

Settings Settings::read(const std::filesystem::path& directory, const CheckpointOptions& options) {
  Settings settings;
  static_cast<CheckpointOptions&>(settings.options_) = options;
  settings.options_.format_is_forced = options.format.has_value();
  check_ranges(settings.options_, ErrorCode::invalid_argument, "options");
  settings.directory_name_ = from_directory_name(directory);
  for (const char* name :
       {"quantize_config.json", "quant_config.json", "quant_strategy.json", "config.json"}) {
    const auto path = directory / name;
    std::error_code error;
    if (!std::filesystem::exists(path, error)) continue;
    auto source = SettingsObject::read(path);
    if (std::string_view(name) == "config.json") {
      auto inner = quantization_of(source);
      if (!inner) continue;
      source = std::move(*inner);
    }
    settings.sources_.push_back(std::move(source));
  }
  return settings;
}

LayerSettings Settings::unchecked(std::string_view name) const {
  LayerSettings settings = options_;
  for (const auto& source : sources_) {
    for (const auto reader : settings_readers()) reader(source, name, settings);
  }
  for (const auto& source : sources_) settings.fill(source);
  if (!settings.bits) settings.bits = directory_name_.bits;
  if (!settings.group_size) settings.group_size = directory_name_.group_size;
  return settings;
}

LayerSettings Settings::for_layer(std::string_view name) const {
  LayerSettings settings = unchecked(name);
  check_ranges(settings, ErrorCode::invalid_file,
               detail::format("settings of layer {}", in_quotes(name)));
  return settings;
}

std::optional<std::string> Settings::format() const {
  return unchecked("").format;
}

}  // namespace mpq::detail

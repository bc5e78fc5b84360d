#include "checkpoint/settings.hpp"

#include <initializer_list>
#include <limits>

#include "checkpoint/pattern.hpp"
#include "checkpoint/text.hpp"

namespace mpq::detail {

namespace {

/// The value of the first of `keys` that is there and not null.
const SettingsJson* find(const SettingsJson& object, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    const auto at = object.find(key);
    if (at != object.end() && !at->is_null()) return &*at;
  }
  return nullptr;
}

void take(std::optional<int>& setting, const SettingsJson& object,
          std::initializer_list<const char*> keys, const std::string& where) {
  const SettingsJson* value = find(object, keys);
  if (setting || value == nullptr) return;
  // Compared as int64: a larger unsigned number turns up there as a negative one or is refused
  // here.
  const bool fits = value->is_number_integer() &&
                    !(value->is_number_unsigned() &&
                      value->get<std::uint64_t>() > std::numeric_limits<int>::max()) &&
                    value->get<std::int64_t>() >= std::numeric_limits<int>::min();
  if (!fits) {
    fail(ErrorCode::invalid_file, "{}: {} is {}, expected an integer of 32 bits", where,
         *keys.begin(), in_quotes(value->dump(-1, ' ', true)));
  }
  setting = value->get<int>();
}

void take(std::optional<bool>& setting, const SettingsJson& object,
          std::initializer_list<const char*> keys, const std::string& where) {
  const SettingsJson* value = find(object, keys);
  if (setting || value == nullptr) return;
  if (!value->is_boolean()) {
    fail(ErrorCode::invalid_file, "{}: {} is {}, expected true or false", where, *keys.begin(),
         in_quotes(value->dump(-1, ' ', true)));
  }
  setting = value->get<bool>();
}

std::optional<std::string> text_of(const SettingsJson& object,
                                   std::initializer_list<const char*> keys,
                                   const std::string& where) {
  const SettingsJson* value = find(object, keys);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    fail(ErrorCode::invalid_file, "{}: {} is {}, expected a string", where, *keys.begin(),
         in_quotes(value->dump(-1, ' ', true)));
  }
  return value->get<std::string>();
}

/// The method names a format, except that GPTQ's variants are told by a second key.
void take_format(LayerSettings& settings, const SettingsJson& object, const std::string& where) {
  if (settings.format) return;
  auto method = text_of(object, {"quant_method", "method"}, where);
  auto variant = text_of(object, {"checkpoint_format", "format"}, where);
  std::optional<bool> marlin;
  take(marlin, object, {"is_marlin_format"}, where);
  if (marlin.value_or(false)) variant = "marlin";
  settings.format = variant && method.value_or("gptq") == "gptq" ? variant : method;
}

/// Fills what is still empty from one object of settings.
void merge(LayerSettings& settings, const SettingsJson& object, const std::string& where) {
  take_format(settings, object, where);
  take(settings.bits, object, {"bits", "w_bit"}, where);
  take(settings.group_size, object, {"group_size"}, where);
  take(settings.asymmetric, object, {"asym"}, where);
  take(settings.dq_group_size, object, {"dq_group_size"}, where);
  take(settings.dq_mode, object, {"dq_mode"}, where);
  take(settings.desc_act, object, {"desc_act"}, where);
}

void merge(LayerSettings& settings, const LayerSettings& other) {
  if (!settings.bits) settings.bits = other.bits;
  if (!settings.group_size) settings.group_size = other.group_size;
}

/// The entry of `strategy` for the layer: its whole name or the longest end of it.
const SettingsJson* strategy_entry(const SettingsJson& values, std::string_view name) {
  const SettingsJson* strategy = find(values, {"strategy"});
  if (strategy == nullptr || !strategy->is_object()) return nullptr;
  while (true) {
    const auto at = strategy->find(std::string(name));
    if (at != strategy->end() && at->is_object()) return &*at;
    const auto dot = name.find('.');
    if (dot == std::string_view::npos) return nullptr;
    name.remove_prefix(dot + 1);
  }
}

/// The overrides of the first pattern of `dynamic` that matches the beginning of the name, as
/// GPTQModel reads it: "+:regex" or "regex" overrides, "-:regex" says that there is nothing to say.
const SettingsJson* dynamic_entry(const SettingsJson& values, std::string_view name,
                                  const std::string& where) {
  const SettingsJson* dynamic = find(values, {"dynamic"});
  if (dynamic == nullptr || !dynamic->is_object()) return nullptr;
  for (const auto& [key, overrides] : dynamic->items()) {
    std::string_view pattern = key;
    const bool excludes = pattern.starts_with("-:");
    if (excludes || pattern.starts_with("+:")) pattern.remove_prefix(2);
    const auto matches = matches_beginning(name, pattern);
    if (!matches) {
      fail(ErrorCode::unsupported, "{}: dynamic: pattern {} is not understood", where,
           in_quotes(key));
    }
    if (*matches) return excludes || !overrides.is_object() ? nullptr : &overrides;
  }
  return nullptr;
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

}  // namespace

Settings Settings::read(const std::filesystem::path& directory, const CheckpointOptions& options) {
  Settings settings;
  static_cast<CheckpointOptions&>(settings.options_) = options;
  check_ranges(settings.options_, ErrorCode::invalid_argument, "options");
  settings.directory_name_ = from_directory_name(directory);
  for (const char* name : {"quantize_config.json", "quant_config.json", "config.json"}) {
    const auto path = directory / name;
    std::error_code error;
    if (!std::filesystem::exists(path, error)) continue;
    Source source{path.string(), read_json_object<SettingsJson>(path)};
    if (std::string_view(name) == "config.json") {
      const SettingsJson* inner = find(source.values, {"quantization_config"});
      if (inner == nullptr) continue;
      if (!inner->is_object()) {
        fail(ErrorCode::invalid_file, "{}: quantization_config is not an object", source.where);
      }
      source.values = SettingsJson(*inner);
    }
    settings.sources_.push_back(std::move(source));
  }
  return settings;
}

LayerSettings Settings::for_layer(std::string_view name) const {
  LayerSettings settings = options_;
  for (const auto& source : sources_) {
    if (const auto* entry = dynamic_entry(source.values, name, source.where)) {
      merge(settings, *entry, source.where);
    }
    if (const auto* entry = strategy_entry(source.values, name)) {
      merge(settings, *entry, source.where);
    }
  }
  for (const auto& source : sources_) merge(settings, source.values, source.where);
  merge(settings, directory_name_);
  check_ranges(settings, ErrorCode::invalid_file,
               fmt::format("settings of layer {}", in_quotes(name)));
  return settings;
}

}  // namespace mpq::detail

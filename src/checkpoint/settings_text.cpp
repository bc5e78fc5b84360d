#include "checkpoint/settings_text.hpp"

#include "checkpoint/json_file.hpp"
#include "checkpoint/text.hpp"

namespace mpq::detail {

namespace {

SettingsJson to_json(const SettingsTree& tree) {
  auto object = SettingsJson::object();
  for (const auto& [key, value] : tree.members) {
    object[key] = std::visit(
        [](const auto& v) -> SettingsJson {
          if constexpr (std::is_same_v<std::remove_cvref_t<decltype(v)>, SettingsTree>) {
            return to_json(v);
          } else {
            return v;
          }
        },
        value);
  }
  return object;
}

std::string dumped(const SettingsJson& json) {
  try {
    return json.dump(2) + "\n";
  } catch (const SettingsJson::exception&) {
    fail(ErrorCode::invalid_argument, "a layer's name is not UTF-8");
  }
}

}  // namespace

SettingsTree& SettingsTree::set(std::string key, Value value) {
  members.push_back({std::move(key), std::move(value)});
  return *this;
}

std::string settings_text(const SettingsTree& settings) {
  return dumped(to_json(settings));
}

std::string config_text(const SettingsTree& settings, const std::filesystem::path& base) {
  auto config = SettingsJson::object();
  std::error_code error;
  if (!base.empty() && std::filesystem::exists(base, error)) {
    config = read_json_object<SettingsJson>(base);
  }
  config.erase("quantization");
  config["quantization_config"] = to_json(settings);
  return dumped(config);
}

std::string exact_pattern(const std::string& text) {
  std::string out = "^";
  for (const char c : text) {
    if (std::string_view("\\^$.|?*+()[]{}").find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out + "$";
}

}  // namespace mpq::detail

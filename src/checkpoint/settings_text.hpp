#pragma once
// Settings to be written, without the JSON library: a format says what, one file says how.

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace mpq::detail {

/// An object of settings, in the order in which its members are to be written.
struct SettingsTree {
  using Value =
      std::variant<bool, std::int64_t, std::string, std::vector<std::string>, SettingsTree>;
  struct Member;
  std::vector<Member> members;

  SettingsTree& set(std::string key, Value value);
};

struct SettingsTree::Member {
  std::string key;
  Value value;
};

/// The JSON text of a settings file.
std::string settings_text(const SettingsTree& settings);

/// config.json with `settings` as its quantization_config; everything else from the file `base`,
/// if that is not empty and exists. Throws as read_json_object does.
std::string config_text(const SettingsTree& settings, const std::filesystem::path& base);

/// `text` as a pattern that matches nothing else.
std::string exact_pattern(const std::string& text);

}  // namespace mpq::detail

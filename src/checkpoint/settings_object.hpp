#pragma once
// An object of a settings file, without the JSON library: formats read their settings through it,
// and every complaint names the file and the key.

#include <filesystem>
#include <initializer_list>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mpq::detail {

/// A view that keeps its file's contents alive. Where several keys are given they are names of the
/// same setting: the first that is there and not null is taken.
class SettingsObject {
 public:
  using Keys = std::initializer_list<const char*>;
  struct Member;

  /// The top level of a file. Throws as read_json_object does.
  static SettingsObject read(const std::filesystem::path& path);

  /// The file and the way to this object, for messages.
  const std::string& where() const noexcept { return where_; }

  // Nothing where there is no such key or it is null; Error(invalid_file) for another type.
  std::optional<int> integer(Keys keys) const;
  std::optional<bool> boolean(Keys keys) const;
  std::optional<std::string> text(Keys keys) const;
  std::vector<std::string> texts(const std::string& key) const;
  std::vector<int> integers(const std::string& key) const;
  std::optional<SettingsObject> object(const std::string& key) const;
  /// As object(), but nothing for another type too.
  std::optional<SettingsObject> object_if(const std::string& key) const;
  /// All members in the order of the file; those that are not objects without one.
  std::vector<Member> members() const;

 private:
  using Json = nlohmann::ordered_json;
  SettingsObject(std::shared_ptr<const Json> json, std::string where)
      : json_(std::move(json)), where_(std::move(where)) {}
  const Json* find(Keys keys) const;
  SettingsObject child(const std::string& key, const Json& value) const;
  [[noreturn]] void refuse(const std::string& key, const Json& value, const char* expected) const;

  std::shared_ptr<const Json> json_;
  std::string where_;
};

struct SettingsObject::Member {
  std::string key;
  std::optional<SettingsObject> value;
};

}  // namespace mpq::detail

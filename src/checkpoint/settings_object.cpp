#include "checkpoint/settings_object.hpp"

#include <limits>

#include "checkpoint/json_file.hpp"
#include "checkpoint/text.hpp"

namespace mpq::detail {

namespace {

/// Compared as 64 bits: a larger unsigned number turns up there as a negative one or is refused.
bool is_int(const SettingsJson& value) {
  return value.is_number_integer() &&
         !(value.is_number_unsigned() &&
           value.get<std::uint64_t>() > std::numeric_limits<int>::max()) &&
         value.get<std::int64_t>() >= std::numeric_limits<int>::min();
}

}  // namespace

SettingsObject SettingsObject::read(const std::filesystem::path& path) {
  return {std::make_shared<const Json>(read_json_object<SettingsJson>(path)), path.string()};
}

const SettingsObject::Json* SettingsObject::find(Keys keys) const {
  for (const char* key : keys) {
    const auto at = json_->find(key);
    if (at != json_->end() && !at->is_null()) return &*at;
  }
  return nullptr;
}

SettingsObject SettingsObject::child(const std::string& key, const Json& value) const {
  return {std::shared_ptr<const Json>(json_, &value), detail::format("{}: {}", where_, key)};
}

void SettingsObject::refuse(const std::string& key, const Json& value, const char* expected) const {
  fail(ErrorCode::invalid_file, "{}: {} is {}, expected {}", where_, key,
       in_quotes(value.dump(-1, ' ', true)), expected);
}

std::optional<int> SettingsObject::integer(Keys keys) const {
  const Json* value = find(keys);
  if (value == nullptr) return std::nullopt;
  if (!is_int(*value)) refuse(*keys.begin(), *value, "an integer of 32 bits");
  return value->get<int>();
}

std::optional<bool> SettingsObject::boolean(Keys keys) const {
  const Json* value = find(keys);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) refuse(*keys.begin(), *value, "true or false");
  return value->get<bool>();
}

std::optional<std::string> SettingsObject::text(Keys keys) const {
  const Json* value = find(keys);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) refuse(*keys.begin(), *value, "a string");
  return value->get<std::string>();
}

std::vector<std::string> SettingsObject::texts(const std::string& key) const {
  const Json* value = find({key.c_str()});
  std::vector<std::string> out;
  if (value == nullptr) return out;
  if (!value->is_array()) refuse(key, *value, "strings");
  for (const auto& each : *value) {
    if (!each.is_string()) refuse(key, *value, "strings");
    out.push_back(each.get<std::string>());
  }
  return out;
}

std::vector<int> SettingsObject::integers(const std::string& key) const {
  const Json* value = find({key.c_str()});
  std::vector<int> out;
  if (value == nullptr) return out;
  if (!value->is_array()) refuse(key, *value, "integers");
  for (const auto& each : *value) {
    if (!is_int(each)) refuse(key, *value, "integers of 32 bits");
    out.push_back(each.get<int>());
  }
  return out;
}

std::optional<SettingsObject> SettingsObject::object(const std::string& key) const {
  const Json* value = find({key.c_str()});
  if (value == nullptr) return std::nullopt;
  if (!value->is_object()) {
    fail(ErrorCode::invalid_file, "{}: {} is not an object", where_, in_quotes(key));
  }
  return child(key, *value);
}

std::optional<SettingsObject> SettingsObject::object_if(const std::string& key) const {
  const Json* value = find({key.c_str()});
  if (value == nullptr || !value->is_object()) return std::nullopt;
  return child(key, *value);
}

std::vector<SettingsObject::Member> SettingsObject::members() const {
  std::vector<Member> out;
  for (const auto& [key, value] : json_->items()) {
    out.push_back({key, value.is_object() ? std::optional(child(key, value)) : std::nullopt});
  }
  return out;
}

}  // namespace mpq::detail

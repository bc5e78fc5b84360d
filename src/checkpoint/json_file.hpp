#pragma once
// JSON files beside the tensors: settings and the index of shards.

#include <filesystem>
#include <nlohmann/json.hpp>

namespace mpq::detail {

/// Settings: the order of keys is kept, since patterns among them are tried in order.
using SettingsJson = nlohmann::ordered_json;

/// Reads an object. Throws Error(io_failure), or Error(invalid_file) for what is not an object, for
/// a key that is twice at any level, for nesting beyond 64 levels and for more than 32 MiB. Json:
/// nlohmann::json or SettingsJson.
template <class Json>
Json read_json_object(const std::filesystem::path& path);

}  // namespace mpq::detail

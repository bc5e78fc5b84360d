#include "checkpoint/shards.hpp"

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <system_error>

#include "checkpoint/json_file.hpp"
#include "checkpoint/text.hpp"

namespace mpq::detail {

namespace {

constexpr const char* kIndexName = "model.safetensors.index.json";

/// A name in the index is a file beside it: nothing that could lead out of the directory.
bool is_plain_name(std::string_view name) {
  return !name.empty() && name != "." && name.find("..") == std::string_view::npos &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
}

std::vector<SafetensorsFile> open_indexed(const std::filesystem::path& directory) {
  const auto path = directory / kIndexName;
  const auto index = read_json_object<nlohmann::json>(path);
  const auto weight_map = index.find("weight_map");
  if (weight_map == index.end() || !weight_map->is_object()) {
    fail(ErrorCode::invalid_file, "{}: no object \"weight_map\"", path.string());
  }
  std::map<std::string, std::vector<std::string>> tensors_of;
  for (const auto& [tensor, file] : weight_map->items()) {
    if (!file.is_string()) {
      fail(ErrorCode::invalid_file, "{}: the file of tensor {} is not a string", path.string(),
           in_quotes(tensor));
    }
    const auto& name = file.template get_ref<const std::string&>();
    if (!is_plain_name(name)) {
      fail(ErrorCode::invalid_file, "{}: tensor {} is in {}, which is not a plain file name",
           path.string(), in_quotes(tensor), in_quotes(name));
    }
    tensors_of[name].push_back(tensor);
  }
  std::vector<SafetensorsFile> files;
  for (const auto& [name, tensors] : tensors_of) {
    files.push_back(SafetensorsFile::open(directory / name));
    for (const auto& tensor : tensors) {
      if (files.back().find(tensor) == nullptr) {
        fail(ErrorCode::invalid_file, "{}: tensor {} is not in {}", path.string(),
             in_quotes(tensor), in_quotes(name));
      }
    }
  }
  return files;
}

/// Names of the files to open where there is no index.
std::set<std::string> unindexed_names(const std::filesystem::path& directory) {
  std::set<std::string> all, numbered;
  std::error_code error;
  for (std::filesystem::directory_iterator at(directory, error), end; !error && at != end;
       at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (!name.ends_with(".safetensors") || name.starts_with(".")) continue;
    all.insert(name);
    if (name.starts_with("model-")) numbered.insert(name);
  }
  if (error) fail(ErrorCode::io_failure, "{}: {}", directory.string(), error.message());
  // Other files may lie beside the model: adapters, test vectors.
  if (all.contains("model.safetensors")) return {"model.safetensors"};
  return numbered.empty() ? all : numbered;
}

}  // namespace

std::vector<SafetensorsFile> open_shards(const std::filesystem::path& directory) {
  std::error_code error;
  if (!std::filesystem::is_directory(directory, error)) {
    fail(ErrorCode::io_failure, "{}: {}", directory.string(),
         error ? error.message() : "not a directory");
  }
  std::vector<SafetensorsFile> files;
  if (std::filesystem::exists(directory / kIndexName, error)) {
    files = open_indexed(directory);
  } else {
    for (const auto& name : unindexed_names(directory)) {
      files.push_back(SafetensorsFile::open(directory / name));
    }
    if (files.empty()) {
      fail(ErrorCode::io_failure, "{}: no *.safetensors file in it", directory.string());
    }
  }
  std::map<std::string_view, const SafetensorsFile*> seen;
  for (const auto& file : files) {
    for (const auto& entry : file.entries()) {
      const auto [at, inserted] = seen.emplace(entry.name, &file);
      if (!inserted) {
        fail(ErrorCode::invalid_file, "{}: tensor {} is also in {}", file.path().string(),
             in_quotes(entry.name), at->second->path().filename().string());
      }
    }
  }
  return files;
}

}  // namespace mpq::detail

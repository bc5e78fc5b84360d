#pragma once
// Which files of a directory are the model's tensors.

#include <filesystem>
#include <vector>

#include "mpq/checkpoint.hpp"

namespace mpq::detail {

/// Opens the files that model.safetensors.index.json names; without it model.safetensors; without
/// that model-*.safetensors; else every *.safetensors file. Sorted by name. No tensor is in two.
/// Throws Error(io_failure, invalid_file) naming the file.
std::vector<SafetensorsFile> open_shards(const std::filesystem::path& directory);

}  // namespace mpq::detail

#pragma once
// What the settings files of a checkpoint say about a layer, under the names that mpq uses.

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/json_file.hpp"
#include "mpq/checkpoint.hpp"

namespace mpq::detail {

/// Settings of one layer; what no source tells is empty.
struct LayerSettings : CheckpointOptions {
  std::optional<bool> desc_act;  ///< GPTQ: columns were reordered, so g_idx must be there
};

/// Sources, the first that tells a setting wins: the caller; for one layer `dynamic` (patterns, the
/// first that matches the beginning of its name) and `strategy` (by its name or the end of it); the
/// top level of quantize_config.json, quant_config.json, config.json -> quantization_config; the
/// directory's name ("...w4a16g128...", "...-4bit-groupsize128...").
class Settings {
 public:
  /// Throws Error(io_failure, invalid_file, unsupported) naming the file and the key.
  static Settings read(const std::filesystem::path& directory, const CheckpointOptions& options);

  LayerSettings for_layer(std::string_view name) const;

 private:
  struct Source {
    std::string where;  ///< for messages
    SettingsJson values;
  };
  LayerSettings options_, directory_name_;
  std::vector<Source> sources_;
};

}  // namespace mpq::detail

#pragma once
// What the settings files of a checkpoint say about a layer, under the names that mpq uses.

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/settings_object.hpp"
#include "mpq/checkpoint.hpp"

namespace mpq::detail {

/// Settings of one layer; what no source tells is empty.
struct LayerSettings : CheckpointOptions {
  bool format_is_forced = false;  ///< by the caller: not to be corrected by what tensors look like
  std::optional<bool> desc_act;   ///< GPTQ: columns were reordered, so g_idx must be there
  std::optional<bool> symmetric;  ///< all zeros are 2^(bits-1)

  /// Fills what is empty from an object with the usual keys: bits, group_size, sym, ... and their
  /// other spellings.
  void fill(const SettingsObject& object);
};

/// Sources, the first that tells a setting wins: the caller; what a format's own part of a file
/// says of the layer (settings_readers()); the top level of quantize_config.json,
/// quant_config.json, quant_strategy.json, config.json -> quantization_config (MLX: quantization);
/// the directory's name ("...w4a16g128...", "...-4bit-groupsize128...").
class Settings {
 public:
  /// Throws Error(io_failure, invalid_file, unsupported) naming the file and the key.
  static Settings read(const std::filesystem::path& directory, const CheckpointOptions& options);

  LayerSettings for_layer(std::string_view name) const;
  /// The format that is told for all layers; nothing if none is.
  std::optional<std::string> format() const;

 private:
  LayerSettings unchecked(std::string_view name) const;

  LayerSettings options_, directory_name_;
  std::vector<SettingsObject> sources_;
};

/// The member of `object` that is called like the layer or like the longest end of its name.
std::optional<SettingsObject> entry_by_name(const SettingsObject& object, std::string_view layer);

}  // namespace mpq::detail

#pragma once
// The interface of a checkpoint format, and the table of those that there are. A new format is one
// file that defines a Format, and its row in formats.cpp.

#include <span>
#include <string_view>

#include "checkpoint/encoding.hpp"
#include "checkpoint/settings.hpp"
#include "checkpoint/tensors.hpp"
#include "mpq/checkpoint.hpp"
#include "mpq/mixed_weights.hpp"
#include "mpq/quantized_weights.hpp"

namespace mpq::detail {

struct Format {
  /// As in LayerInfo::format and CheckpointOptions::format; where the format's tools write a
  /// quant_method, that.
  const char* name;
  /// Suffixes of tensors that only quantised layers have: one makes a prefix a layer, so that a
  /// layer that lacks another tensor is an error and not a group of dense tensors.
  std::span<const std::string_view> marks;
  /// Whether a layer is of this format as far as its tensors' names and shapes tell, for when no
  /// setting does.
  bool (*claims)(const LayerTensors& tensors);
  /// Checks types and shapes of all tensors and reads no more than that needs. Sets
  /// LayerInfo::format only where the layer turns out to be of another format.
  LayerInfo (*inspect)(const LayerTensors& tensors, const LayerSettings& settings);
  /// The canonical form. `info` is what inspect gave.
  WeightsData (*decode)(const LayerTensors& tensors, const LayerInfo& info);
  /// Null for a format that is only read.
  const FormatWriter* writer = nullptr;
  /// Integer zeros [G, N] of a layer that has ZeroKind::integer; null where none has.
  std::vector<std::uint16_t> (*zeros)(const LayerTensors& tensors, const LayerInfo& info) = nullptr;
  /// In place of decode, for layers with LayerInfo::mixed_bits.
  MixedWeights (*decode_mixed)(const LayerTensors& tensors, const LayerInfo& info) = nullptr;
};

extern const Format kGptq, kGptqV2, kGba, kGbaMixed, kAwq, kCompressedTensors, kHqq, kMlx;

/// All of them; of several that claim a layer the first has it.
std::span<const Format* const> formats();

/// Throws Error(unsupported) listing the formats if none has this name.
const Format& format_named(std::string_view name);

/// What one settings object says about one layer in the way of one tool; fills what is still empty
/// and leaves other tools' objects alone. `layer` is "" when it is asked for what holds for all.
using SettingsReader = void (*)(const SettingsObject& object, std::string_view layer,
                                LayerSettings& settings);

void read_gptq_settings(const SettingsObject&, std::string_view, LayerSettings&);
void read_gba_settings(const SettingsObject&, std::string_view, LayerSettings&);
void read_awq_settings(const SettingsObject&, std::string_view, LayerSettings&);
void read_auto_round_settings(const SettingsObject&, std::string_view, LayerSettings&);
void read_compressed_tensors_settings(const SettingsObject&, std::string_view, LayerSettings&);
void read_hqq_settings(const SettingsObject&, std::string_view, LayerSettings&);
void read_mlx_settings(const SettingsObject&, std::string_view, LayerSettings&);

/// All of them.
std::span<const SettingsReader> settings_readers();

}  // namespace mpq::detail

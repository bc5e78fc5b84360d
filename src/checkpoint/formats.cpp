#include <array>
#include <string>

#include "checkpoint/format.hpp"
#include "checkpoint/text.hpp"

namespace mpq::detail {

namespace {

// Awq before kGptq: same names, but its shapes tell it apart.
constexpr std::array<const Format*, 8> kFormats{
    &kGbaMixed, &kCompressedTensors, &kHqq, &kMlx, &kGba, &kAwq, &kGptq, &kGptqV2};

constexpr std::array<SettingsReader, 7> kReaders{
    read_gptq_settings,       read_gba_settings, read_awq_settings,
    read_auto_round_settings, read_hqq_settings, read_compressed_tensors_settings,
    read_mlx_settings,
};

}  // namespace

std::span<const Format* const> formats() {
  return kFormats;
}

std::span<const SettingsReader> settings_readers() {
  return kReaders;
}

const Format& format_named(std::string_view name) {
  std::string names;
  for (const Format* format : kFormats) {
    if (format->name == name) return *format;
    names += detail::format("{}{}", names.empty() ? "" : ", ", format->name);
  }
  fail(ErrorCode::unsupported, "checkpoint format {} is not supported, these are: {}",
       in_quotes(name), names);
}

}  // namespace mpq::detail

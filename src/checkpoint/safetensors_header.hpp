#pragma once
// The header of a safetensors file: its text, checked and turned into entries.

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mpq/checkpoint.hpp"

namespace mpq::detail {

/// Limit of the reference implementation; a longer header is an attack or a broken file.
inline constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  ///< sorted by name
  std::map<std::string, std::string> metadata;
};

/// Parses the JSON `text` of a header whose file has `data_bytes` bytes behind it, and checks every
/// rule of the format. Throws Error(invalid_file) that begins with `where`.
SafetensorsHeader parse_header(std::string_view text, std::uint64_t data_bytes,
                               const std::string& where);

std::optional<SafetensorsType> type_from_name(std::string_view name) noexcept;

/// Bytes of a tensor; nothing if they overflow 64 bits, are not whole, or a dimension is negative.
std::optional<std::uint64_t> tensor_bytes(SafetensorsType type,
                                          std::span<const std::int64_t> shape) noexcept;

}  // namespace mpq::detail

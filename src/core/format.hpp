#pragma once
// fmt::format, compiled once. fmt is used as headers only (who links mpq needs none), and every
// file that calls it would compile the better part of it.

#include <fmt/core.h>

#include <string>
#include <string_view>

namespace mpq::detail {

std::string formatted(fmt::string_view text, fmt::format_args args);

/// As fmt::format.
template <class... Args>
std::string format(fmt::format_string<Args...> text, Args&&... args) {
  return formatted(text, fmt::make_format_args(args...));
}

/// "1, 2, 3" with ", " between.
template <class Range>
std::string joined(const Range& values, std::string_view between) {
  std::string out;
  std::string_view before;
  for (const auto& value : values) {
    out += format("{}{}", before, value);
    before = between;
  }
  return out;
}

}  // namespace mpq::detail

#pragma once
// Regular expressions of settings files.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mpq::detail {

/// Whether `pattern` (ECMAScript) matches `text` from its beginning. Nothing if the pattern is not
/// understood; Error(unsupported) naming the limit for text or patterns too long to be matched
/// safely.
std::optional<bool> matches_beginning(std::string_view text, std::string_view pattern);

/// The groups of the first match of `pattern` anywhere in `text`; empty if there is none.
std::vector<std::string> first_match(const std::string& text, const char* pattern);

}  // namespace mpq::detail

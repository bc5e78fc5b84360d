// GCC 12 warns of uninitialised memory inside <regex> when sanitizers are on (its bug 105562).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "checkpoint/pattern.hpp"

#include <regex>

#include "checkpoint/text.hpp"

namespace mpq::detail {

namespace {

// The standard library's matcher uses stack in proportion to the text.
constexpr std::size_t kMaxLength = 512;

// Where there is a choice, the matcher whose time cannot explode with a hostile pattern.
#ifdef __GLIBCXX__
constexpr auto kFlags = std::regex::ECMAScript | std::regex_constants::__polynomial;
#else
constexpr auto kFlags = std::regex::ECMAScript;
#endif

// A repeat count or a reference to a group with more digits than any has: the standard library
// reads it into a `long`, whatever its length.
bool has_endless_number(std::string_view pattern) {
  constexpr int kMostDigits = 9;
  int digits = 0;
  bool counts = false;
  char before = 0;
  for (const char c : pattern) {
    if (c >= '0' && c <= '9') {
      if (digits++ == 0) counts = before == '\\' || before == '{' || before == ',';
      if (counts && digits > kMostDigits) return true;
    } else {
      digits = 0;
    }
    before = c;
  }
  return false;
}

}  // namespace

std::optional<bool> matches_beginning(std::string_view text, std::string_view pattern) {
  if (pattern.size() > kMaxLength || text.size() > kMaxLength) {
    fail(ErrorCode::unsupported, "a pattern of {} and a layer name of {} bytes, limit {} each",
         pattern.size(), text.size(), kMaxLength);
  }
  if (has_endless_number(pattern)) return std::nullopt;
  try {
    return std::regex_search(text.begin(), text.end(),
                             std::regex(pattern.begin(), pattern.end(), kFlags),
                             std::regex_constants::match_continuous);
  } catch (const std::regex_error&) {
    return std::nullopt;
  }
}

std::vector<std::string> first_match(const std::string& text, const char* pattern) {
  std::smatch match;
  std::vector<std::string> groups;
  if (std::regex_search(text, match, std::regex(pattern, kFlags))) {
    for (const auto& group : match) groups.push_back(group.str());
  }
  return groups;
}

}  // namespace mpq::detail

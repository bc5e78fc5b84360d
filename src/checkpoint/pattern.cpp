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

}  // namespace

std::optional<bool> matches_beginning(std::string_view text, std::string_view pattern) {
  if (pattern.size() > kMaxLength || text.size() > kMaxLength) {
    fail(ErrorCode::unsupported, "a pattern of {} and a layer name of {} bytes, limit {} each",
         pattern.size(), text.size(), kMaxLength);
  }
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

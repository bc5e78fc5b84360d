#define FMT_HEADER_ONLY 1
#include "core/format.hpp"

#include <fmt/format.h>

namespace mpq::detail {

std::string formatted(fmt::string_view text, fmt::format_args args) {
  return fmt::vformat(text, args);
}

}  // namespace mpq::detail

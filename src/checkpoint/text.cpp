#include "checkpoint/text.hpp"

namespace mpq::detail {

std::string in_quotes(std::string_view text) {
  constexpr std::size_t kLimit = 200;
  std::string out = "\"";
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    // A cut is made where a UTF-8 sequence starts, never inside one.
    if (i >= kLimit && (byte & 0xc0u) != 0x80u) return out + "...\"";
    if (i >= kLimit + 4) return out + "...\"";  // not UTF-8 at all
    if (byte < 0x20u || byte == 0x7fu) {
      out += detail::format("\\x{:02x}", byte);
    } else {
      if (byte == '"' || byte == '\\') out += '\\';
      out += text[i];
    }
  }
  return out + '"';
}

std::string shape_text(std::span<const std::int64_t> shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i == 8) return out + detail::format(", ... {} dimensions]", shape.size());
    out += detail::format("{}{}", i == 0 ? "" : ", ", shape[i]);
  }
  return out + "]";
}

}  // namespace mpq::detail

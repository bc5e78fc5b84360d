#pragma once
// Messages of the checkpoint code: one line whatever a file calls its tensors.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "core/format.hpp"
#include "mpq/error.hpp"

namespace mpq::detail {

/// `text` in quotes, control characters escaped and long text cut: names come from untrusted files.
std::string in_quotes(std::string_view text);

/// "[2, 128]".
std::string shape_text(std::span<const std::int64_t> shape);

template <class... Args>
[[noreturn]] void fail(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, detail::format(format, std::forward<Args>(args)...));
}

}  // namespace mpq::detail

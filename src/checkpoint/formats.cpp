#include <array>
#include <string>

#include "checkpoint/format.hpp"
#include "checkpoint/text.hpp"

namespace mpq::detail {

namespace {

constexpr std::array<const Format*, 3> kFormats{&kGba, &kGptq, &kGptqV2};

}  // namespace

std::span<const Format* const> formats() {
  return kFormats;
}

const Format& format_named(std::string_view name) {
  std::string names;
  for (const Format* format : kFormats) {
    if (format->name == name) return *format;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", format->name);
  }
  fail(ErrorCode::unsupported, "checkpoint format {} is not supported, these are: {}",
       in_quotes(name), names);
}

}  // namespace mpq::detail

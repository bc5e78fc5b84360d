#include "output.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "commands.hpp"

namespace mpq::tool {

void print_json(const nlohmann::ordered_json& json) {
  fmt::print("{}\n", json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
}

ProgressBar::ProgressBar(std::size_t total) : total_(total), visible_(::isatty(2) == 1) {}

ProgressBar::~ProgressBar() {
  if (visible_) fmt::print(stderr, "\r\x1b[K");
}

void ProgressBar::show(std::size_t done, const std::string& what) {
  if (!visible_) return;
  constexpr std::size_t kWidth = 30;
  const std::size_t filled = total_ == 0 ? 0 : std::min(kWidth, kWidth * done / total_);
  fmt::print(stderr, "\r\x1b[K[{:#<{}}{:.<{}}] {}/{} {}", "", filled, "", kWidth - filled, done,
             total_, printable(what).substr(0, 60));
}

}  // namespace mpq::tool

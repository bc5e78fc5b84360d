#pragma once
// What subcommands print: JSON, and a progress bar where someone watches.

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace mpq::tool {

/// To standard output. What is no UTF-8 (a directory's name) is replaced.
void print_json(const nlohmann::ordered_json& json);

/// A bar on standard error, if that is a terminal; gone when destroyed.
class ProgressBar {
 public:
  explicit ProgressBar(std::size_t total);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  /// `what` is being worked on, after `done` of the total.
  void show(std::size_t done, const std::string& what);

 private:
  std::size_t total_;
  bool visible_;
};

}  // namespace mpq::tool

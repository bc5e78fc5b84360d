#pragma once
// The mpq program, run by a test.

#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "host/files.hpp"
#include "mpq/types.hpp"
#include "support/catch.hpp"

namespace mpq::test {

struct Result {
  int code = -1;
  std::string out, err;
};

inline std::string shell_quoted(const std::string& text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? "'\\''" : std::string(1, c);
  return out + "'";
}

/// `before` is shell text, for limits.
inline Result run_tool(const std::vector<std::string>& arguments, const std::string& before = "") {
  const TemporaryDirectory directory;
  std::string command = before + shell_quoted(MPQ_TOOL);
  for (const auto& argument : arguments) command.append(" ").append(shell_quoted(argument));
  command.append(" >").append(shell_quoted((directory / "out").string()));
  command.append(" 2>").append(shell_quoted((directory / "err").string()));
  const int status = std::system(command.c_str());
  REQUIRE(WIFEXITED(status));  // not killed by a signal
  return {WEXITSTATUS(status), read_text(directory / "out"), read_text(directory / "err")};
}

/// Whether the call fails with this code and one line on stderr that has `words`.
inline bool fails(const std::vector<std::string>& arguments, int code, const std::string& words,
                  const std::string& before = "") {
  const Result result = run_tool(arguments, before);
  UNSCOPED_INFO("exit code " << result.code << ", stderr: " << result.err);
  return result.code == code && result.out.empty() && result.err.starts_with("mpq: error: ") &&
         result.err.find(words) != std::string::npos &&
         std::count(result.err.begin(), result.err.end(), '\n') == 1 && result.err.back() == '\n';
}

/// The elements of an F16, BF16 or F32 tensor.
inline std::vector<float> floats(const TensorCopy& tensor) {
  if (tensor.type == SafetensorsType::F32) return tensor.values<float>();
  const DType dtype = tensor.type == SafetensorsType::F16 ? DType::f16 : DType::bf16;
  std::vector<float> out;
  for (const auto half : tensor.values<std::uint16_t>()) out.push_back(to_float(half, dtype));
  return out;
}

}  // namespace mpq::test

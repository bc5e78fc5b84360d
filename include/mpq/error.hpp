#pragma once
// Errors of the whole library: thrown at the host boundary, naming the value and the limit.

#include <stdexcept>
#include <string>

namespace mpq {

enum class ErrorCode {
  invalid_argument,    ///< a parameter, shape, pointer or option is outside its limits
  invalid_weights,     ///< quantised weights contradict their configuration or hold bad values
  invalid_file,        ///< a file breaks the rules of its format
  unsupported,         ///< well formed, but mpq does not do it
  not_prepared,        ///< a call came before the one that it needs (load, prepare_params)
  device_unavailable,  ///< no such device, or a build without CUDA
  device_failure,      ///< the CUDA runtime reported an error
  io_failure,          ///< the operating system reported an error
};

/// Stable lower-case name of a code, for messages and JSON.
const char* to_string(ErrorCode code) noexcept;

/// The only exception type that mpq throws on its own account. what() is one line.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace mpq

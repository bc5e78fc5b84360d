#pragma once
// What a call throws, for tests that check the code and the words of an Error.

#include <optional>
#include <string>
#include <utility>

#include "mpq/error.hpp"

namespace mpq::test {

/// The Error that `call` throws, or nothing. Other exceptions pass through.
template <class Call>
std::optional<Error> error_of(Call&& call) {
  try {
    std::forward<Call>(call)();
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

/// Whether `call` throws an Error of this code whose message has all of `words` in it, on one line.
template <class Call, class... Words>
bool refuses(Call&& call, ErrorCode code, const Words&... words) {
  const auto error = error_of(std::forward<Call>(call));
  if (!error || error->code() != code) return false;
  const std::string message = error->what();
  return message.find('\n') == std::string::npos &&
         ((message.find(words) != std::string::npos) && ...);
}

}  // namespace mpq::test

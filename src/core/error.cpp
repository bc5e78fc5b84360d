#include "mpq/error.hpp"

namespace mpq {

const char* to_string(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::invalid_argument:
      return "invalid_argument";
    case ErrorCode::invalid_weights:
      return "invalid_weights";
    case ErrorCode::invalid_file:
      return "invalid_file";
    case ErrorCode::unsupported:
      return "unsupported";
    case ErrorCode::not_prepared:
      return "not_prepared";
    case ErrorCode::device_unavailable:
      return "device_unavailable";
    case ErrorCode::device_failure:
      return "device_failure";
    case ErrorCode::io_failure:
      return "io_failure";
  }
  return "unknown";
}

}  // namespace mpq

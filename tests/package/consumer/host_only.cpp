// A translation unit that only a host compiler sees: all public headers, and nothing behind them.
#include "host_only.hpp"

#include <mpq/mpq.hpp>

#if defined(CUDART_VERSION) || defined(__CUDA_RUNTIME_H__) || defined(__DRIVER_TYPES_H__)
#error "a public header of mpq includes CUDA headers"
#endif
#if defined(FMT_VERSION) || defined(NLOHMANN_JSON_VERSION_MAJOR)
#error "a public header of mpq includes a third-party header"
#endif

mpq::Version host_only_version() {
  return mpq::kVersion;
}

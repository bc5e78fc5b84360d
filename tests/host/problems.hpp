#pragma once
// Layers and a device to plan for.

#include <cstdint>

#include "mpq/layout.hpp"
#include "mpq/plan.hpp"

namespace mpq::test {

inline constexpr DeviceTraits kHopper{.compute_capability = 90, .sm_count = 132};

inline Problem problem(std::int64_t m, std::int64_t n = 8192, std::int64_t k = 8192) {
  return {
      .bits = 4, .m = m, .n = n, .k = k, .n_padded = round_up(n, 64), .k_padded = round_up(k, 128)};
}

inline Problem of_bits(int bits, std::int64_t m, std::int64_t n = 8192, std::int64_t k = 8192) {
  Problem layer = problem(m, n, k);
  layer.bits = bits;
  return layer;
}

}  // namespace mpq::test

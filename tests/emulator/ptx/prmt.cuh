#pragma once

#include <cstdint>

namespace mpq::kernels::ptx {

template <int kByte>
inline std::uint32_t spread_sign(std::uint32_t word) {
  const std::uint32_t low = word >> (8 * kByte + 7) & 1u, high = word >> (8 * kByte + 23) & 1u;
  return low * 0xffffu + high * 0xffff0000u;
}

}  // namespace mpq::kernels::ptx

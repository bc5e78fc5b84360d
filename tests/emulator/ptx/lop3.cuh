#pragma once

#include <cstdint>

namespace mpq::kernels::ptx {

inline std::uint32_t lop3_and_or(std::uint32_t a, std::uint32_t mask, std::uint32_t bits) {
  return (a & mask) | bits;
}
inline std::uint32_t lop3_and_xor(std::uint32_t a, std::uint32_t mask, std::uint32_t bits) {
  return (a & mask) ^ bits;
}

}  // namespace mpq::kernels::ptx

#pragma once
// lop3 with both constants in registers: an instruction has room for one immediate only, and the
// compiler otherwise makes two of it.

#include <cstdint>

namespace mpq::kernels::ptx {

/// (a & mask) | bits
__device__ __forceinline__ std::uint32_t lop3_and_or(std::uint32_t a, std::uint32_t mask,
                                                     std::uint32_t bits) {
  std::uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(a), "r"(mask), "r"(bits));
  return result;
}

/// (a & mask) ^ bits
__device__ __forceinline__ std::uint32_t lop3_and_xor(std::uint32_t a, std::uint32_t mask,
                                                      std::uint32_t bits) {
  std::uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(result) : "r"(a), "r"(mask), "r"(bits));
  return result;
}

}  // namespace mpq::kernels::ptx

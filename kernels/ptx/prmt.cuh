#pragma once
// prmt as __byte_perm does not have it.

#include <cstdint>

namespace mpq::kernels::ptx {

/// Of each half of a word bit 7 (kByte 0) or bit 15 (1), sixteen times.
template <int kByte>
__device__ __forceinline__ std::uint32_t spread_sign(std::uint32_t word) {
  static_assert(kByte == 0 || kByte == 1);
  std::uint32_t result;
  asm("prmt.b32 %0, %1, 0, %2;" : "=r"(result) : "r"(word), "n"(kByte == 0 ? 0xaa88 : 0xbb99));
  return result;
}

}  // namespace mpq::kernels::ptx

#pragma once
// Emulated: wgmma with operand A in registers. A warp's rows do not depend on the others', so a
// warp is enough; products are done when they are issued.

#include <cstdint>
#include <cstring>

#include "engine.hpp"
#include "ptx/mma.cuh"

#define MPQ_HAS_WGMMA 1

namespace mpq::kernels::ptx {

/// Here an address in units of 16 bytes.
inline std::uint64_t matrix_descriptor_swizzle_128b(const void* shared) {
  return reinterpret_cast<std::uintptr_t>(shared) / 16;
}
inline void wgmma_fence() {}
inline void wgmma_commit_group() {}
template <int kPending>
void wgmma_wait_group() {}
template <int kRegisters>
void setmaxnreg_inc() {}
template <int kRegisters>
void setmaxnreg_dec() {}
template <int kCount>
void hold(float (&)[kCount]) {}
template <int kCount>
void hold(std::uint32_t (&)[kCount][4]) {}

template <DType T, int kCount>
void wgmma_k16(float (&d)[kCount], const std::uint32_t (&a)[4], std::uint64_t b) {
  struct Lane {
    float* d;
    const std::uint32_t* a;
    std::uint64_t b;
  } lane{d, a, b};
  emulator::collective("wgmma", lane, [](const auto& all) {
    constexpr int kN = 2 * kCount;
    double wide_a[16][16], wide_b[kN][16];
    for (int i = 0; i < 32; ++i) {
      for (int e = 0; e < 4; ++e) {
        for (int h = 0; h < 2; ++h) {
          wide_a[i / 4 + 8 * (e % 2)][2 * (i % 4) + h + 8 * (e / 2)] = element<T>(all[i]->a[e], h);
        }
      }
    }
    for (int n = 0; n < kN; ++n) {
      for (int k = 0; k < 16; ++k) {
        std::uintptr_t place =
            all[0]->b * 16 + static_cast<unsigned>(n) * 128 + static_cast<unsigned>(k) * 2;
        place ^= (place >> 7 & 7u) << 4;
        std::uint16_t half;
        std::memcpy(&half, reinterpret_cast<const void*>(place), 2);
        wide_b[n][k] = element<T>(half, 0);
      }
    }
    for (int i = 0; i < 32; ++i) {
      for (int e = 0; e < kCount; ++e) {
        const int row = i / 4 + 8 * (e % 4 / 2), column = e / 4 * 8 + 2 * (i % 4) + e % 2;
        double sum = all[i]->d[e];
        for (int k = 0; k < 16; ++k) sum += wide_a[row][k] * wide_b[column][k];
        all[i]->d[e] = static_cast<float>(sum);
      }
    }
  });
}

}  // namespace mpq::kernels::ptx

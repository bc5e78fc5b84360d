#pragma once
// Emulated: wgmma with operand A in registers. A warp's rows do not depend on the others', so a
// warp is enough; products are done when they are issued.

#include <cstdint>
#include <cstring>

#include "engine.hpp"
#include "mpq/types.hpp"
#include "products.hpp"

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
    const std::uint32_t* a;
    float* d;
    std::uint64_t b;
  } lane{a, d, b};
  emulator::collective("wgmma", lane, [](const auto& all) {
    constexpr int kN = 2 * kCount;
    emulator::ProductLanes<float> lanes;
    for (int i = 0; i < 32; ++i) lanes[i] = {all[i]->a, all[i]->d};
    std::uint16_t halves[kN][16];
    for (int n = 0; n < kN; ++n) {
      for (int part = 0; part < 2; ++part) {  // the swizzle moves 16 bytes
        std::uintptr_t place =
            all[0]->b * 16 + static_cast<unsigned>(n) * 128 + static_cast<unsigned>(part) * 16;
        place ^= (place >> 7 & 7u) << 4;
        std::memcpy(&halves[n][8 * part], reinterpret_cast<const void*>(place), 16);
      }
    }
    emulator::multiply_halves(T == DType::bf16, lanes, halves[0], kN);
  });
}

}  // namespace mpq::kernels::ptx

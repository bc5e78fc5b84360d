#pragma once
// Emulated: mma.sync. Products are exact, sums of floats in float64 and rounded to float32 at the
// end.

#include <bit>
#include <cstdint>

#include "dequant.cuh"
#include "engine.hpp"

namespace mpq::kernels::ptx {

/// Element `half` of a register, subnormal numbers included.
template <DType T>
double element(std::uint32_t bits, int half) {
  const auto value = static_cast<std::uint16_t>(bits >> (16 * half));
  return scale_to_float(value, T == DType::bf16);
}

template <DType T>
void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  struct Lane {
    float* d;
    const std::uint32_t* a;
    std::uint32_t b[2];
  } lane{d, a, {b0, b1}};
  emulator::collective("mma", lane, [](const auto& all) {
    double wide_a[16][16], wide_b[16][8];
    for (int i = 0; i < 32; ++i) {
      for (int e = 0; e < 4; ++e) {
        for (int h = 0; h < 2; ++h) {
          wide_a[i / 4 + 8 * (e % 2)][2 * (i % 4) + h + 8 * (e / 2)] = element<T>(all[i]->a[e], h);
        }
      }
      for (int e = 0; e < 2; ++e) {
        for (int h = 0; h < 2; ++h) {
          wide_b[2 * (i % 4) + h + 8 * e][i / 4] = element<T>(all[i]->b[e], h);
        }
      }
    }
    for (int i = 0; i < 32; ++i) {
      for (int e = 0; e < 4; ++e) {
        const int row = i / 4 + 8 * (e / 2), column = 2 * (i % 4) + e % 2;
        double sum = all[i]->d[e];
        for (int k = 0; k < 16; ++k) sum += wide_a[row][k] * wide_b[k][column];
        all[i]->d[e] = static_cast<float>(sum);
      }
    }
  });
}

inline void mma_m16n8k32_u8s8(int (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                              std::uint32_t b1, const int (&c)[4]) {
  struct Lane {
    int* d;
    const std::uint32_t* a;
    std::uint32_t b[2];
    const int* c;
  } lane{d, a, {b0, b1}, c};
  emulator::collective("mma", lane, [](const auto& all) {
    int wide_a[16][32], wide_b[32][8];
    for (int i = 0; i < 32; ++i) {
      for (int e = 0; e < 4; ++e) {
        for (int byte = 0; byte < 4; ++byte) {
          wide_a[i / 4 + 8 * (e % 2)][4 * (i % 4) + byte + 16 * (e / 2)] =
              static_cast<std::uint8_t>(all[i]->a[e] >> (8 * byte));
        }
      }
      for (int e = 0; e < 2; ++e) {
        for (int byte = 0; byte < 4; ++byte) {
          wide_b[4 * (i % 4) + byte + 16 * e][i / 4] =
              static_cast<std::int8_t>(all[i]->b[e] >> (8 * byte));
        }
      }
    }
    for (int i = 0; i < 32; ++i) {
      for (int e = 0; e < 4; ++e) {
        const int row = i / 4 + 8 * (e / 2), column = 2 * (i % 4) + e % 2;
        auto sum = static_cast<std::uint32_t>(all[i]->c[e]);  // wraps, as the device does
        for (int k = 0; k < 32; ++k) {
          sum += static_cast<std::uint32_t>(wide_a[row][k] * wide_b[k][column]);
        }
        all[i]->d[e] = static_cast<int>(sum);
      }
    }
  });
}

inline void mma_m16n8k256_and_popc(int (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                   std::uint32_t b1) {
  struct Lane {
    int* d;
    const std::uint32_t* a;
    std::uint32_t b[2];
  } lane{d, a, {b0, b1}};
  emulator::collective("mma", lane, [](const auto& all) {
    for (int i = 0; i < 32; ++i) {
      for (int e = 0; e < 4; ++e) {
        const int row = i / 4 + 8 * (e / 2), column = 2 * (i % 4) + e % 2;
        int sum = 0;
        for (int t = 0; t < 4; ++t) {
          const std::uint32_t* a = all[row % 8 * 4 + t]->a + row / 8;
          const std::uint32_t* b = all[column * 4 + t]->b;
          sum += std::popcount(a[0] & b[0]) + std::popcount(a[2] & b[1]);
        }
        all[i]->d[e] = sum;
      }
    }
  });
}

}  // namespace mpq::kernels::ptx

#pragma once
// Emulated: mma.sync. Products are exact, sums of floats in float64 and rounded to float32 at the
// end.

#include <bit>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "engine.hpp"
#include "mpq/types.hpp"
#include "products.hpp"

namespace mpq::kernels::ptx {

template <DType T>
void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  struct Lane {
    const std::uint32_t* a;
    float* d;
    std::uint32_t b[2];
  } lane{a, d, {b0, b1}};
  emulator::collective("mma", lane, [](const auto& all) {
    emulator::ProductLanes<float> lanes;
    std::uint16_t halves[8][16];
    for (int i = 0; i < 32; ++i) {
      lanes[i] = {all[i]->a, all[i]->d};
      for (int e = 0; e < 2; ++e) {
        std::memcpy(&halves[i / 4][2 * (i % 4) + 8 * e], &all[i]->b[e], 4);
      }
    }
    emulator::multiply_halves(T == DType::bf16, lanes, halves[0], 8);
  });
}

inline void mma_m16n8k32_u8s8(int (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                              std::uint32_t b1, const int (&c)[4]) {
  for (int e = 0; e < 4; ++e) d[e] = c[e];
  struct Lane {
    const std::uint32_t* a;
    int* d;
    std::uint32_t b[2];
  } lane{a, d, {b0, b1}};
  emulator::collective("mma", lane, [](const auto& all) {
    emulator::ProductLanes<int> lanes;
    std::int8_t bytes[8][32];
    for (int i = 0; i < 32; ++i) {
      lanes[i] = {all[i]->a, all[i]->d};
      for (int e = 0; e < 2; ++e) {
        std::memcpy(&bytes[i / 4][4 * (i % 4) + 16 * e], &all[i]->b[e], 4);
      }
    }
    emulator::multiply_bytes(lanes, bytes[0]);
  });
}

inline void mma_sp_m16n8k64_of_ones(int (&d)[4], std::uint32_t metadata, const uint4& b) {
  struct Lane {
    int* d;
    std::uint32_t metadata;
    const uint4* b;
  } lane{d, metadata, &b};
  emulator::collective("mma.sp", lane, [](const auto& all) {
    std::int8_t columns[8][64];
    for (int i = 0; i < 32; ++i) {
      const std::uint32_t words[4] = {all[i]->b->x, all[i]->b->y, all[i]->b->z, all[i]->b->w};
      for (int e = 0; e < 4; ++e) {
        std::memcpy(&columns[i / 4][4 * (i % 4) + 16 * e], &words[e], 4);
      }
    }
    for (int row = 0; row < 16; ++row) {
      int sums[8] = {};
      for (int four = 0; four < 16; ++four) {
        const int from = row % 8 * 4 + row / 8 + four / 8 * 2;
        const std::uint32_t nibble = all[from]->metadata >> (4 * (four % 8)) & 15u;
        const std::uint32_t first = nibble & 3u, second = nibble >> 2;
        if (first >= second) throw std::logic_error("emulator: mma.sp: metadata out of order");
        for (int column = 0; column < 8; ++column) {
          const std::int8_t* of_four = &columns[column][4 * four];
          sums[column] += of_four[first] + of_four[second];
        }
      }
      for (int column = 0; column < 8; ++column) {
        all[row % 8 * 4 + column / 2]->d[row / 8 * 2 + column % 2] += sums[column];
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

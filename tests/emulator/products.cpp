#include "products.hpp"

#include <bit>
#include <memory>
#include <vector>

#include "dequant.cuh"

namespace mpq::emulator {
namespace {

constexpr int kMostColumns = 256;

// Every 16-bit float.
std::vector<double> values_of(bool bf16) {
  std::vector<double> values(1 << 16);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = kernels::scale_to_float(static_cast<std::uint16_t>(i), bf16);
  }
  return values;
}

struct Place {
  int row, column;
  Place(int lane, int e)
      : row(lane / 4 + 8 * (e % 4 / 2)), column(e / 4 * 8 + 2 * (lane % 4) + e % 2) {}
};

}  // namespace

void multiply_halves(bool bf16, const ProductLanes<float>& lanes, const std::uint16_t* b,
                     int columns) {
  static const std::vector<double> tables[2] = {values_of(false), values_of(true)};
  const double* values = tables[bf16].data();
  double wide_a[16][16];
  double wide_b[16][kMostColumns];
  for (int lane = 0; lane < 32; ++lane) {
    for (int e = 0; e < 4; ++e) {
      const std::uint32_t word = lanes[lane].a[e];
      double* to = &wide_a[lane / 4 + 8 * (e % 2)][2 * (lane % 4) + 8 * (e / 2)];
      to[0] = values[word & 0xffffu];
      to[1] = values[word >> 16];
    }
  }
  for (int n = 0; n < columns; ++n) {
    for (int k = 0; k < 16; ++k) wide_b[k][n] = values[b[16 * n + k]];
  }
  double sums[16][kMostColumns];
  const int count = columns / 2;
  for (int lane = 0; lane < 32; ++lane) {
    for (int e = 0; e < count; ++e) {
      const Place place(lane, e);
      sums[place.row][place.column] = lanes[lane].d[e];
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      const double factor = wide_a[row][k];
      for (int n = 0; n < columns; ++n) sums[row][n] += factor * wide_b[k][n];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int e = 0; e < count; ++e) {
      const Place place(lane, e);
      lanes[lane].d[e] = static_cast<float>(sums[place.row][place.column]);
    }
  }
}

void multiply_bytes(const ProductLanes<int>& lanes, const std::int8_t* b) {
  std::int32_t wide_a[16][32], wide_b[32][8];
  for (int lane = 0; lane < 32; ++lane) {
    for (int e = 0; e < 4; ++e) {
      for (int byte = 0; byte < 4; ++byte) {
        wide_a[lane / 4 + 8 * (e % 2)][4 * (lane % 4) + byte + 16 * (e / 2)] =
            static_cast<std::uint8_t>(lanes[lane].a[e] >> (8 * byte));
      }
    }
  }
  for (int n = 0; n < 8; ++n) {
    for (int k = 0; k < 32; ++k) wide_b[k][n] = b[32 * n + k];
  }
  std::uint32_t sums[16][8] = {};
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 32; ++k) {
      for (int n = 0; n < 8; ++n) {
        sums[row][n] += static_cast<std::uint32_t>(wide_a[row][k] * wide_b[k][n]);
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int e = 0; e < 4; ++e) {
      const Place place(lane, e);
      lanes[lane].d[e] = static_cast<int>(static_cast<std::uint32_t>(lanes[lane].d[e]) +
                                          sums[place.row][place.column]);
    }
  }
}

}  // namespace mpq::emulator

#pragma once
// What the forward kernels are given; plain values, passed as a __grid_constant__ parameter.

#include <cstdint>

struct uint4;

namespace mpq::kernels {

/// One forward call. Shapes: M batch rows, N channels, K columns; "padded" as in KernelLayout.
struct ForwardArguments {
  const void* x;  ///< [m, k], row-major, 16-bit, leading dimension ldx
  std::int64_t ldx;
  void* y;  ///< [m, n], row-major, 16-bit, leading dimension ldy
  std::int64_t ldy;
  const uint4* qweight;         ///< KernelLayout
  const std::uint16_t* scales;  ///< [kernel groups, n_padded], f16 or bf16
  const std::uint16_t* zeros;   ///< [kernel groups, n_padded]; null: symmetric or affine
  const float* affine_zeros;    ///< [kernel groups, n_padded]; null: not affine
  const float* bias;            ///< [n] or null
  int m, n, k;
  int k_padded, n_padded;
  int group_shift;       ///< log2 of a kernel group's columns; 31: one group
  bool scales_are_bf16;  ///< else f16, whatever the activations are
};

}  // namespace mpq::kernels

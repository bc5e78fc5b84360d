#pragma once
// What the forward kernels are given; plain values, passed as a __grid_constant__ parameter.

#include <cstdint>

#include "mpq/kernel_shape.hpp"

struct uint2;
struct uint4;

namespace mpq::kernels {

/// One forward call. Shapes: M batch rows, N channels, K columns; "padded" as in KernelLayout.
struct ForwardArguments {
  const void* x;  ///< [m, k], row-major, 16-bit, leading dimension ldx
  std::int64_t ldx;
  void* y;  ///< [m, n], row-major, 16-bit, leading dimension ldy
  std::int64_t ldy;
  const uint4* qweight;         ///< KernelLayout
  const std::uint16_t* scales;  ///< [kernel groups, n_padded] by parameter_position, f16 or bf16
  const void* zeros;            ///< ZeroCode, the same order, rows zeros_stride apart; null: affine
  /// The same shape and order; float32 or of the activations' type, see affine_zero_bytes; null:
  /// not affine, or packed.
  const void* affine_zeros;
  /// Packed statistics in place of scales and affine zeros, of the activations' type: a code as in
  /// DoubleQuantized::Kind::scale_and_zero, in the order of scales; null: none.
  const std::uint8_t* statistics;
  const uint2* statistic_bases;  ///< [kernel groups, n_padded / 32], see StatisticPair
  const float* bias;             ///< [n] or null
  /// n_padded, or 0 where all groups have the same (symmetric; there are shared_zero_rows of it).
  int zeros_stride;
  int m, n, k;
  int k_padded, n_padded;
  int group_shift;       ///< log2 of a kernel group's columns; 31: one group
  bool scales_are_bf16;  ///< else f16, whatever the activations are
  /// The layer's; -1: one multiply-add does not make its weights.
  std::int8_t fused_shift = -1;
  bool programmatic;  ///< the predecessor in the stream may still be running
  bool x_is_aligned;  ///< rows_are_aligned(x)
  // Of the decode kernels, as the plan has them; divisions would cost more than the rest of the
  // start.
  int chunks, part;   ///< of KSplit
  int x_pitch;        ///< decode_x_pitch
  int cluster_shift;  ///< log2 of KSplit::cluster
  int warps_n_shift;  ///< log2 of Plan::warps_n
  int slots_shift;    ///< log2 of decode_row_slots
  int tile_rows;      ///< decode_tile_rows
  int column_stride;  ///< columns of kWarpN channels that all clusters take in one round
};

/// Bytes of an affine zero: they are of 16 bits where one multiply-add makes a layer's weights.
template <int WBits>
constexpr int affine_zero_bytes(const ForwardArguments& args) noexcept {
  return reads_narrow_zeros(WBits) && args.fused_shift >= 0 ? 2 : 4;
}

/// Whether each of `count` rows of 16-bit elements, ld apart, begins at a multiple of 16 bytes.
inline bool rows_are_aligned(const void* rows, std::int64_t ld, int count) {
  return reinterpret_cast<std::uintptr_t>(rows) % 16 == 0 && (count == 1 || ld % 8 == 0);
}

}  // namespace mpq::kernels

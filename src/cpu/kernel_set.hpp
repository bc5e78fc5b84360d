#pragma once
// What the CPU's kernels read and compute, and the instruction sets that they are compiled for.
//
// Codes lie in tiles of 4 output channels, so that a thread reads one stream; a tile's words follow
// the order in which they are used:
//
//   chunk   512 / WBits columns of one channel: 16 words; step s (16 columns) of it has the code of
//           column 16 * s + lane at bit WBits * s of word `lane`, so that one shift brings a step
//           of all lanes into place, whatever the vectors' width
//   tile    [chunks][4 channels][16 words]
//
// Columns are those of x, or with act-order those of x sorted by group; K is padded to whole chunks
// with x = 0. A weight is w = s * q + o in one fused operation. With integer zeros o = -s * z is
// exact, and so is s * (q - z): nothing is rounded, and w is 0 exactly where q = z.

#include <cstddef>
#include <cstdint>
#include <span>

#include "mpq/types.hpp"

namespace mpq::detail::cpu {

inline constexpr int kTileChannels = 4;
inline constexpr int kStep = 16;           ///< columns of a step, words of a channel's chunk
inline constexpr int kTileRows = 64;       ///< rows of x that one call computes, at most
inline constexpr int kBlockTiles = 2;      ///< tiles whose weights are kept as floats together
inline constexpr int kBlockColumns = 512;  ///< and columns: a multiple of every width's chunk

// Inlined always, since files compiled for different instruction sets use it (kernels.hpp says
// why).
#define MPQ_CPU_INLINE [[gnu::always_inline]] inline

MPQ_CPU_INLINE constexpr int chunk_columns(int bits) noexcept {
  return 512 / bits;
}

/// A prepared layer.
struct Layer {
  int bits = 0;
  std::int64_t n = 0;         ///< output channels; tiles are ceil(n / kTileChannels)
  std::int64_t k_padded = 0;  ///< columns, a multiple of chunk_columns(bits)
  std::int64_t groups = 0;    ///< of the checkpoint
  ZeroKind zero_kind = ZeroKind::none;
  DType scale_dtype = DType::f16;

  /// Consecutive steps in one group, dividing a chunk's steps: then group i has run i *
  /// runs_per_group and the following ones. 0 if groups begin elsewhere: then the two arrays below
  /// say it.
  int run_steps = 0;
  std::int64_t runs_per_group = 1;
  const std::int32_t* step_group = nullptr;    ///< [k_padded / kStep], or -1: several groups
  const std::int32_t* column_group = nullptr;  ///< [k_padded]

  const std::uint32_t* codes = nullptr;   ///< [tiles, k_padded / chunk_columns, 4, 16]
  const std::uint16_t* scales = nullptr;  ///< [tiles, statistics_stride(), laid out as [groups, 4]]
  const std::uint16_t* zeros = nullptr;   ///< the same, if zero_kind is integer
  const float* affine_zeros = nullptr;    ///< the same, if zero_kind is affine
  const float* bias = nullptr;            ///< [n] or null

  MPQ_CPU_INLINE std::int64_t tiles() const noexcept {
    return (n + kTileChannels - 1) / kTileChannels;
  }
  MPQ_CPU_INLINE std::int64_t tile_words() const noexcept {
    return k_padded * bits * kTileChannels / 32;
  }
  /// Values of one tile: 4 a group, padded to whole vectors.
  MPQ_CPU_INLINE std::int64_t statistics_stride() const noexcept {
    return (groups * kTileChannels + 15) / 16 * 16;
  }
};

/// One call's activations and result; at most kTileRows rows.
struct Activations {
  std::int64_t rows = 0;
  const float* x = nullptr;  ///< [rows, k_padded], in the layer's column order
  std::uint16_t* y = nullptr;
  std::int64_t ld_y = 0;
  DType dtype = DType::f16;
};

/// The kernels, compiled for one instruction set.
struct KernelSet {
  const char* name;
  /// Writes 16-bit `source` [count] as floats.
  void (*convert)(const std::uint16_t* source, std::int64_t count, DType dtype, float* target);
  /// Computes the channels of tiles [begin, end). `scratch` has scratch_floats(layer) floats,
  /// aligned to 64 bytes. Each value of y depends on neither `begin` nor `end`.
  void (*forward)(const Layer& layer, const Activations& activations, std::int64_t begin,
                  std::int64_t end, float* scratch);
};

/// Scales and offsets of a block's tiles as floats; a block's weights; its sums.
inline std::size_t scratch_floats(const Layer& layer) noexcept {
  return static_cast<std::size_t>(2 * kBlockTiles * layer.statistics_stride() +
                                  kBlockTiles * kTileChannels *
                                      (kBlockColumns + kTileRows * kStep));
}

/// Null where the compiler does not target the instruction set.
const KernelSet* kernels_portable() noexcept;
const KernelSet* kernels_avx2() noexcept;
const KernelSet* kernels_avx512() noexcept;

/// Those that this processor runs, best first; never empty.
std::span<const KernelSet* const> available_kernels() noexcept;

}  // namespace mpq::detail::cpu

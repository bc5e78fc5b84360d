#pragma once
// How the kernels of the table multiply, cut their work and use their memory: what the plan and the
// kernels have to agree on.

#include <algorithm>
#include <cstdint>

#include "mpq/kernel_table.hpp"
#include "mpq/layout.hpp"

namespace mpq {

/// Whether a decode kernel multiplies x as fixed-point numbers, in integer products: as digits
/// (decode_digits.cuh), bit by bit (decode_planes.cuh), or digits that weights pick
/// (decode_selection.cuh).
constexpr bool multiplies_fixed_point(const KernelConfig& config) noexcept {
  return config.tile_m <= 2;
}
/// Whether it does so bit by bit: `rows` of a CTA, of a tile.
constexpr bool multiplies_planes(const KernelConfig& config, int bits, std::int64_t group_columns,
                                 std::int64_t rows) noexcept {
  return multiplies_fixed_point(config) && bits == 1 && group_columns >= 64 && rows == 1;
}
/// Whether it does so by selection: where a CTA has two rows, in groups of 128 columns and more
/// (decode_tile_rows).
constexpr bool multiplies_selections(const KernelConfig& config, int bits,
                                     std::int64_t rows) noexcept {
  return multiplies_fixed_point(config) && bits == 1 && rows == 2;
}
/// The unit in which a decode kernel cuts K, columns.
constexpr int decode_unit_k(const KernelConfig& config, int bits) noexcept {
  return multiplies_fixed_point(config) ? layout_align_k(bits) : layout_block_k(bits);
}
/// Batch rows of a decode kernel's CTA. Digits of two groups that share a product take the place of
/// a second row.
constexpr int decode_tile_rows(const KernelConfig& config, int bits,
                               std::int64_t group_columns) noexcept {
  return multiplies_fixed_point(config) && group_columns < std::min(layout_block_k(bits), 128)
             ? 1
             : config.tile_m;
}

/// How the decode kernels cut K, in units of decode_unit_k: into chunks whose x fits shared memory
/// (mostly one), a chunk into a slice for every CTA of a cluster, a slice into a part for each of
/// the warps that share it. All parts have the same size but the last, and maybe nothing.
struct KSplit {
  int units, warps, chunks, cluster, rank;
  int part;  ///< units

  static constexpr KSplit of(int units, int warps, int chunks, int cluster, int rank = 0) {
    const int parts = warps * chunks * cluster;
    return {units, warps, chunks, cluster, rank, (units + parts - 1) / parts};
  }

  /// First unit of a warp's part; of the next slice for warp == warps.
  constexpr int part_begin(int chunk, int warp) const {
    const int begin = ((chunk * cluster + rank) * warps + warp) * part;
    return begin < units ? begin : units;
  }
  /// Units of the largest slice.
  constexpr int slice() const { return warps * part; }
};

/// Shared memory of a decode kernel's CTA, bytes, without its slice of x.
constexpr int decode_storage_bytes(const KernelConfig& config) noexcept {
  return config.warps() *
             (config.stages * config.tile_n * 32 + config.tile_m * (config.tile_n + 4) * 4) +
         32;
}
/// Rows for which a decode kernel's slice of x has room: a power of two up to 8, or tile_m.
constexpr int decode_row_slots(const KernelConfig& config, int rows) noexcept {
  if (config.tile_m > 8) return config.tile_m;
  return rows > 4 ? 8 : rows > 2 ? 4 : rows > 1 ? 2 : 1;
}
/// Bytes from row to row of its slice of x: eight rows are read together, from different banks.
constexpr int decode_x_pitch(const KernelConfig& config, int bits, const KSplit& split) noexcept {
  return split.slice() * decode_unit_k(config, bits) * 2 + 16;
}
/// The same of its digits, a byte each.
constexpr int decode_digit_pitch(int x_pitch) noexcept {
  return x_pitch / 2 + 8;
}
/// Bytes of the scales and zeros of a unit that are on their way (ParameterRing), of all warps and
/// stages.
constexpr int decode_parameter_bytes(const KernelConfig& config, int bits) noexcept {
  if (!multiplies_fixed_point(config)) return 0;
  const int zero_bytes = bits == 8 ? 2 : 1;
  return config.warps() * config.stages * (layout_align_k(bits) / 128) * 64 * (2 + zero_bytes);
}
/// Bytes of the scales and zeros of 64 channels in one group. affine_bytes: of an affine zero; 0:
/// they are integers.
constexpr int decode_group_bytes(int bits, int affine_bytes) noexcept {
  return 64 * (2 + (affine_bytes != 0 ? affine_bytes : bits == 8 ? 2 : 1));
}
/// Units of scales and zeros that are on their way with a decode kernel's blocks of weights, or of
/// which a part is still to be used.
constexpr int decode_units_ahead(const KernelConfig& config, int bits) noexcept {
  const int unit_blocks = decode_unit_k(config, bits) / layout_block_k(bits);
  return (config.stages - 1) / unit_blocks + 1;
}
/// Bytes of a ring of scales and zeros for groups of fewer than 128 columns, and for affine zeros
/// (GroupRing), of all warps; 0 where there is none.
constexpr int decode_group_ring_bytes(const KernelConfig& config, int bits,
                                      std::int64_t group_columns, int affine_bytes) noexcept {
  if (!multiplies_fixed_point(config) || (bits != 4 && bits != 2)) return 0;
  if (affine_bytes == 0 && group_columns >= 128) return 0;
  const auto groups = static_cast<int>(std::max<std::int64_t>(128 / group_columns, 1));
  return config.warps() * decode_units_ahead(config, bits) * groups *
         decode_group_bytes(bits, affine_bytes);
}
/// Bytes of the digits of two rows, with a zero beside each, their sums, and what spreads them over
/// the banks.
constexpr int decode_selection_bytes(int columns) noexcept {
  return columns * 17;
}
/// Bytes of the slice's rows: x, and where they are multiplied their four digits, or planes in
/// their place.
constexpr int decode_rows_bytes(const KernelConfig& config, int bits, int slots,
                                int x_pitch) noexcept {
  if (multiplies_selections(config, bits, slots)) {
    return slots * x_pitch + decode_selection_bytes((x_pitch - 16) / 2);
  }
  return slots * (x_pitch + (multiplies_fixed_point(config) ? 4 * decode_digit_pitch(x_pitch) : 0));
}
/// Bytes of the slice, and of the parameters before it.
constexpr std::int64_t decode_slice_bytes(const KernelConfig& config, int bits, int rows,
                                          int x_pitch) noexcept {
  return std::int64_t{decode_parameter_bytes(config, bits)} +
         decode_rows_bytes(config, bits, decode_row_slots(config, rows), x_pitch);
}
/// Floats of a decode kernel's two inboxes for the sums of its cluster.
constexpr int decode_inbox_floats(const KernelConfig& config, int rows, int warps_n,
                                  int cluster) noexcept {
  return cluster == 1 ? 0 : 2 * decode_row_slots(config, rows) * config.tile_n * warps_n;
}

/// Whether a warpgroup of an sm90a prefill kernel has several strips of 64 channels.
constexpr bool has_several_strips(const KernelConfig& config) noexcept {
  return config.tile_n > 16 * config.warps_n;
}
/// Columns of the smallest kernel groups that all kernels take. Smaller ones are for the sm80
/// prefill kernels and one decode kernel.
inline constexpr int kLeastGroup = 32;
/// Whether a kernel takes kernel groups of so many columns.
constexpr bool takes_groups(const KernelConfig& config, std::int64_t group_columns) noexcept {
  const bool takes_all =
      config.family == KernelFamily::decode ? config.tile_m == 8 : config.isa == Isa::sm80;
  return takes_all || group_columns >= kLeastGroup;
}
/// Whether a kernel has machine code for 9.0. For more than 8 rows of 4 bits and fewer decode
/// kernels have not: prefill kernels are faster there.
constexpr bool has_sm90a_code(const KernelConfig& config, int bits) noexcept {
  return config.family == KernelFamily::prefill || config.tile_m <= 8 || bits == 8;
}

/// Whether CTAs of an sm90a prefill kernel can share x: not where it is small beside the weights.
constexpr bool shares_x(const KernelConfig& config) noexcept {
  return config.tile_m > 64;
}

/// Whether a prefill kernel multiplies codes as they are and scales the sums of a group
/// (raised_codes.cuh), instead of weights that are rounded to the activations' type.
constexpr bool multiplies_raised_codes(const KernelConfig& config, int bits) noexcept {
  return config.family == KernelFamily::prefill && config.isa == Isa::sm90a &&
         (config.tile_m <= 16 || (config.tile_m == 32 && has_several_strips(config))) && bits < 8;
}

/// Whether an sm90a prefill kernel makes each weight by one multiply-add, of layers for which that
/// is right (kernels/fused_weights.cuh). With 4 and 8 bits that is faster up to tiles of 128 rows.
constexpr bool fuses_weights(const KernelConfig& config, int bits) noexcept {
  return config.family == KernelFamily::prefill && config.isa == Isa::sm90a &&
         !multiplies_raised_codes(config, bits) && (bits <= 2 || config.tile_m <= 128);
}

/// Whether also where zeros are affine, if they are 16-bit numbers. (Of 1 bit a group's two weights
/// are made once, whatever its zeros.)
constexpr bool fuses_affine_zeros(int bits) noexcept {
  return bits > 1;
}
/// Whether all other kernels read such zeros in 16 bits, too. (With 8 bits those for one and two
/// rows, which have no ring for them, would be the slower.)
constexpr bool reads_narrow_zeros(int bits) noexcept {
  return bits == 2 || bits == 4;
}

/// Whether a stage of an sm90a prefill kernel is 128 columns of K and more, not 64: beginning one
/// takes long where a product is short. There is no room for several where tiles are large.
constexpr bool has_long_stages(const KernelConfig& config) noexcept {
  return config.tile_m <= 160 && config.tile_n * config.tile_m <= 192 * 128;
}
/// Whether it is 256 columns, where so short a product leaves most of the time to instructions, and
/// the first stage is not what layers wait for (bench/NOTES.md).
constexpr bool has_longest_stages(const KernelConfig& config, int bits) noexcept {
  if (bits == 8 || shares_x(config) || multiplies_raised_codes(config, bits)) return false;
  return config.tile_n == 192 || (bits == 2 && config.tile_m == 32 && config.ctas_per_sm == 1);
}
/// Columns of K that an sm90a prefill kernel takes at a time, and the unit in which CTAs split K.
/// The last ones can be beyond the layer, which are zeros then.
constexpr int prefill_chunk_k(const KernelConfig& config, int bits) noexcept {
  if (has_longest_stages(config, bits)) return 256;
  return has_long_stages(config) ? layout_align_k(bits) : std::max(64, layout_block_k(bits));
}

/// Rows of zeros on a device where all groups have the same: as many as there are groups in a stage
/// of a prefill kernel.
constexpr std::int64_t shared_zero_rows(int bits, std::int64_t group_columns) noexcept {
  int columns = 0;
  for (const KernelConfig& config : kKernelTable) {
    if (config.isa == Isa::sm90a) columns = std::max(columns, prefill_chunk_k(config, bits));
  }
  return std::max<std::int64_t>(columns / group_columns, 1);
}

}  // namespace mpq

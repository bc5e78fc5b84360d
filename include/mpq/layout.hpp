#pragma once
// How codes lie in the memory that the CUDA kernels read: one bijection, used by the host packer,
// the device repack kernel, the kernels' comments and the tests.

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "mpq/types.hpp"

namespace mpq {

/// The kernel layout of codes. Output channels (n) are the rows of the tensor cores' operand A, and
/// a lane finds everything that it needs of a block in 16 consecutive bytes, whatever the width.
///
///   block   64 channels x kBlockK columns, 2 KiB; blocks of one channel strip are contiguous along
///   K in it   [warp 4][lane 32][word 4]: a warp's share is 16 channels, a lane's 16 bytes are one
///   load word e  register e of the m16k16 fragment of mma.m16n8k16 (and of wgmma m64k16):
///           channel = lane / 4 + 8 * (e & 1),  column = 2 * (lane % 4) + p + 8 * (e >> 1)
///   bits    of k-step s (16 columns): the even column (p = 0) at WBits * s, the odd one 16 higher,
///           so that (word >> (WBits * s)) & 0x000m000m is a fragment register's pair
template <int WBits>
requires SupportedBits<WBits>
struct KernelLayout {
  static constexpr int kBlockN = 64;                       ///< channels of a block
  static constexpr int kStepK = 16;                        ///< columns of a tensor-core step
  static constexpr int kStepsPerBlock = 16 / WBits;        ///< steps in a lane's 16 bytes
  static constexpr int kBlockK = kStepK * kStepsPerBlock;  ///< 32, 64, 128, 256 for 8, 4, 2, 1 bits
  static constexpr int kWordsPerBlock = 512;
  static constexpr int kAlignN = kBlockN;                 ///< N is padded to a multiple of this
  static constexpr int kAlignK = std::max(128, kBlockK);  ///< and K of this

  struct Coordinate {
    std::int64_t k, n;
    bool operator==(const Coordinate&) const = default;
  };
  struct Position {
    std::int64_t word;  ///< 32-bit word of the whole tensor
    int shift;          ///< of the code's lowest bit
    bool operator==(const Position&) const = default;
  };

  /// Words of a padded tensor.
  static constexpr std::int64_t words(std::int64_t k_padded, std::int64_t n_padded) {
    return k_padded * n_padded * WBits / 32;
  }

  /// Where the code of column k and channel n lies, in a tensor padded to k_padded columns.
  static constexpr Position position(Coordinate c, std::int64_t k_padded) {
    const std::int64_t block = (c.n / kBlockN) * (k_padded / kBlockK) + c.k / kBlockK;
    const int n = static_cast<int>(c.n % kBlockN), k = static_cast<int>(c.k % kBlockK);
    const int warp = n / 16, row = n % 16, step = k / kStepK, column = k % kStepK;
    const int lane = (row % 8) * 4 + (column % 8) / 2;
    const int word = (row / 8) + 2 * (column / 8);
    return {block * kWordsPerBlock + (warp * 32 + lane) * 4 + word,
            16 * (column % 2) + WBits * step};
  }

  /// The inverse of position.
  static constexpr Coordinate coordinate(Position p, std::int64_t k_padded) {
    const std::int64_t block = p.word / kWordsPerBlock;
    const int in_block = static_cast<int>(p.word % kWordsPerBlock);
    const int word = in_block % 4, lane = in_block / 4 % 32, warp = in_block / 128;
    const int step = p.shift % 16 / WBits;
    const std::int64_t blocks_k = k_padded / kBlockK;
    const int column = 2 * (lane % 4) + p.shift / 16 + 8 * (word / 2);
    const int row = lane / 4 + 8 * (word % 2);
    return {block % blocks_k * kBlockK + step * kStepK + column,
            block / blocks_k * kBlockN + warp * 16 + row};
  }
};

/// Scales and zeros lie [kernel group][n_padded]. In a strip of 64 channels those that share lanes
/// of a fragment, n % 8, are neighbours, so that a lane's are one load: where channel n is, and the
/// inverse.
constexpr std::int64_t parameter_position(std::int64_t n) noexcept {
  return n / 64 * 64 + n % 8 * 8 + n % 64 / 8;
}
constexpr std::int64_t parameter_channel(std::int64_t position) noexcept {
  return position / 64 * 64 + position % 8 * 8 + position % 64 / 8;
}

/// Channels that have the parameters of packed statistics in common: half of a strip.
inline constexpr int kStatisticChannels = 32;
/// Where [kernel group][n_padded / kStatisticChannels] has those of the statistic at `position` of
/// [kernel group][n_padded].
template <class Index>
constexpr Index statistic_base_of(Index position) noexcept {
  return position / 64 * 2 + position % 8 / 4;
}

/// How the kernels store an integer zero, 0 ... 2^bits.
template <int WBits>
using ZeroCode = std::conditional_t<WBits == 8, std::uint16_t, std::uint8_t>;

/// 2-bit codes whose zero is 3, padding in their groups included, are stored complemented, the zero
/// as 0 and the scale negated, since s * (q - 3) = -s * (3 - q): 0, 1, 2 and 4 times a scale is
/// exact.
constexpr bool is_stored_complemented(int bits, int zero) noexcept {
  return bits == 2 && zero == 3;
}

/// KernelLayout::kBlockK for a width known at run time.
constexpr int layout_block_k(int bits) noexcept {
  return 256 / bits;
}
/// kAlignK and kAlignN for a width known at run time.
constexpr int layout_align_k(int bits) noexcept {
  return std::max(128, 256 / bits);
}
constexpr int layout_align_n(int /*bits*/) noexcept {
  return 64;
}

}  // namespace mpq

#pragma once
// One or two batch rows in 8-bit integer products: y^T = W x^T with mma.m16n8k32, the codes as
// operand A, x as four signed digits to the base of 256 as four columns of operand B.
//
//   codes    a masked word is four codes, each times 2^(WBits * position in its byte): one LOP3 for
//            four weights, none at 8 bits, nor in every fourth product of 2 bits (kWholeWords)
//   x        of a warp's part of K as fixed-point numbers of 31 bits, in proportion to the largest;
//            columns that meet codes at a higher position are so much smaller. At least 24 bits
//            below the largest remain
//   sums     exact in int32: of q x per digit, and of x per digit by a product with ones; so s (q -
//            z) x is rounded once a group, and not at all where q is z
//   groups   smaller than a block of the layout: a product's codes are of two groups then, one of
//            each half of the block. The digits of a row are there twice, each time with the
//            columns of one half only, and take the columns of the second row

#include <algorithm>
#include <cstdint>

#include "arguments.hpp"
#include "decode_fixed_point.cuh"
#include "decode_storage.cuh"
#include "dequant.cuh"
#include "mpq/kernel_shape.hpp"
#include "mpq/layout.hpp"
#include "ptx/memory.cuh"
#include "ptx/mma.cuh"
#include "static_for.cuh"

namespace mpq::kernels {

/// What a width means for products of 32 columns, numbered along K.
template <int WBits>
struct DigitShape {
  using Layout = KernelLayout<WBits>;
  static constexpr int kBlockProducts = 8 / WBits;
  static constexpr int kUnitProducts = Layout::kAlignK / 32;  // of decode_unit_k
  static constexpr int kHalfK = Layout::kBlockK / 2;
  /// Of the codes that a product takes from a word.
  static constexpr std::uint32_t mask(int product) {
    return ((1u << WBits) - 1) * 0x01010101u << (WBits * (product % kBlockProducts));
  }
  /// What they are multiples of.
  static constexpr std::uint32_t ones(int product) {
    return 0x01010101u << (WBits * (product % kBlockProducts));
  }
  /// The sum of what the codes of a whole word are multiples of.
  static constexpr std::uint32_t kAllOnes = 0xffffffffu / ((1u << WBits) - 1);
};

/// Added to a number whose bytes are its digits: they are signed, -128 ... 127, and a carry of 128
/// to the next makes them so.
inline constexpr std::uint32_t kDigitCarries = 0x00808080u;

/// The digits of a CTA's slice of x in shared memory: [row][digit] rows of bytes, digit_pitch
/// apart, bytes in the order in which products take columns.
/// kWholeWords: as in DigitMultiplier.
template <int WBits, DType T, bool kWholeWords>
class DigitSlice {
 public:
  using Shape = DigitShape<WBits>;
  __device__ __forceinline__ DigitSlice(const ForwardArguments& args, unsigned char* slice)
      : x_(slice),
        digits_(slice + (args.x_pitch << args.slots_shift)),
        x_pitch_(args.x_pitch),
        pitch_(decode_digit_pitch(args.x_pitch)) {}

  /// What is known of a lane's columns before x is there. rows: 1 or 2.
  __device__ __forceinline__ void prepare(int lane, int rows) {
    constexpr int kProducts = Shape::kBlockProducts;
    if constexpr (kProducts <= 4) {
      const int product = lane / 8, position = product % kProducts;
      position_ = ptx::opaque(position);
      column_ =
          ptx::opaque(product / kProducts * Shape::Layout::kBlockK + position * 16 + lane % 8 * 2);
    }
    pairs_at_ = ptx::opaque(x_pitch_ * rows + (lane & (4 * rows - 1)) * pitch_ + lane / 8 * 16);
  }
  /// Writes the digits of rows from `row` on, of the warp's share of columns [first, first +
  /// columns): every `stride`-th 128 from the `turn`-th on.
  template <int kRows>
  __device__ __forceinline__ void write(const FixedPoint<T> (&fixed)[kRows], int row, int first,
                                        int columns, int turn, int stride, int lane) const {
    constexpr int kProducts = Shape::kBlockProducts;
    // Of 128 columns in the products' order a lane has four: of product lane / 8, where it is in
    // its block, the same each time if a block is of 128 columns or fewer.
    const auto position_at = [&](int at) {
      return kProducts > 4 ? (at / 32 + lane / 8) % kProducts : position_;
    };
    const auto column_at = [&](int at, int position) {
      if (kProducts <= 4) return at + column_;
      return at / Shape::Layout::kBlockK * Shape::Layout::kBlockK + position * 16 + lane % 8 * 2;
    };
    const unsigned char* x = x_ + row * x_pitch_;
    unsigned char* digits = digits_ + 4 * row * pitch_ + 4 * lane;
#pragma unroll 1
    for (int at = first + 128 * turn; at < first + columns; at += 128 * stride) {
      const int position = position_at(at), column = column_at(at, position);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const unsigned char* from = x + i * x_pitch_ + 2 * column;
        const auto low = neighbours_of_x<T>(from),
                   high = neighbours_of_x<T>(from + 2 * Shape::kHalfK);
        const float by = fixed[i].first(WBits * position), then = fixed[i].second(WBits * position);
        const int takes_off = position == kProducts - 1 ? 0 : -1;
        const auto number = [&](float value) {
          int n = FixedPoint<T>::round(value, by, then);
          if constexpr (kWholeWords) {  // the last product's, of the same words
            n += takes_off * __shfl_sync(0xffffffffu, n, lane | (8 * (kProducts - 1)));
          }
          return static_cast<std::uint32_t>(n) + kDigitCarries;
        };
        const std::uint32_t n0 = number(low.x), n1 = number(high.x), n2 = number(low.y),
                            n3 = number(high.y);
        const std::uint32_t low01 = __byte_perm(n0, n1, 0x5140),
                            low23 = __byte_perm(n2, n3, 0x5140);
        const std::uint32_t top01 = __byte_perm(n0, n1, 0x7362),
                            top23 = __byte_perm(n2, n3, 0x7362);
        const std::uint32_t words[4] = {__byte_perm(low01, low23, 0x5410) ^ 0x80808080u,
                                        __byte_perm(low01, low23, 0x7632) ^ 0x80808080u,
                                        __byte_perm(top01, top23, 0x5410) ^ 0x80808080u,
                                        __byte_perm(top01, top23, 0x7632)};
#pragma unroll
        for (int d = 0; d < 4; ++d) {
          *reinterpret_cast<std::uint32_t*>(digits + (4 * i + d) * pitch_ + at) = words[d];
        }
      }
    }
  }

  /// Where a lane's ldmatrix of the first two products begins, once prepared.
  __device__ __forceinline__ const unsigned char* pairs() const {
    return x_ + pairs_at_;
  }

 private:
  unsigned char *x_, *digits_;
  int x_pitch_, pitch_;
  int pairs_at_;
  int position_, column_;  // of a lane, if a block is of 128 columns or fewer
};

/// What a warp accumulates of a column of 64 channels: a lane has channels lane / 4 + 8 i, of two
/// digits each. kWay: as in DigitMultiplier.
template <int WBits, DType T, KernelConfig C, ParameterWay kWay>
class DigitSums {
 public:
  using Shape = DigitShape<WBits>;
  static constexpr int kTiles = DecodeStorage<C>::kTiles;
  static_assert(kTiles == 4);

  __device__ __forceinline__ explicit DigitSums(bool halves) : halves_(halves) {}
  /// fixed: row's, which is called with 0 first.
  __device__ __forceinline__ void set_row(int row, const FixedPoint<T>& fixed, int lane) {
    if (row == 0 || lane % 4 >= 2) fixed_ = fixed;
  }
  __device__ __forceinline__ void clear_total() {
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) total_[i] = 0.f;
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      sum_of_x_[j] = 0;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) sums_[t][j] = 0;
    }
  }

  /// Adds a product. words: of its block; mask, one: DigitShape of the product; b: operand B.
  __device__ __forceinline__ void multiply(const uint4 (&words)[kTiles], std::uint32_t mask,
                                           std::uint32_t one, std::uint32_t b0, std::uint32_t b1) {
    std::uint32_t a[kTiles][4];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        a[t][e] = WBits == 8 ? word_of(words[t], e) : word_of(words[t], e) & mask;
      }
    }
    // Nobody reads the sums of the lower eight rows.
    const std::uint32_t ones[4] = {one, ptx::any_word(), one, ptx::any_word()};
    ptx::mma_m16n8k32_u8s8(sum_of_x_, ones, b0, b1, sum_of_x_);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) ptx::mma_m16n8k32_u8s8(sums_[t], a[t], b0, b1, sums_[t]);
  }

  /// Adds a product of selections (decode_selection.cuh).
  __device__ __forceinline__ void select(const std::uint32_t (&metadata)[kTiles], const uint4& b) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) ptx::mma_sp_m16n8k64_of_ones(sums_[t], metadata[t], b);
  }

  /// Adds the sums, scaled, to the total.
  template <class Parameters>
  __device__ __forceinline__ void end(const ForwardArguments& args, Parameters& parameters) {
    end(args, parameters, sum_of_x_[0] + (sum_of_x_[1] << 8));
  }
  /// The same with a sum of x that is known.
  template <class Parameters>
  __device__ __forceinline__ void end(const ForwardArguments& args, Parameters& parameters, int x) {
    const auto sum = [&](int i) {
      return sums_[i / 2][i % 2 * 2] + (sums_[i / 2][i % 2 * 2 + 1] << 8);
    };
    add_scaled<kWay>(args, parameters.ahead(), x, sum, total_);
    parameters.advance();
  }

  /// Of a lane's first channel among the warp's sums [row][channel].
  static __device__ __forceinline__ int place(int lane) {
    return lane % 4 / 2 * DecodeStorage<C>::kPitch + lane / 4;
  }
  /// Writes the sums, from there on. (Two lanes have the same, or four.)
  __device__ __forceinline__ void store(float* sums, int lane) const {
    const float first = fixed_.lower_first() * (lane % 2 == 0 ? 1.f : 0x1p16f);
    float value[2 * kTiles];
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      value[i] = total_[i] * first * fixed_.lower_second();
      value[i] += __shfl_xor_sync(0xffffffffu, value[i], 1);
    }
    if (halves_) {
#pragma unroll
      for (int i = 0; i < 2 * kTiles; ++i) value[i] += __shfl_xor_sync(0xffffffffu, value[i], 2);
    }
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) sums[8 * i] = value[i];
  }

 private:
  bool halves_;
  FixedPoint<T> fixed_;  // of the lane's row
  int sums_[kTiles][4], sum_of_x_[4];
  float total_[2 * kTiles];
};

/// Sums end after kEnd products: with ParameterWay::ring those of a unit. kScales: the type of
/// scales that come by a ring.
template <int WBits, DType T, KernelConfig C, int kEnd, ParameterWay kWay_, DType kScales_ = T>
class DigitMultiplier {
 public:
  using Shape = DigitShape<WBits>;
  static constexpr ParameterWay kWay = kWay_;
  static constexpr DType kScales = kScales_;
  static constexpr bool kWhole = kWay == ParameterWay::ring, kHalves = true;
  using Sums = DigitSums<WBits, T, C, kWay>;
  static constexpr int kEnds = Shape::kUnitProducts / kEnd;  // of a unit
  static_assert(Shape::kUnitProducts % kEnd == 0 && (!kWhole || kEnds == 1));
  static constexpr int kTiles = DecodeStorage<C>::kTiles, kFixedBits = 30;
  static constexpr int kLeastRows = 1, kMostRows = kWhole ? 2 : 1;
  /// The last product of a block takes its words as they are. What they hold beside its own codes
  /// meets the numbers of these, which are taken off the others' instead. With 2 bits only
  /// (bench/NOTES.md).
  static constexpr bool kWholeWords = WBits == 2 && kEnd % Shape::kBlockProducts == 0;

  __device__ __forceinline__ DigitMultiplier(const ForwardArguments& args, unsigned char* slice,
                                             int lane)
      : args_(args),
        digits_(args, slice),
        lane_(lane),
        halves_(!kWhole && (1 << min(args.group_shift, 30)) < Shape::Layout::kBlockK) {}
  /// Before x is there.
  __device__ __forceinline__ void prepare() { digits_.prepare(lane_, 1 << args_.slots_shift); }
  __device__ __forceinline__ bool halves() const { return halves_; }
  static constexpr __device__ int columns_of_sum() { return 32 * kEnd; }
  __device__ __forceinline__ Sums sums() const { return Sums(halves_); }

  template <int kRows>
  __device__ __forceinline__ void write(const FixedPoint<T> (&fixed)[kRows], int row, int first,
                                        int columns, int turn, int turns) const {
    digits_.write(fixed, row, first, columns, turn, turns, lane_);
  }

  /// Adds to the sums of a column of 64 channels: units of K, from `first` of the slice's columns
  /// on.
  template <class Weights, class Parameters>
  __device__ __forceinline__ void multiply(Weights& weights, Parameters& parameters, int first,
                                           int units, Sums& sums) const {
    constexpr int kProducts = Shape::kBlockProducts;  // 1: two blocks a pair; 2: one
    constexpr int kPairs = Shape::kUnitProducts / 2;
    constexpr bool kFromMemory = kWay == ParameterWay::memory;
    constexpr int kUnroll = kFromMemory ? 1 : kPairs;
    // Whether a pair begins a sum whose parameters come next.
    const auto begins_sum = [](int i) {
      return i == 0 || (!kFromMemory && i % std::max(kEnd / 2, 1) == 0);
    };
    const std::uint32_t mask = !halves_ ? 0xffffffffu : lane_ < 16 ? 0x00ff00ffu : 0xff00ff00u;
    const unsigned char* pair = digits_.pairs() + first;
#pragma unroll 1
    for (int unit = 0; unit < units; ++unit) {
      uint4 words[kTiles];
      if constexpr (kProducts > 2) {
        weights.take(words);
        parameters.begin();
      }
      std::uint32_t code = Shape::mask(0), one = Shape::ones(0);
      if constexpr (kEnd > 2) sums.clear();
#pragma unroll kUnroll
      for (int i = 0; i < kPairs; ++i) {
        std::uint32_t b[4];
        ptx::ldmatrix_x4(b, pair);
        pair += 64;
        if constexpr (kProducts == 2) {
          weights.take(words);
          if (begins_sum(i)) parameters.begin();
        } else if (kProducts > 2 && i > 0) {
          if (begins_sum(i)) parameters.begin();
        }
        if constexpr (kEnd == 2) sums.clear();
        static_for<2>([&]<int kHalf>() {
          constexpr int kShift = kProducts == 1 ? 0 : WBits * kHalf;
          if constexpr (kProducts == 1) {
            weights.take(words);
            if (kWhole && kHalf == 0 && i == 0) parameters.begin();
          }
          if constexpr (kEnd == 1) sums.clear();
          const bool whole = kWholeWords && kHalf == 1 && (2 * i + 2) % kProducts == 0;
          sums.multiply(words, whole ? 0xffffffffu : code << kShift,
                        whole ? Shape::kAllOnes : one << kShift, b[2 * kHalf] & mask,
                        b[2 * kHalf + 1] & mask);
          if constexpr (kProducts == 1) weights.refill(2 * i + kHalf);
          if constexpr (kEnd == 1) sums.end(args_, parameters);
        });
        if constexpr (kProducts == 2) weights.refill(i);
        if constexpr (kProducts > 2) code <<= 2 * WBits, one <<= 2 * WBits;
        if constexpr (kEnd == 2) sums.end(args_, parameters);
      }
      if constexpr (kProducts > 2) weights.refill();
      if constexpr (kEnd > 2) sums.end(args_, parameters);
    }
  }

 private:
  const ForwardArguments& args_;
  DigitSlice<WBits, T, kWholeWords> digits_;
  int lane_;
  bool halves_;
};

}  // namespace mpq::kernels

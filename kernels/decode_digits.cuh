#pragma once
// One or two batch rows in 8-bit integer products: y^T = W x^T with mma.m16n8k32, the codes as
// operand A, x as four signed digits to the base of 256 as four columns of operand B.
//
//   codes    a masked word is four codes, each times 2^(WBits * position in its byte): one LOP3 for
//            four weights, none at 8 bits
//   x        of a warp's part of K as fixed-point numbers of 31 bits, in proportion to the largest;
//            columns that meet codes at a higher position are so much smaller. At least 24 bits
//            below the largest remain
//   sums     exact in int32: of q x per digit, and of x per digit by a product with ones; so s (q -
//            z) x is rounded once a group, and not at all where q is z
//   groups   smaller than a block of the layout: a product's codes are of two groups then, one of
//            each half of the block. The digits of a row are there twice, each time with the
//            columns of one half only, and take the columns of the second row

#include <cstdint>

#include "arguments.hpp"
#include "decode_activations.cuh"
#include "decode_reduction.cuh"
#include "decode_storage.cuh"
#include "decode_streams.cuh"
#include "dequant.cuh"
#include "mpq/layout.hpp"
#include "mpq/plan.hpp"
#include "ptx/memory.cuh"
#include "ptx/mma.cuh"
#include "static_for.cuh"

namespace mpq::kernels {

/// What a width means for products of 32 columns, numbered along K.
template <int WBits>
struct DigitShape {
  using Layout = KernelLayout<WBits>;
  static constexpr int kBlockProducts = 8 / WBits;
  static constexpr int kUnitK = Layout::kAlignK;  // decode_unit_k
  static constexpr int kUnitBlocks = kUnitK / Layout::kBlockK;
  static constexpr int kUnitProducts = kUnitBlocks * kBlockProducts;
  static constexpr int kHalfK = Layout::kBlockK / 2;
  /// Of the codes that a product takes from a word.
  static constexpr std::uint32_t mask(int product) {
    return ((1u << WBits) - 1) * 0x01010101u << (WBits * (product % kBlockProducts));
  }
  /// What they are multiples of.
  static constexpr std::uint32_t ones(int product) {
    return 0x01010101u << (WBits * (product % kBlockProducts));
  }
};

/// A row's part of K as fixed-point numbers, value * 2^raise, below 2^30.
template <DType T>
struct FixedPoint {
  static constexpr int kMantissaBits = Half2Of<T>::kMantissaBits, kBias = Half2Of<T>::kBias;
  static constexpr int kMostExponent = T == DType::f16 ? 31 : 255;  // infinities and NaN
  static constexpr int kMostFactor = 100;                           // log2 of one float32 factor
  int raise = 0;
  bool finite = true;

  /// largest: the bits of the largest |x|.
  __device__ __forceinline__ explicit FixedPoint(std::uint32_t largest) {
    const int exponent = static_cast<int>(largest >> kMantissaBits);
    raise = 29 + kBias - max(exponent, 1);
    finite = exponent < kMostExponent;
  }
  /// value * 2^(raise - position), rounded.
  static __device__ __forceinline__ int round(float value, float first, float second) {
    return __float2int_rn(T == DType::f16 ? value * first : value * first * second);
  }
  /// The two factors of 2^(raise - position).
  __device__ __forceinline__ float first(int position) const {
    return T == DType::f16 ? float_power(raise - position) : float_power(min(raise, kMostFactor));
  }
  __device__ __forceinline__ float second(int position) const {
    return T == DType::f16 ? 1.f : float_power(max(raise - kMostFactor, 0) - position);
  }
  /// The factors of 2^-raise; NaN if an element of x was not finite.
  __device__ __forceinline__ float lower_first() const {
    return finite ? float_power(-min(raise, kMostFactor)) : __uint_as_float(0x7fc00000u);
  }
  __device__ __forceinline__ float lower_second() const {
    return T == DType::f16 ? 1.f : float_power(-max(raise - kMostFactor, 0));
  }
};

/// The digits of a CTA's slice of x in shared memory: [row][digit] rows of bytes, digit_pitch
/// apart, bytes in the order in which products take columns.
template <int WBits, DType T>
class DigitSlice {
 public:
  using Shape = DigitShape<WBits>;
  __device__ __forceinline__ DigitSlice(const ForwardArguments& args, unsigned char* slice)
      : x_(slice),
        digits_(slice + (args.x_pitch << args.slots_shift)),
        x_pitch_(args.x_pitch),
        pitch_(decode_digit_pitch(args.x_pitch)) {}

  /// Of `row` and the columns [first, first + columns), a warp's part: what they are multiplied by.
  __device__ __forceinline__ FixedPoint<T> fixed_point(int row, int first, int columns,
                                                       int lane) const {
    Pair<T> most = bits_as<Pair<T>>(0u);
    const unsigned char* x = x_ + row * x_pitch_ + 2 * first;
#pragma unroll 1
    for (int column = 8 * lane; column < columns; column += 256) {
      const uint4 words = *reinterpret_cast<const uint4*>(x + 2 * column);
      const auto abs = [](std::uint32_t word) { return __habs2(bits_as<Pair<T>>(word)); };
      most = __hmax2_nan(most, __hmax2_nan(__hmax2_nan(abs(words.x), abs(words.y)),
                                           __hmax2_nan(abs(words.z), abs(words.w))));
    }
    const auto bits = bits_as<std::uint32_t>(most);
    return FixedPoint<T>(__reduce_max_sync(0xffffffffu, max(bits & 0xffffu, bits >> 16)));
  }

  /// Writes the digits of the warp's share of the same columns: every `stride`-th 128 from the
  /// `turn`-th on.
  __device__ __forceinline__ void write(const FixedPoint<T>& fixed, int row, int first, int columns,
                                        int turn, int stride, int lane) const {
    constexpr int kProducts = Shape::kBlockProducts;
    const unsigned char* x = x_ + row * x_pitch_;
    unsigned char* digits = digits_ + 4 * row * pitch_;
#pragma unroll 1
    for (int at = first + 128 * turn; at < first + columns; at += 128 * stride) {
      const int byte = at + 4 * lane;  // of four columns in the products' order
      const int product = byte / 32, position = product % kProducts;
      const int column =
          product / kProducts * Shape::Layout::kBlockK + position * 16 + byte % 32 / 2;
      const auto low = to_float2<T>(pair(x, column)),
                 high = to_float2<T>(pair(x, column + Shape::kHalfK));
      const float by = fixed.first(WBits * position), then = fixed.second(WBits * position);
      // Digits are signed: -128 ... 127. A carry of 128 to the next makes them so.
      constexpr int kCarries = 0x00808080;
      const auto number = [&](float value) {
        return static_cast<std::uint32_t>(FixedPoint<T>::round(value, by, then) + kCarries);
      };
      const std::uint32_t n0 = number(low.x), n1 = number(high.x), n2 = number(low.y),
                          n3 = number(high.y);
      const std::uint32_t low01 = __byte_perm(n0, n1, 0x5140), low23 = __byte_perm(n2, n3, 0x5140);
      const std::uint32_t top01 = __byte_perm(n0, n1, 0x7362), top23 = __byte_perm(n2, n3, 0x7362);
      store(digits, byte, __byte_perm(low01, low23, 0x5410) ^ 0x80808080u);
      store(digits + pitch_, byte, __byte_perm(low01, low23, 0x7632) ^ 0x80808080u);
      store(digits + 2 * pitch_, byte, __byte_perm(top01, top23, 0x5410) ^ 0x80808080u);
      store(digits + 3 * pitch_, byte, __byte_perm(top01, top23, 0x7632));
    }
  }

  /// Where a lane's ldmatrix of the first two products begins. rows: 1 or 2.
  __device__ __forceinline__ const unsigned char* of_lane(int lane, int rows) const {
    return digits_ + (lane & (4 * rows - 1)) * pitch_ + lane / 8 * 16;
  }

 private:
  static __device__ __forceinline__ Pair<T> pair(const unsigned char* x, int column) {
    return bits_as<Pair<T>>(*reinterpret_cast<const std::uint32_t*>(x + 2 * column));
  }
  static __device__ __forceinline__ void store(unsigned char* digits, int byte,
                                               std::uint32_t word) {
    *reinterpret_cast<std::uint32_t*>(digits + byte) = word;
  }
  unsigned char *x_, *digits_;
  int x_pitch_, pitch_;
};

/// A warp's part of K in each of its columns of 64 channels; in units.
class UnitRuns {
 public:
  __device__ __forceinline__ UnitRuns(int begin, int end, int column, int stride, int columns)
      : begin_(begin), end_(end), column_(column), stride_(stride), columns_(columns) {}
  __device__ __forceinline__ int column() const { return column_; }
  __device__ __forceinline__ int begin() const { return begin_; }
  __device__ __forceinline__ int end() const { return end_; }
  __device__ __forceinline__ bool empty() const { return column_ >= columns_ || begin_ == end_; }
  __device__ __forceinline__ void next() { column_ += stride_; }

 private:
  int begin_, end_, column_, stride_, columns_;
};

/// A lane's way through scales and zeros, ahead by the sums of kEnd products.
template <int WBits, DType T, int kEnd>
class DigitParameters {
 public:
  using Shape = DigitShape<WBits>;
  using Parameters = LaneParameters<WBits, T, 4, true>;

  __device__ __forceinline__ DigitParameters(const ForwardArguments& args, const UnitRuns& runs,
                                             bool halves, int lane)
      : args_(args), runs_(runs), halves_(halves), lane_(lane) {
    begin_run();
    advance();
  }
  /// Of the sums that end next.
  __device__ __forceinline__ const Parameters& ahead() const { return ahead_; }
  /// Goes to the sums after them.
  __device__ __forceinline__ void advance() {
    if (left_ == 0) return;
    ahead_.load(args_, at(column_, args_.n_padded), at(column_, args_.zeros_stride));
    if (halves_) {
      column_ += 16 * kEnd;
      if (column_ % Shape::kHalfK == 0) column_ += Shape::kHalfK;
    } else {
      column_ += 32 * kEnd;
    }
    if (--left_ == 0) {
      runs_.next();
      begin_run();
    }
  }

 private:
  // In parameters of which a group's row is `stride` from the next.
  __device__ __forceinline__ std::uint32_t at(int column, int stride) const {
    return static_cast<std::uint32_t>(column >> args_.group_shift) *
               static_cast<std::uint32_t>(stride) +
           channels_;
  }
  __device__ __forceinline__ void begin_run() {
    left_ = 0;
    if (runs_.empty()) return;
    const int units = runs_.end() - runs_.begin(), first = runs_.begin() * Shape::kUnitK;
    left_ = units * (Shape::kUnitProducts / kEnd);
    channels_ = static_cast<std::uint32_t>(runs_.column() * 64 + lane_ / 4 * 8);
    // The run's parameters, one unit a lane, from memory to the L2 cache: a unit takes less time
    // than that.
    if (lane_ > 0 && lane_ < units) {
      const int column = first + lane_ * Shape::kUnitK;
      const std::uint32_t parameter = at(column, args_.n_padded);
      if (args_.statistics != nullptr) {
        ptx::prefetch_l2(args_.statistics + parameter);
        ptx::prefetch_l2(args_.statistic_bases + statistic_base_of(parameter));
      } else {
        ptx::prefetch_l2(args_.scales + parameter);
      }
      if (args_.affine_zeros != nullptr) {
        ptx::prefetch_l2(args_.affine_zeros + parameter);
      } else if (args_.zeros != nullptr) {
        ptx::prefetch_l2(static_cast<const ZeroCode<WBits>*>(args_.zeros) +
                         at(column, args_.zeros_stride));
      }
    }
    column_ = first + (halves_ && lane_ % 4 >= 2 ? Shape::kHalfK : 0);
  }
  const ForwardArguments& args_;
  UnitRuns runs_;
  bool halves_;
  int lane_, left_, column_;
  std::uint32_t channels_;
  Parameters ahead_;
};

/// What a warp accumulates of a column of 64 channels: a lane has channels lane / 4 + 8 i, of two
/// digits each.
template <int WBits, DType T, KernelConfig C>
class DigitSums {
 public:
  static constexpr int kTiles = DecodeStorage<C>::kTiles;
  static_assert(kTiles == 4);

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
    const std::uint32_t ones[4] = {one, one, one, one};
    std::uint32_t a[kTiles][4];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        a[t][e] = WBits == 8 ? word_of(words[t], e) : word_of(words[t], e) & mask;
      }
    }
    ptx::mma_m16n8k32_u8s8(sum_of_x_, ones, b0, b1, sum_of_x_);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) ptx::mma_m16n8k32_u8s8(sums_[t], a[t], b0, b1, sums_[t]);
  }

  /// Adds the sums, scaled, to the total.
  template <class Parameters>
  __device__ __forceinline__ void end(const ForwardArguments& args, Parameters& parameters) {
    const auto& own = parameters.ahead();
    const int x = sum_of_x_[0] + (sum_of_x_[1] << 8);
    const auto sum = [&](int i) {
      return sums_[i / 2][i % 2 * 2] + (sums_[i / 2][i % 2 * 2 + 1] << 8);
    };
    if (args.zeros == nullptr) {
      const auto x_float = static_cast<float>(x);
      static_for<kTiles>([&]<int kTile>() {
        const AffinePair pair = own.template affine_pair<kTile>(args);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float& total = total_[2 * kTile + h];
          total = __fmaf_rn(pair.affine[h], x_float, total);
          total = __fmaf_rn(pair.scale[h], static_cast<float>(sum(2 * kTile + h)), total);
        }
      });
    } else {
#pragma unroll
      for (int i = 0; i < 2 * kTiles; ++i) {
        const auto exact = static_cast<float>(sum(i) - own.zero(i / 2, i % 2) * x);
        total_[i] = __fmaf_rn(own.scale(args, i / 2, i % 2), exact, total_[i]);
      }
    }
    parameters.advance();
  }

  /// Writes the warp's sums [row][channel]. fixed: of the lane's row.
  __device__ __forceinline__ void store(float (&sums)[C.tile_m][DecodeStorage<C>::kPitch],
                                        const FixedPoint<T>& fixed, bool halves, int lane) const {
    const float first = fixed.lower_first() * (lane % 2 == 0 ? 1.f : 0x1p16f);
    float value[2 * kTiles];
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      value[i] = total_[i] * first * fixed.lower_second();
      value[i] += __shfl_xor_sync(0xffffffffu, value[i], 1);
    }
    if (halves) {
#pragma unroll
      for (int i = 0; i < 2 * kTiles; ++i) value[i] += __shfl_xor_sync(0xffffffffu, value[i], 2);
    }
    if (lane % 2 == 0) {
#pragma unroll
      for (int i = 0; i < 2 * kTiles; ++i) sums[lane % 4 / 2][lane / 4 + 8 * i] = value[i];
    }
  }

 private:
  int sums_[kTiles][4], sum_of_x_[4];
  float total_[2 * kTiles];
};

/// The CTA's work; sums end after kEnd products.
template <int WBits, DType T, KernelConfig C, int kEnd>
__device__ __forceinline__ void decode_digits(const ForwardArguments& args,
                                              DecodeStorage<C>& storage, unsigned char* slice) {
  using Shape = DigitShape<WBits>;
  static_assert(Shape::kUnitProducts % kEnd == 0);
  constexpr int kTiles = DecodeStorage<C>::kTiles, kUnitK = Shape::kUnitK;
  const KSplit split{static_cast<int>(static_cast<unsigned>(args.k_padded) / kUnitK),
                     C.warps() >> args.warps_n_shift,
                     1,
                     1 << args.cluster_shift,
                     static_cast<int>(blockIdx.x & ((1u << args.cluster_shift) - 1)),
                     args.part};
  const int slice_begin = split.part_begin(0, 0);
  const int slice_columns = (split.part_begin(0, split.warps) - slice_begin) * kUnitK;
  ActivationSlice<C, false> x(args, storage, slice);
  // x is the longest to wait for, unless the kernel before is to write it yet.
  if (!args.programmatic) x.start_by_threads(slice_begin * kUnitK, slice_columns);

  // The rest is computed after that.
  const int thread = ptx::opaque(static_cast<int>(threadIdx.x));
  const int warp = thread / 32, lane = thread % 32;
  const int warps_n = 1 << args.warps_n_shift;
  const int warp_n = warp & (warps_n - 1), warp_k = warp >> args.warps_n_shift;
  const auto columns = static_cast<int>(static_cast<unsigned>(args.n_padded) / C.tile_n);
  const int first_column = static_cast<int>(blockIdx.x >> args.cluster_shift) << args.warps_n_shift;
  const int m0 = static_cast<int>(blockIdx.y) * args.tile_rows;
  const int rows = min(args.m - m0, args.tile_rows), slots = 1 << args.slots_shift;
  const bool halves = (1 << min(args.group_shift, 30)) < Shape::Layout::kBlockK;
  const int begin = split.part_begin(0, warp_k), end = split.part_begin(0, warp_k + 1);
  const DigitSlice<WBits, T> digits(args, slice);
  TileReduction<T, C, false> reduction(args, storage, slice);
  const UnitRuns runs(begin, end, first_column + warp_n, args.column_stride, columns);
  WeightStream<WBits, C, UnitRuns, Shape::kUnitBlocks> weights(args, storage.ring[warp], lane,
                                                               runs);
  DigitParameters<WBits, T, kEnd> parameters(args, runs, halves, lane);
  ptx::griddepcontrol_launch_dependents();
  if (args.programmatic && thread < 32) x.start(slice_begin * kUnitK, slice_columns);

  FixedPoint<T> fixed(0u);  // of the lane's row
  ptx::griddepcontrol_wait();
  x.complete(slice_begin * kUnitK, slice_columns, !args.programmatic);
#pragma unroll 1
  for (int row = 0; row < rows; ++row) {
    const int first = (begin - slice_begin) * kUnitK, count = (end - begin) * kUnitK;
    const auto its = digits.fixed_point(row, first, count, lane);
    digits.write(its, row, first, count, warp_n, warps_n, lane);
    if (row == 0 || lane % 4 >= 2) fixed = its;
  }
  __syncthreads();
  const std::uint32_t mask = !halves ? 0xffffffffu : lane < 16 ? 0x00ff00ffu : 0xff00ff00u;

  DigitSums<WBits, T, C> sums;
#pragma unroll 1
  for (int column = first_column; column < columns; column += args.column_stride) {
    sums.clear_total();
    if (column + warp_n < columns) {
      const unsigned char* pair = digits.of_lane(lane, slots) + (begin - slice_begin) * kUnitK;
#pragma unroll 1
      for (int unit = begin; unit < end; ++unit) {
        constexpr int kProducts = Shape::kBlockProducts;  // 1: two blocks a pair; 2: one
        uint4 words[kTiles];
        if constexpr (kProducts > 2) weights.take(words);
        std::uint32_t code = Shape::mask(0), one = Shape::ones(0);
        if constexpr (kEnd > 2) sums.clear();
#pragma unroll 1
        for (int i = 0; i < Shape::kUnitProducts / 2; ++i) {
          std::uint32_t b[4];
          ptx::ldmatrix_x4(b, pair);
          pair += 64;
          if constexpr (kProducts == 2) weights.take(words);
          if constexpr (kEnd == 2) sums.clear();
          static_for<2>([&]<int kHalf>() {
            constexpr int kShift = kProducts == 1 ? 0 : WBits * kHalf;
            if constexpr (kProducts == 1) weights.take(words);
            if constexpr (kEnd == 1) sums.clear();
            sums.multiply(words, code << kShift, one << kShift, b[2 * kHalf] & mask,
                          b[2 * kHalf + 1] & mask);
            if constexpr (kProducts == 1) weights.refill();
            if constexpr (kEnd == 1) sums.end(args, parameters);
          });
          if constexpr (kProducts == 2) weights.refill();
          if constexpr (kProducts > 2) code <<= 2 * WBits, one <<= 2 * WBits;
          if constexpr (kEnd == 2) sums.end(args, parameters);
        }
        if constexpr (kProducts > 2) weights.refill();
        if constexpr (kEnd > 2) sums.end(args, parameters);
      }
    }
    reduction.publish(
        [&](auto& target, int of_lane) { sums.store(target, fixed, halves, of_lane); });
  }
  reduction.finish();
  reduction.leave();
}

}  // namespace mpq::kernels

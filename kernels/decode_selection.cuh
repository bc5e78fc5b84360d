#pragma once
// Two batch rows and 1-bit weights in groups of 128 columns and more, in 8-bit integer products
// with 2:4 structured sparsity: y^T = W x^T with mma.sp.m16n8k64. Nothing is unpacked.
//
//   codes    are the metadata. Of four columns of operand A two are not zero, and these are 1;
//            which two metadata say, two bits each. In operand B every other byte is 0, so a code,
//            with a bit beside it that is always the same, picks 0 or a digit of x. A word of
//            metadata is 16 codes: every other bit of a word, made by one LOP3
//   x        as four signed digits (decode_digits.cuh); sums of them are taken on the way
//   sums     of a group's 128 columns, exact in int32, as there

#include <cstdint>

#include "arguments.hpp"
#include "decode_digits.cuh"
#include "decode_fixed_point.cuh"
#include "decode_storage.cuh"
#include "dequant.cuh"
#include "mpq/kernel_shape.hpp"
#include "mpq/layout.hpp"
#include "ptx/lop3.cuh"
#include "ptx/memory.cuh"

namespace mpq::kernels {

/// Of a block of the layout: two sums, each of eight k-steps, a byte of a half word; of a sum four
/// products: the lower or upper columns of even or odd k-steps.
struct SelectionShape {
  static constexpr int kBlockK = KernelLayout<1>::kBlockK, kSums = 2, kSumK = kBlockK / kSums;
  static_assert(kBlockK == KernelLayout<1>::kAlignK);  // a unit (decode_unit_k) is a block
  static constexpr int kProducts = 4;
  /// The codes that a word of metadata has, and its constant bits.
  static constexpr std::uint32_t kCodes = 0x55555555u, kSecond = 0x88888888u;
  /// Of a row, and from product to product: what four products write together is spread over the
  /// banks. Between a sum's first and second are the sums of x.
  static constexpr int kRowBytes = 256, kProductBytes = 2 * kRowBytes + 32;
  static constexpr int kSumBytes = kProducts * kProductBytes;
  static_assert(kSums * kSumBytes == decode_selection_bytes(kBlockK));
};

/// The digits of a CTA's slice of x in shared memory: [sum][product][row][digit][4 lanes][4 words]
/// of operand B. A word is digits of two columns, two k-steps apart, each in the upper byte of a
/// half.
template <DType T>
class SelectionSlice {
 public:
  using Shape = SelectionShape;
  __device__ __forceinline__ SelectionSlice(const ForwardArguments& args, unsigned char* slice)
      : x_(slice), digits_(slice + 2 * args.x_pitch), x_pitch_(args.x_pitch) {}

  /// What is known of a lane's columns before x is there.
  __device__ __forceinline__ void prepare(int lane) {
    // Of 128 columns a lane has two times two neighbours, of a product's word of four lanes.
    const int word = lane % 4, fourth = lane / 4 % 2, product = lane / 8;
    const int upper = product / 2, odd = product % 2;
    column_ = ptx::opaque(16 * (4 * fourth + odd) + 8 * upper + 2 * word);
    to_ = ptx::opaque(product * Shape::kProductBytes + fourth * 16 + word * 4);
    from_ = ptx::opaque(2 * x_pitch_ + 16 * lane);
    sum_from_ = ptx::opaque(2 * x_pitch_ + 2 * Shape::kRowBytes + lane % 4 * 4);
  }
  /// Writes the digits of the warp's share of columns [first, first + columns): every `stride`-th
  /// 128 from the `turn`-th on.
  __device__ __forceinline__ void write(const FixedPoint<T> (&fixed)[2], int first, int columns,
                                        int turn, int stride, int lane) const {
    const float by[2] = {fixed[0].first(0), fixed[1].first(0)};
    const float then[2] = {fixed[0].second(0), fixed[1].second(0)};
    const unsigned char* x = x_ + 2 * column_;
    // Of digits, in the upper byte of each half; the other is zero.
    const std::uint32_t upper_bytes = ptx::opaque(0xff00ff00u);
#pragma unroll 1
    for (int at = first + Shape::kSumK * turn; at < first + columns; at += Shape::kSumK * stride) {
      const int of_sum = at / Shape::kSumK * Shape::kSumBytes;
      int sums[2][2];  // of the lower two digits, and of the upper
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const unsigned char* from = x + row * x_pitch_ + 2 * at;
        const auto low = neighbours_of_x<T>(from), high = neighbours_of_x<T>(from + 64);
        const auto number = [&](float value) {
          return static_cast<std::uint32_t>(FixedPoint<T>::round(value, by[row], then[row])) +
                 kDigitCarries;
        };
        const std::uint32_t numbers[2][2] = {{number(low.x), number(high.x)},
                                             {number(low.y), number(high.y)}};
        unsigned lower = 0;
        int upper = 0;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            lower = __dp2a_lo(numbers[h][i], 0x0001u, lower);
            upper = __dp2a_lo(static_cast<int>(numbers[h][i]), 0x0100, upper);
          }
#pragma unroll
          for (unsigned d = 0; d < 4; ++d) {
            const std::uint32_t bytes =
                __byte_perm(numbers[h][0], numbers[h][1], 0x4000u + d * 0x1111u);
            const std::uint32_t sign = d < 3 ? 0x80008000u : 0u;
            *reinterpret_cast<std::uint32_t*>(digits_ + row * Shape::kRowBytes + to_ + of_sum +
                                              64 * d + 32 * h) =
                ptx::lop3_and_xor(bytes, upper_bytes, sign);
          }
        }
        sums[row][0] = static_cast<int>(__reduce_add_sync(0xffffffffu, lower));
        sums[row][1] = __reduce_add_sync(0xffffffffu, upper);
      }
      // Less the carries of all columns.
      constexpr int kLower = Shape::kSumK * 0x8080, kUpper = Shape::kSumK * 0x80;
      if (lane == 0) {
        *reinterpret_cast<int4*>(digits_ + 2 * Shape::kRowBytes + of_sum) = make_int4(
            sums[0][0] - kLower, sums[0][1] - kUpper, sums[1][0] - kLower, sums[1][1] - kUpper);
      }
    }
  }

  /// A lane's operand B of a sum's first product, once prepared.
  __device__ __forceinline__ const unsigned char* operands(int sum) const {
    return x_ + from_ + sum * Shape::kSumBytes;
  }
  /// Of x, of a lane's row and digits, from there on.
  __device__ __forceinline__ const unsigned char* sums_of_x(int sum) const {
    return x_ + sum_from_ + sum * Shape::kSumBytes;
  }

 private:
  unsigned char *x_, *digits_;
  int x_pitch_;
  int column_, to_, from_, sum_from_;  // of a lane
};

/// kWhole_: zeros are integers, and scales of the activations' type.
template <DType T, KernelConfig C, bool kWhole_>
class SelectionMultiplier {
 public:
  using Shape = SelectionShape;
  static constexpr bool kHalves = false;
  static constexpr ParameterWay kWay = kWhole_ ? ParameterWay::ring : ParameterWay::memory;
  static constexpr DType kScales = T;
  using Sums = DigitSums<1, T, C, kWay>;
  static constexpr int kTiles = DecodeStorage<C>::kTiles, kFixedBits = 30;
  /// A second row that is not there reaches only itself.
  static constexpr int kLeastRows = 2, kMostRows = 2;

  __device__ __forceinline__ SelectionMultiplier(const ForwardArguments& args, unsigned char* slice,
                                                 int lane)
      : args_(args), digits_(args, slice), lane_(lane) {}
  /// Before x is there.
  __device__ __forceinline__ void prepare() {
    digits_.prepare(lane_);
    is_odd_ = ptx::opaque(lane_ % 2);
#pragma unroll
    for (unsigned sum = 0; sum < 2; ++sum) {
      bytes_[sum] = ptx::opaque((lane_ % 2 == 0 ? 0x6420u : 0x2064u) + 0x1111u * sum);
    }
  }
  static constexpr __device__ bool halves() {
    return false;
  }
  static constexpr __device__ int columns_of_sum() {
    return Shape::kSumK;
  }
  static __device__ __forceinline__ Sums sums() {
    return Sums(false);
  }

  __device__ __forceinline__ void write(const FixedPoint<T> (&fixed)[2], int /*row*/, int first,
                                        int columns, int turn, int turns) const {
    digits_.write(fixed, first, columns, turn, turns, lane_);
  }

  /// Adds to the sums of a column of 64 channels: blocks of K, from `first` of the slice's columns
  /// on.
  template <class Weights, class Parameters>
  __device__ __forceinline__ void multiply(Weights& weights, Parameters& parameters, int first,
                                           int blocks, Sums& sums) const {
    const unsigned char* b = digits_.operands(first / Shape::kSumK);
    const unsigned char* sum_of_x = digits_.sums_of_x(first / Shape::kSumK);
#pragma unroll 1
    for (int block = 0; block < blocks; ++block) {
      uint4 words[kTiles];
      weights.take(words);
      // Metadata of row lane / 4 are in even lanes, of the row eight further in odd ones: two
      // neighbours exchange what the other is to have.
      std::uint32_t own[kTiles][2], other[kTiles][2];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        own[t][0] = is_odd_ ? words[t].y : words[t].x;
        own[t][1] = is_odd_ ? words[t].w : words[t].z;
        other[t][0] = __shfl_xor_sync(0xffffffffu, is_odd_ ? words[t].x : words[t].y, 1);
        other[t][1] = __shfl_xor_sync(0xffffffffu, is_odd_ ? words[t].z : words[t].w, 1);
      }
#pragma unroll
      for (int sum = 0; sum < Shape::kSums; ++sum) {
        parameters.begin();
        sums.clear();
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
          std::uint32_t codes[kTiles], metadata[kTiles];
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
            codes[t] = __byte_perm(own[t][upper], other[t][upper], bytes_[sum]);
          }
#pragma unroll
          for (int odd = 0; odd < 2; ++odd) {
            const uint4 digits = *reinterpret_cast<const uint4*>(b);
            b += Shape::kProductBytes;
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
              metadata[t] = ptx::lop3_and_or(codes[t] >> odd, Shape::kCodes, Shape::kSecond);
            }
            sums.select(metadata, digits);
          }
        }
        sums.end(args_, parameters, *reinterpret_cast<const int*>(sum_of_x));
        sum_of_x += Shape::kSumBytes;
      }
      weights.refill();
    }
  }

 private:
  const ForwardArguments& args_;
  SelectionSlice<T> digits_;
  int lane_;
  int is_odd_;              // once prepared
  std::uint32_t bytes_[2];  // of a sum, of two lanes' words
};

}  // namespace mpq::kernels

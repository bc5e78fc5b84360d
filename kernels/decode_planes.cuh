#pragma once
// One batch row in products of single bits, for 1-bit weights and groups of 64 columns or more (of
// fewer digits are faster; two rows: decode_selection.cuh): y^T = W x^T with mma.m16n8k256, the
// words of the layout as operand A as they lie, the bits of x as columns of operand B. Nothing is
// unpacked.
//
//   x        of a warp's part of K as fixed-point numbers of 24 bits, in proportion to the largest,
//            as two signed digits of 12 bits
//   planes   a bit of 32 numbers each: a warp has 32 numbers, a lane each, and transposes them as a
//            matrix of bits
//   sums     of half a block, 128 columns, or a smaller group, exact in int32: of q x per bit of x,
//            and of x, taken with the planes or, of smaller groups, by a product with ones. Four
//            columns of B have one half's columns, with zeros for those of the other, the next four
//            the other half's; of four lanes two have the digits of one half, two of the other. So
//            s (q - z) x is rounded once a sum and digit, and not at all where q is z

#include <cstdint>

#include "arguments.hpp"
#include "decode_fixed_point.cuh"
#include "decode_storage.cuh"
#include "dequant.cuh"
#include "mpq/kernel_shape.hpp"
#include "mpq/layout.hpp"
#include "ptx/memory.cuh"
#include "ptx/mma.cuh"

namespace mpq::kernels {

/// Products of a block of the layout.
struct PlaneShape {
  static constexpr int kBlockK = KernelLayout<1>::kBlockK, kSumK = kBlockK / 2;
  static_assert(kBlockK == KernelLayout<1>::kAlignK);  // a unit (decode_unit_k) is a block
  static constexpr int kDigitBits = 12, kPlanes = 2 * kDigitBits;
  static constexpr int kProducts = kDigitBits / 2;  // a lane has two bits of each
  static constexpr int kColumns = 4;                // of B, of a half
  /// Numbers are below 2^kFixedBits, less 2^12: two signed digits hold them.
  static constexpr int kFixedBits = kPlanes - 1;
  /// From product to product: spread over the banks for what lanes write together.
  static constexpr int kProductBytes = kColumns * 32 + 8;
  /// Behind the products of a block: sums of x, of each half the two digits.
  static constexpr int kSumsAt = kProducts * kProductBytes, kBlockBytes = kSumsAt + 16;
  static_assert(kBlockBytes <= 4 * kBlockK);  // in the place of four digits (decode_slice_bytes)
};

/// A lane's share of operand B of the products of a block.
class PlaneReader {
 public:
  __device__ __forceinline__ explicit PlaneReader(const unsigned char* first) : first_(first) {}
  __device__ __forceinline__ uint2 of(int product) const {
    return *reinterpret_cast<const uint2*>(first_ + product * PlaneShape::kProductBytes);
  }

 private:
  const unsigned char* first_;
};

/// Bit i of lane j's words to bit j of lane i's.
class BitTranspose {
 public:
  BitTranspose() = default;
  /// Here, not where it is needed.
  __device__ __forceinline__ explicit BitTranspose(int lane)
      : halves_(ptx::opaque(lane & 16 ? 0x3276u : 0x5410u)),
        bytes_(ptx::opaque(lane & 8 ? 0x3715u : 0x6240u)) {
    constexpr std::uint32_t kLow[3] = {0x0f0f0f0fu, 0x33333333u, 0x55555555u};
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const int by = 4 >> i;
      own_[i] = ptx::opaque(lane & by ? ~kLow[i] : kLow[i]);
      turn_[i] = ptx::opaque(lane & by ? 32 - by : by);
    }
  }
  template <int kWords>
  __device__ __forceinline__ void operator()(std::uint32_t (&words)[kWords]) const {
    exchange(words, 16, [&](std::uint32_t own, std::uint32_t other) {
      return __byte_perm(own, other, halves_);
    });
    exchange(words, 8, [&](std::uint32_t own, std::uint32_t other) {
      return __byte_perm(own, other, bytes_);
    });
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      exchange(words, 4 >> i, [&](std::uint32_t own, std::uint32_t other) {
        const std::uint32_t turned = other << turn_[i] | other >> (32 - turn_[i]);
        return (own & own_[i]) | (turned & ~own_[i]);
      });
    }
  }

 private:
  template <int kWords, class Mix>
  static __device__ __forceinline__ void exchange(std::uint32_t (&words)[kWords], int by,
                                                  const Mix& mix) {
    std::uint32_t other[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) other[i] = __shfl_xor_sync(0xffffffffu, words[i], by);
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = mix(words[i], other[i]);
  }
  std::uint32_t halves_, bytes_, own_[3];
  int turn_[3];
};

/// The planes of a CTA's slice of x in shared memory, blocks of the layout one after the other.
/// Column n of product i has bit 2 i + n % 2 of digit n / 2, 8 bytes for each of four lanes: the
/// word of the lower eight columns of all k-steps, and of the upper.
template <DType T>
class PlaneSlice {
 public:
  using Shape = PlaneShape;
  static constexpr int kBlockK = Shape::kBlockK;

  __device__ __forceinline__ PlaneSlice(const ForwardArguments& args, unsigned char* slice,
                                        int lane)
      : x_(slice), planes_(slice + args.x_pitch), lane_(lane) {}

  /// What is known of a lane's part before x is there.
  __device__ __forceinline__ void prepare() {
    transpose_ = BitTranspose(lane_);
    // After it a plane of three of the numbers that lie side by side, or three of the fourth: where
    // its words go.
#pragma unroll
    for (int i = 0; i < kWordsOfFour; ++i) {
      to_[i] =
          ptx::opaque(lane_ < Shape::kPlanes ? place_of_plane(lane_, i)
                                             : place_of_plane(lane_ - Shape::kPlanes + 8 * i, 3));
    }
  }
  /// Writes the planes of the warp's share of columns [first, first + columns): every `turns`-th
  /// block from the `turn`-th on.
  __device__ __forceinline__ void write(const FixedPoint<T>& fixed, int first, int columns,
                                        int turn, int turns) const {
    const float by = fixed.first(0), then = fixed.second(0);
    // A lane has bit `lane` of the words: a column of k-step lane % 16, even or odd.
    const std::uint32_t pick = lane_ < 16 ? 0x4410u : 0x4432u;
    const unsigned char* x = x_ + 32 * (lane_ % 16);
#pragma unroll 1
    for (int at = first + kBlockK * turn; at < first + columns; at += kBlockK * turns) {
      // 24 bits of four numbers, the fourth's in the others' upper bytes; then those of the upper
      // columns.
      std::uint32_t planes[2 * kWordsOfFour];
      int lower_digits = 0, both = 0;
#pragma unroll
      for (int upper = 0; upper < 2; ++upper) {
        const uint4 words = *reinterpret_cast<const uint4*>(x + 2 * at + 16 * upper);
        std::uint32_t numbers[4];
#pragma unroll
        for (int t = 0; t < 4; ++t) {
          const std::uint32_t element = __byte_perm(word_of(words, t), 0, pick);
          const float value = scale_to_float(static_cast<std::uint16_t>(element), T == DType::bf16);
          const int number = FixedPoint<T>::round(value, by, then) + kCarry;
          both += number;
          lower_digits += number & (2 * kCarry - 1);
          numbers[t] = static_cast<std::uint32_t>(number ^ kCarry);
        }
#pragma unroll
        for (int i = 0; i < kWordsOfFour; ++i) {
          planes[kWordsOfFour * upper + i] =
              __byte_perm(numbers[i], numbers[3], 0x4210 + 0x1000 * i);
        }
      }
      transpose_(planes);
      unsigned char* block = planes_ + at / kBlockK * Shape::kBlockBytes;
#pragma unroll
      for (int i = 0; i < kWordsOfFour; ++i) {
        *reinterpret_cast<uint2*>(block + to_[i]) = make_uint2(planes[i], planes[kWordsOfFour + i]);
      }
      // A lane's numbers are of one half.
      const int upper_digits = (both - lower_digits) >> Shape::kDigitBits;
      const bool lower_half = lane_ % 16 < 8;
      const auto sum = [](int value) { return __reduce_add_sync(0xffffffffu, value); };
      int4 sums = make_int4(sum(lower_half ? lower_digits : 0), sum(lower_half ? upper_digits : 0),
                            sum(lower_half ? 0 : lower_digits), sum(lower_half ? 0 : upper_digits));
      sums.x -= Shape::kSumK * kCarry, sums.z -= Shape::kSumK * kCarry;
      if (lane_ == 0) *reinterpret_cast<int4*>(block + Shape::kSumsAt) = sums;
      __syncwarp();
    }
  }

  /// The sum of x of a lane's digit and half.
  __device__ __forceinline__ int sum_of_x(int block) const {
    return *reinterpret_cast<const int*>(planes_ + block * Shape::kBlockBytes + Shape::kSumsAt +
                                         4 * (lane_ % 4));
  }
  __device__ __forceinline__ PlaneReader reader(int block) const {
    return PlaneReader(planes_ + block * Shape::kBlockBytes +
                       place(0, lane_ / 4 % Shape::kColumns, lane_ % 4));
  }

 private:
  static constexpr int kWordsOfFour = 3;
  static_assert(4 * Shape::kPlanes == kWordsOfFour * 32);
  static __device__ __forceinline__ int place(int product, int column, int t) {
    return product * Shape::kProductBytes + column * 32 + 8 * t;
  }
  // Of the t-th of four lanes' columns.
  static __device__ __forceinline__ int place_of_plane(int plane, int t) {
    const int digit = plane / Shape::kDigitBits;
    return place(plane % Shape::kDigitBits / 2, digit * 2 + plane % 2, t);
  }
  // Digits in two's complement: a carry of half their base to the upper one makes them so.
  static constexpr int kCarry = 1 << (Shape::kDigitBits - 1);
  unsigned char *x_, *planes_;
  int lane_;
  BitTranspose transpose_;
  int to_[kWordsOfFour];
};

/// What a warp accumulates of a column of 64 channels: a lane has channels lane / 4 + 8 i, one
/// digit of x. kWhole: as in PlaneMultiplier.
template <DType T, KernelConfig C, bool kWhole>
class PlaneSums {
 public:
  using Shape = PlaneShape;
  static constexpr int kTiles = DecodeStorage<C>::kTiles;
  static_assert(kTiles == 4);

  __device__ __forceinline__ void set_row(int /*row*/, const FixedPoint<T>& fixed, int /*lane*/) {
    fixed_ = fixed;
  }
  __device__ __forceinline__ void clear_total() {
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) total_[i] = 0.f;
  }

  /// Adds a sum. words: of its block; planes: for the lane; mask: of the sum's columns; x: kWhole,
  /// their sum of x.
  template <class Parameters>
  __device__ __forceinline__ void add(const ForwardArguments& args, const Parameters& parameters,
                                      const uint4 (&words)[kTiles], const PlaneReader& planes,
                                      std::uint32_t mask, int x = 0) {
    int sum[2 * kTiles];
    uint2 plane = planes.of(Shape::kProducts - 1);  // of the next product
    // Adds the counts of product i, after those of all higher bits.
    const auto multiply = [&](int i, const auto& next) {
      const std::uint32_t b0 = plane.x & mask, b1 = plane.y & mask;
      plane = planes.of(max(i - 1, 0));
      [[maybe_unused]] int of_x[4];
      int of_tile[kTiles][4];
      if constexpr (!kWhole) {
        const std::uint32_t ones[4] = {~0u, ~0u, ~0u, ~0u};
        ptx::mma_m16n8k256_and_popc(of_x, ones, b0, b1);
      }
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const std::uint32_t a[4] = {words[t].x, words[t].y, words[t].z, words[t].w};
        ptx::mma_m16n8k256_and_popc(of_tile[t], a, b0, b1);
      }
      if constexpr (!kWhole) next(x, of_x[0], of_x[1]);
#pragma unroll
      for (int j = 0; j < 2 * kTiles; ++j) {
        next(sum[j], of_tile[j / 2][j % 2 * 2], of_tile[j / 2][j % 2 * 2 + 1]);
      }
    };
    // The highest bit of a digit counts negative. (Unrolled, ptxas puts one product behind the
    // other to save registers.)
    multiply(Shape::kProducts - 1, [](int& of, int low, int high) { of = low - high - high; });
#pragma unroll 1
    for (int i = Shape::kProducts - 2; i >= 0; --i) {
      multiply(
          i, [](int& of, int low, int high) { of = 4 * of + ptx::add(ptx::add(low, high), high); });
    }
    add_scaled<kWhole ? ParameterWay::ring : ParameterWay::memory>(
        args, parameters, x, [&](int i) { return sum[i]; }, total_);
  }

  /// Of a lane's first channel among the warp's sums.
  static __device__ __forceinline__ int place(int lane) {
    return lane / 4;
  }
  /// Writes the sums, from there on. (Four lanes have the same.)
  __device__ __forceinline__ void store(float* sums, int lane) const {
    const float first = fixed_.lower_first() * float_power(Shape::kDigitBits * (lane % 2));
    float value[2 * kTiles];
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      value[i] = total_[i] * first * fixed_.lower_second();
      value[i] += __shfl_xor_sync(0xffffffffu, value[i], 1);
      value[i] += __shfl_xor_sync(0xffffffffu, value[i], 2);
    }
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) sums[8 * i] = value[i];
  }

 private:
  FixedPoint<T> fixed_;
  float total_[2 * kTiles];
};

/// kWhole_: groups are of 128 columns or more, zeros integers, and scales of the activations' type.
template <DType T, KernelConfig C, bool kWhole_>
class PlaneMultiplier {
 public:
  using Shape = PlaneShape;
  static constexpr bool kWhole = kWhole_, kHalves = true;
  static constexpr ParameterWay kWay = kWhole ? ParameterWay::ring : ParameterWay::memory;
  static constexpr DType kScales = T;
  using Sums = PlaneSums<T, C, kWhole>;
  static constexpr int kTiles = DecodeStorage<C>::kTiles, kFixedBits = Shape::kFixedBits;
  static constexpr int kLeastRows = 1, kMostRows = 1;

  __device__ __forceinline__ PlaneMultiplier(const ForwardArguments& args, unsigned char* slice,
                                             int lane)
      : args_(args),
        planes_(args, slice, lane),
        half_mask_(lane < 16 ? 0x00ff00ffu : 0xff00ff00u) {}
  /// Before x is there.
  __device__ __forceinline__ void prepare() { planes_.prepare(); }
  static constexpr __device__ bool halves() { return true; }
  /// Of both halves.
  __device__ __forceinline__ int columns_of_sum() const {
    return 2 * min(1 << min(args_.group_shift, 30), Shape::kSumK);
  }
  static __device__ __forceinline__ Sums sums() { return {}; }

  __device__ __forceinline__ void write(const FixedPoint<T> (&fixed)[1], int /*row*/, int first,
                                        int columns, int turn, int turns) const {
    planes_.write(fixed[0], first, columns, turn, turns);
  }

  /// Adds to the sums of a column of 64 channels: blocks of K, from `first` of the slice's columns
  /// on.
  template <class Weights, class Parameters>
  __device__ __forceinline__ void multiply(Weights& weights, Parameters& parameters, int first,
                                           int blocks, Sums& sums) const {
    int block = first / Shape::kBlockK;
    const int end = block + blocks;
#pragma unroll 1
    for (; block < end; ++block) {
      uint4 words[kTiles];
      weights.take(words);
      parameters.begin();
      const PlaneReader planes = planes_.reader(block);
      if constexpr (kWhole) {
        sums.add(args_, parameters.ahead(), words, planes, half_mask_, planes_.sum_of_x(block));
      } else {
        // A group's k-steps are so many bits of a byte: of each half, in even and odd columns.
        const int steps = columns_of_sum() / 32;
        std::uint32_t group = ((1u << steps) - 1) * 0x01010101u;
#pragma unroll 1
        for (int step = 0; step < 8; step += steps, group <<= steps) {
          sums.add(args_, parameters.ahead(), words, planes, group & half_mask_);
          parameters.advance();
        }
      }
      weights.refill();
    }
  }

 private:
  const ForwardArguments& args_;
  PlaneSlice<T> planes_;
  std::uint32_t half_mask_;
};

}  // namespace mpq::kernels

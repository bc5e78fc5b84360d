#pragma once
// One or two batch rows as fixed-point numbers, multiplied as integers: what the ways to do that
// (decode_planes.cuh, decode_digits.cuh, decode_selection.cuh) have in common. Grid, ring of
// weights and reduction are those of decode.cuh.

#include <cstdint>

#include "arguments.hpp"
#include "decode_activations.cuh"
#include "decode_parameters.cuh"
#include "decode_reduction.cuh"
#include "decode_storage.cuh"
#include "decode_streams.cuh"
#include "dequant.cuh"
#include "mpq/kernel_shape.hpp"
#include "mpq/layout.hpp"
#include "ptx/memory.cuh"

namespace mpq::kernels {

/// A row's part of K as fixed-point numbers, value * 2^raise, below 2^bits.
template <DType T>
struct FixedPoint {
  static constexpr int kMantissaBits = Half2Of<T>::kMantissaBits, kBias = Half2Of<T>::kBias;
  static constexpr int kMostExponent = T == DType::f16 ? 31 : 255;  // infinities and NaN
  static constexpr int kMostFactor = 100;                           // log2 of one float32 factor
  int raise = 0;
  bool finite = true;

  FixedPoint() = default;
  /// largest: the bits of the largest |x|.
  __device__ __forceinline__ FixedPoint(std::uint32_t largest, int bits) {
    const int exponent = static_cast<int>(largest >> kMantissaBits);
    raise = bits - 1 + kBias - max(exponent, 1);
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

/// Two neighbours of x, where they lie in shared memory.
template <DType T>
__device__ __forceinline__ float2 neighbours_of_x(const unsigned char* x) {
  // (bits_as of what is in memory would read it byte by byte.)
  const std::uint32_t word = *reinterpret_cast<const std::uint32_t*>(x);
  return to_float2<T>(bits_as<Pair<T>>(word));
}

/// The bits of the largest |x| of each row's columns [0, columns), by a warp; rows `pitch` bytes
/// apart, 16-byte aligned.
template <DType T, int kRows>
__device__ __forceinline__ void largest_magnitudes(const unsigned char* x, int pitch, int columns,
                                                   int lane, std::uint32_t (&largest)[kRows]) {
  Pair<T> most[kRows];
#pragma unroll
  for (int row = 0; row < kRows; ++row) most[row] = bits_as<Pair<T>>(0u);
#pragma unroll 1
  for (int column = 8 * lane; column < columns; column += 256) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const uint4 words = *reinterpret_cast<const uint4*>(x + row * pitch + 2 * column);
      const auto abs = [](std::uint32_t word) { return __habs2(bits_as<Pair<T>>(word)); };
      most[row] = __hmax2_nan(most[row], __hmax2_nan(__hmax2_nan(abs(words.x), abs(words.y)),
                                                     __hmax2_nan(abs(words.z), abs(words.w))));
    }
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const auto bits = bits_as<std::uint32_t>(most[row]);
    largest[row] = __reduce_max_sync(0xffffffffu, max(bits & 0xffffu, bits >> 16));
  }
}

/// Has a multiplier write kRows rows of x, from `row` on, of a warp's part of K, columns [first,
/// first + columns) of the slice, as fixed-point numbers: of `turns` warps that share the part each
/// does a share.
template <int kRows, DType T, class Multiplier>
__device__ __forceinline__ void write_rows(const ForwardArguments& args,
                                           const Multiplier& multiplier, const unsigned char* slice,
                                           int row, int first, int columns, int turn, int turns,
                                           int lane, typename Multiplier::Sums& sums) {
  std::uint32_t largest[kRows];
  largest_magnitudes<T>(slice + row * args.x_pitch + 2 * first, args.x_pitch, columns, lane,
                        largest);
  FixedPoint<T> fixed[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    fixed[i] = FixedPoint<T>(largest[i], Multiplier::kFixedBits);
    sums.set_row(row + i, fixed[i], lane);
  }
  multiplier.write(fixed, row, first, columns, turn, turns);
}

/// What a lane reads ahead.
template <class Weights, class Parameters>
struct Streams {
  Weights weights;
  Parameters parameters;
};

/// The CTA's work. Multiplier: x in the form that it multiplies, in shared memory behind x itself,
/// and how (DigitMultiplier, PlaneMultiplier, SelectionMultiplier); kWay: how its parameters come,
/// kScales: of which type, by a ring; kLeastRows, kMostRows: of x that it writes at a time.
template <int WBits, DType T, KernelConfig C, class Multiplier>
__device__ __forceinline__ void decode_fixed_point(const ForwardArguments& args,
                                                   DecodeStorage<C>& storage,
                                                   unsigned char* slice) {
  using Layout = KernelLayout<WBits>;
  constexpr int kUnitK = Layout::kAlignK;
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
  const unsigned thread = ptx::opaque(threadIdx.x);
  const int warp = static_cast<int>(thread / 32), lane = static_cast<int>(thread % 32);
  const int warps_n = 1 << args.warps_n_shift;
  const int warp_n = warp & (warps_n - 1), warp_k = warp >> args.warps_n_shift;
  const auto columns = static_cast<int>(static_cast<unsigned>(args.n_padded) / C.tile_n);
  const int first_column = static_cast<int>(blockIdx.x >> args.cluster_shift) << args.warps_n_shift;
  const int m0 = static_cast<int>(blockIdx.y) * args.tile_rows;
  const int rows = min(args.m - m0, args.tile_rows);
  const int begin = split.part_begin(0, warp_k), end = split.part_begin(0, warp_k + 1);
  Multiplier multiplier(args, slice, lane);
  constexpr bool kHolds = WBits > 1;  // with 1 bit ptxas makes planes more slowly then
  TileReduction<WBits, T, C, false, kHolds> reduction(args, storage, slice);
  const UnitRuns runs(begin, end, first_column + warp_n, args.column_stride, columns);
  constexpr int kUnitBlocks = kUnitK / Layout::kBlockK;
  const auto streams = [&] {
    constexpr ParameterWay kWay = Multiplier::kWay;
    if constexpr (kWay == ParameterWay::ring) {
      using Ring = ParameterRing<WBits, Multiplier::kScales, C, Multiplier::kHalves>;
      using Copier = typename Ring::Copier;
      unsigned char* ring = slice - (C.warps() - warp) * Ring::kBytes;
      return Streams<WeightStream<WBits, C, UnitRuns, kUnitBlocks, Copier>, Ring>{
          {args, storage.ring[warp], lane, runs, Copier(args, ring, runs, lane)}, {ring, lane}};
    } else if constexpr (kWay != ParameterWay::memory) {
      using Ring = GroupRing<WBits, Multiplier::kScales, C, kWay, Multiplier::kEnds>;
      using Copier = typename Ring::Copier;
      // Behind the inboxes.
      const int slots = 1 << args.slots_shift;
      unsigned char* ring = slice + decode_rows_bytes(C, WBits, slots, args.x_pitch) +
                            4 * decode_inbox_floats(C, slots, warps_n, 1 << args.cluster_shift) +
                            warp * Ring::bytes(args);
      return Streams<WeightStream<WBits, C, UnitRuns, kUnitBlocks, Copier>, Ring>{
          {args, storage.ring[warp], lane, runs, Copier(args, ring, runs, lane)},
          {args, ring, lane}};
    } else {
      return Streams<WeightStream<WBits, C, UnitRuns, kUnitBlocks>, UnitParameters<WBits, T>>{
          {args, storage.ring[warp], lane, runs},
          {args, runs, multiplier.columns_of_sum(), multiplier.halves(), lane}};
    }
  };
  auto [weights, parameters] = streams();
  reduction.begin();
  ptx::griddepcontrol_launch_dependents();
  // Whatever need not wait for x.
  multiplier.prepare();
  reduction.prepare(Multiplier::Sums::place(lane));
  if (args.programmatic && thread < 32) x.start(slice_begin * kUnitK, slice_columns);

  auto sums = multiplier.sums();
  const int part_first = (begin - slice_begin) * kUnitK;
  x.complete(slice_begin * kUnitK, slice_columns, !args.programmatic);
  // Two rows side by side: a warp waits for each instruction.
  const auto write = [&]<int kRows>(int row) {
    write_rows<kRows, T>(args, multiplier, slice, row, part_first, (end - begin) * kUnitK, warp_n,
                         warps_n, lane, sums);
  };
  if (Multiplier::kMostRows == 2 && (Multiplier::kLeastRows == 2 || rows == 2)) {
    if constexpr (Multiplier::kMostRows == 2) write.template operator()<2>(0);
  } else if constexpr (Multiplier::kLeastRows == 1) {
#pragma unroll 1
    for (int row = 0; row < rows; ++row) write.template operator()<1>(row);
  }
  __syncthreads();

#pragma unroll 1
  for (int column = first_column; column < columns; column += args.column_stride) {
    sums.clear_total();
    if (column + warp_n < columns) {
      multiplier.multiply(weights, parameters, part_first, end - begin, sums);
    }
    reduction.publish(sums);
  }
  reduction.finish();
  reduction.leave();
}

}  // namespace mpq::kernels

#pragma once
// Decode: few batch rows at the speed of reading the weights. y^T = W x^T with mma.m16n8k16, the
// weights as operand A. (One or two rows: decode_fixed_point.cuh.)
//
//   grid     clusters of CTAs, persistent over tiles of channels; a warp has kWarpN channels beside
//            those of warps_n - 1 others, and splits K with the CTA's other warps and the cluster
//   weights  every lane copies its own 16-byte words of a block into its own places of a ring
//            (cp.async) and reads them back itself, so the ring needs no barrier and no registers;
//            it runs on from tile to tile, and starts before the preceding kernel has ended
//   codes    enter the products as they lie in the word, masked: 16-bit floats below the smallest
//            normal number, which tensor cores multiply exactly (RawCodes)
//   x        the CTA's slice of K, once, as it is in memory (a bulk copy a row); operand B by
//            ldmatrix, raised by powers of two against the codes' smallness and position
//   scales   applied to the sums of a group in float32: y = sum_g s_g (sum_k q x - z_g sum_k x),
//            or + b_g sum_k x for affine zeros; the sums of x are products with ones
//   y        partial sums of the warps and then of the CTAs, added in a fixed order; the exchange
//            within the cluster overlaps the next tile

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "arguments.hpp"
#include "decode_activations.cuh"
#include "decode_digits.cuh"
#include "decode_planes.cuh"
#include "decode_reduction.cuh"
#include "decode_selection.cuh"
#include "decode_storage.cuh"
#include "decode_streams.cuh"
#include "decode_sums.cuh"
#include "group_parameters.cuh"
#include "mpq/kernel_shape.hpp"
#include "mpq/layout.hpp"
#include "ptx/cluster.cuh"
#include "ptx/memory.cuh"
#include "static_for.cuh"

namespace mpq::kernels {

/// k-steps that are one body of the main loop: as many as registers allow, for what surrounds them
/// costs issue slots, too.
template <int WBits, KernelConfig C>
constexpr int kSegmentSteps = std::min(KernelLayout<WBits>::kStepsPerBlock, C.tile_m > 8 ? 4 : 8);

/// The CTA's work. Groups are kGroupSteps k-steps or, if that is a segment, any number of segments.
/// kGeneral: affine zeros, scales that are not of the activations' type, or several chunks of K.
template <int WBits, DType T, KernelConfig C, int kGroupSteps, bool kGeneral>
__device__ __forceinline__ void decode_tiles(const ForwardArguments& args,
                                             DecodeStorage<C>& storage, unsigned char* slice) {
  using Layout = KernelLayout<WBits>;
  constexpr int kTiles = DecodeStorage<C>::kTiles, kTilesM = C.tile_m / 8;
  constexpr int kSteps = Layout::kStepsPerBlock;
  // A short one where the code of several groups does not fit into the registers.
  constexpr bool kBrief = kGroupSteps <= 2 && (kGeneral || kSteps > 4);
  constexpr int kSegment = kBrief ? 2 : std::max(kGroupSteps, std::min(kSteps, 4));
  constexpr int kSegments = kSteps / kSegment;  // of a block
  // A word is shifted when the codes that products take as they lie are used up.
  constexpr int kInPlace = RawCodes<WBits, T>::kInPlace;
  constexpr int kShiftedAt = (kSegment - 1) / kInPlace * kInPlace;  // last, within a segment
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int warp_n = warp & ((1 << args.warps_n_shift) - 1), warp_k = warp >> args.warps_n_shift;
  const auto columns = static_cast<int>(static_cast<unsigned>(args.n_padded) / C.tile_n);
  const int first_column = static_cast<int>(blockIdx.x >> args.cluster_shift) << args.warps_n_shift;
  const KSplit split{static_cast<int>(static_cast<unsigned>(args.k_padded) / Layout::kBlockK),
                     C.warps() >> args.warps_n_shift,
                     args.chunks,
                     1 << args.cluster_shift,
                     static_cast<int>(blockIdx.x & ((1u << args.cluster_shift) - 1)),
                     args.part};

  constexpr bool kAnew = kGeneral || kSegment > 4;  // no registers to spare
  constexpr bool kHolds = WBits == 8 && C.tile_m == 8 && !kAnew;
  ActivationSlice<C, kAnew> x(args, storage, slice);
  TileReduction<WBits, T, C, kAnew, kHolds> reduction(args, storage, slice);
  reduction.begin();
  const auto first_of = [&](int chunk) { return split.part_begin(chunk, 0) * Layout::kBlockK; };
  const auto columns_of = [&](int chunk) {
    return split.part_begin(chunk, split.warps) * Layout::kBlockK - first_of(chunk);
  };
  const auto start_x = [&](int chunk) {
    if (warp == 0) x.start(first_of(chunk), columns_of(chunk));
  };
  // x is the longest to wait for, unless the kernel before is to write it yet.
  if (!args.programmatic) start_x(0);
  using Runs = BlockRuns<kGeneral, !kGeneral && WBits >= 4>;  // with fewer bits registers end
  const Runs runs(split, warp_k, first_column + warp_n, args.column_stride, columns);
  WeightStream<WBits, C, Runs, 1> weights(args, storage.ring[warp], lane, runs);
  ParameterStream<WBits, T, kTiles, kGeneral, Runs> parameters(args, runs, lane / 4 * 8);
  DecodeAccumulator<WBits, T, C, kGeneral> sums;
  ptx::griddepcontrol_launch_dependents();
  reduction.prepare(decltype(sums)::place(lane));
  if (args.programmatic) start_x(0);

  const auto part_of_x = [&](int chunk, int part, int m) {
    const int first = split.part_begin(chunk, 0), begin = split.part_begin(chunk, part);
    return x.of_lane(lane, m) + (begin - first) * (Layout::kBlockK * 2);
  };
  const auto complete_x = [&](int chunk) {
    x.complete(first_of(chunk), columns_of(chunk));
    const int begin = split.part_begin(chunk, warp_k), end = split.part_begin(chunk, warp_k + 1);
    const unsigned char* part[kTilesM];
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) part[m] = part_of_x(chunk, warp_k, m);
    sums.set_scales_of_x(part, end - begin, lane);
  };
  complete_x(0);
#pragma unroll 1
  while (reduction.column() < columns) {
    sums.clear();
    const int chunks = kGeneral ? args.chunks : 1;
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      if (chunks > 1) {
        if (chunk > 0 || !reduction.at_first()) {
          ptx::fence_proxy_async();  // what was written there may be copied to
          __syncthreads();           // the chunk before has been read
          start_x(chunk);
          complete_x(chunk);
        }
        sums.resume();
      }
      const int part = kAnew ? ptx::opaque(warp_k) : warp_k;
      const int begin = split.part_begin(chunk, part), end = split.part_begin(chunk, part + 1);
      if (begin != end && reduction.column() + warp_n < columns) {
        const unsigned char* pair[kTilesM];
#pragma unroll
        for (int m = 0; m < kTilesM; ++m) pair[m] = part_of_x(chunk, part, m);
        int step = begin * kSteps;
        const int last = end * kSteps;
        uint4 words[kTiles];
        const auto shift_words = [&](int bits) {
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
            words[t].x >>= bits, words[t].y >>= bits, words[t].z >>= bits, words[t].w >>= bits;
          }
        };
        const auto multiply_segment = [&] {
          if (kSegments == 1 || step % kSteps == 0) {
            weights.take(words);
          } else {
            shift_words(WBits * (kSegment - kShiftedAt));
          }
          static_for<kSegment / 2>([&]<int kPair>() {
            std::uint32_t b[kTilesM][4];
#pragma unroll
            for (int m = 0; m < kTilesM; ++m) {
              ptx::ldmatrix_x4(b[m], pair[m]);
              pair[m] += 64;
            }
            static_for<2>([&]<int kHalf>() {
              constexpr int kStep = 2 * kPair + kHalf;
              if constexpr (kGroupSteps < kSegment && kStep % kGroupSteps == 0) {
                sums.begin_group(parameters);
              }
              std::uint32_t half[kTilesM][2];
#pragma unroll
              for (int m = 0; m < kTilesM; ++m) {
                half[m][0] = b[m][2 * kHalf], half[m][1] = b[m][2 * kHalf + 1];
              }
              constexpr int kPosition = kStep % kInPlace;
              if constexpr (kStep > 0 && kPosition == 0) shift_words(WBits * kInPlace);
              sums.template multiply<kPosition>(words, half);
              if constexpr (kGroupSteps < kSegment && (kStep + 1) % kGroupSteps == 0) {
                sums.end_group(args, parameters);
              }
            });
          });
          step += kSegment;
          if (kSegments == 1 || step % kSteps == 0) weights.refill();
        };
#pragma unroll 1
        do {
          if constexpr (kGroupSteps == kSegment) {
            const int shift = args.group_shift - 4;
            static_assert(Layout::kStepK == 1 << 4);
            const int stop = min(last, ((step >> shift) + 1) << shift);
            sums.begin_group(parameters);
#pragma unroll 1
            do multiply_segment();
            while (step < stop);
            sums.end_group(args, parameters);
          } else {
            multiply_segment();
          }
        } while (step < last);
      }
      sums.finish();
    }
    reduction.publish(sums);
  }
  reduction.finish();
  reduction.leave();
}

/// One row of kKernelTable; its instructions follow from its tile. Grid: x = clusters * CTAs of a
/// cluster, y = tiles of batch rows.
template <int WBits, DType T, int Row>
__global__ void __launch_bounds__(kKernelTable[Row].threads(), kKernelTable[Row].ctas_per_sm)
    decode(const __grid_constant__ ForwardArguments args) {
  constexpr KernelConfig C = kKernelTable[Row];
  static_assert(C.family == KernelFamily::decode);
  static_assert(sizeof(DecodeStorage<C>) == decode_storage_bytes(C));
  unsigned char* shared = ptx::dynamic_shared_memory_held();
  auto& storage = *reinterpret_cast<DecodeStorage<C>*>(shared);
  unsigned char* slice = shared + sizeof(DecodeStorage<C>) + decode_parameter_bytes(C, WBits);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr bool kHasCode = has_sm90a_code(C, WBits);
#else
  constexpr bool kHasCode = true;
#endif
  const bool general = args.zeros == nullptr || args.scales_are_bf16 != (T == DType::bf16) ||
                       (!multiplies_fixed_point(C) && args.chunks > 1);
  if constexpr (!kHasCode) {
    return;
  } else if constexpr (multiplies_fixed_point(C)) {
    const auto run = [&]<class Multiplier>() {
      decode_fixed_point<WBits, T, C, Multiplier>(args, storage, slice);
    };
    constexpr int kAll = DigitShape<WBits>::kUnitProducts, kFew = WBits == 8 ? 1 : 2;
    using Layout = KernelLayout<WBits>;
    // Whether groups are of so many columns or more.
    const auto has_groups = [&]<int kColumns>() { return args.group_shift >= kLog2<kColumns>; };
    // Whether so many products are of one group: of 32 columns each, or 16 where a block has two.
    const auto are_of_a_group = [&]<int kProducts>() {
      return has_groups.template operator()<32 * kProducts>() ||
             (has_groups.template operator()<16 * kProducts>() &&
              !has_groups.template operator()<Layout::kBlockK>());
    };
    const int rows = 1 << args.slots_shift;
    if constexpr (WBits == 1) {
      if (multiplies_selections(C, WBits, rows)) {
        if (!general) {
          run.template operator()<SelectionMultiplier<T, C, true>>();
        } else {
          run.template operator()<SelectionMultiplier<T, C, false>>();
        }
        return;
      }
      if (multiplies_planes(C, WBits, 1 << min(args.group_shift, 30), rows)) {
        if (!general && has_groups.template operator()<PlaneShape::kSumK>()) {
          run.template operator()<PlaneMultiplier<T, C, true>>();
        } else {
          run.template operator()<PlaneMultiplier<T, C, false>>();
        }
        return;
      }
    } else if (!general && has_groups.template operator()<Layout::kAlignK>()) {
      run.template operator()<DigitMultiplier<WBits, T, C, kAll, ParameterWay::ring>>();
      return;
    }
    if constexpr (WBits == 4 || WBits == 2) {
      // Halves of a block can have groups of their own.
      constexpr int kUnitSum = WBits == 4 ? Layout::kAlignK : Layout::kAlignK / 2;
      // (Packed statistics are of the activations' type.)
      const bool affine =
          args.affine_zeros != nullptr && args.scales_are_bf16 == (T == DType::bf16);
      if (args.statistics != nullptr && !has_groups.template operator()<kUnitSum>()) {
        run.template operator()<DigitMultiplier<WBits, T, C, kFew, ParameterWay::packed_ring>>();
        return;
      }
      if (affine) {
        const auto run_affine = [&]<ParameterWay kWay>() {
          if (has_groups.template operator()<kUnitSum>()) {
            run.template operator()<DigitMultiplier<WBits, T, C, kAll, kWay>>();
          } else {
            run.template operator()<DigitMultiplier<WBits, T, C, kFew, kWay>>();
          }
        };
        if (affine_zero_bytes<WBits>(args) == 2) {
          run_affine.template operator()<ParameterWay::narrow_ring>();
        } else {
          run_affine.template operator()<ParameterWay::affine_ring>();
        }
        return;
      }
      // (Left to itself the compiler calls it where it is long, and uniform registers end there.)
      const auto run_small = [&]<DType kScales>() __attribute__((always_inline)) {
        if (kUnitSum < Layout::kAlignK && has_groups.template operator()<kUnitSum>()) {
          if constexpr (kUnitSum < Layout::kAlignK) {
            run.template
            operator()<DigitMultiplier<WBits, T, C, kAll, ParameterWay::small_ring, kScales>>();
          }
        } else {
          run.template
          operator()<DigitMultiplier<WBits, T, C, kFew, ParameterWay::small_ring, kScales>>();
        }
      };
      if (!general) return run_small.template operator()<T>();
      if constexpr (T == DType::bf16) {
        if (args.zeros != nullptr && !has_groups.template operator()<Layout::kAlignK>()) {
          return run_small.template operator()<DType::f16>();
        }
      }
    }
    if constexpr (T == DType::bf16 && WBits > 1) {
      // (bfloat16 scales under float16 are few: prepare_params.)
      if (args.zeros != nullptr && !args.scales_are_bf16 &&
          has_groups.template operator()<Layout::kAlignK>()) {
        return run.template
        operator()<DigitMultiplier<WBits, T, C, kAll, ParameterWay::ring, DType::f16>>();
      }
    }
    if (WBits != 1 && are_of_a_group.template operator()<kAll>()) {
      run.template operator()<DigitMultiplier<WBits, T, C, kAll, ParameterWay::memory>>();
      return;
    }
    // (As are_of_a_group asks, of every group that a kernel like this takes.)
    static_assert(!takes_groups(C, kLeastGroup / 2) && 16 * kFew <= kLeastGroup &&
                  32 * kFew <= Layout::kBlockK);
    run.template operator()<DigitMultiplier<WBits, T, C, kFew, ParameterWay::memory>>();
  } else {
    constexpr int kSegment = kSegmentSteps<WBits, C>;
    constexpr int kShort = std::min(KernelLayout<WBits>::kStepsPerBlock, 4);
    const auto run = [&]<int kGroupSteps, bool kGeneral>() {
      decode_tiles<WBits, T, C, kGroupSteps, kGeneral>(args, storage, slice);
    };
    constexpr int kSegmentShift = kLog2<16 * kSegment>, kShortShift = kLog2<16 * kShort>;
    if (general && args.group_shift >= kShortShift) {
      run.template operator()<kShort, true>();
    } else if (args.group_shift >= kSegmentShift) {
      run.template operator()<kSegment, false>();
    } else if (kSegment > kShort && args.group_shift >= kShortShift) {
      run.template operator()<kShort, false>();
    } else if (kShort == 4 && args.group_shift == 5) {
      if (general) {
        run.template operator()<2, true>();
      } else {
        run.template operator()<2, false>();
      }
    } else if constexpr (takes_groups(C, 16)) {  // never mind the time
      run.template operator()<1, true>();
    }
  }
}

}  // namespace mpq::kernels

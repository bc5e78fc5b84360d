#pragma once
// Decode: few batch rows at the speed of reading the weights. y^T = W x^T with mma.m16n8k16, the
// weights as operand A. (One or two rows: decode_digits.cuh, in the same frame.)
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

#include <cstdint>

#include "arguments.hpp"
#include "decode_activations.cuh"
#include "decode_digits.cuh"
#include "decode_reduction.cuh"
#include "decode_storage.cuh"
#include "decode_streams.cuh"
#include "decode_sums.cuh"
#include "group_parameters.cuh"
#include "mpq/layout.hpp"
#include "mpq/plan.hpp"
#include "ptx/cluster.cuh"
#include "ptx/memory.cuh"

namespace mpq::kernels {

/// k-steps that are one body of the main loop.
template <int WBits>
constexpr int kSegmentSteps = KernelLayout<WBits>::kStepsPerBlock < 4 ? 2 : 4;

/// The CTA's work. Groups are kGroupSteps k-steps or, if that is a segment, any number of segments.
/// kGeneral: affine zeros, scales that are not of the activations' type, or several chunks of K.
template <int WBits, DType T, KernelConfig C, int kGroupSteps, bool kGeneral>
__device__ __forceinline__ void decode_tiles(const ForwardArguments& args,
                                             DecodeStorage<C>& storage, unsigned char* slice) {
  using Layout = KernelLayout<WBits>;
  constexpr int kTiles = DecodeStorage<C>::kTiles, kTilesM = C.tile_m / 8;
  constexpr int kSteps = Layout::kStepsPerBlock;
  // A short one where the code of several groups does not fit into the registers.
  constexpr int kSegment = kGeneral && kGroupSteps <= 2 ? 2 : kSegmentSteps<WBits>;
  constexpr int kSegments = kSteps / kSegment;  // of a block
  constexpr int kSegmentShift = kSegment == 4 ? 6 : 5;
  static_assert(kSegment * Layout::kStepK == 1 << kSegmentShift);
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

  ActivationSlice<C, kGeneral> x(args, storage, slice);
  TileReduction<T, C, kGeneral> reduction(args, storage, slice);
  const auto first_of = [&](int chunk) { return split.part_begin(chunk, 0) * Layout::kBlockK; };
  const auto columns_of = [&](int chunk) {
    return split.part_begin(chunk, split.warps) * Layout::kBlockK - first_of(chunk);
  };
  const auto start_x = [&](int chunk) {
    if (warp == 0) {
      ptx::griddepcontrol_wait();
      x.start(first_of(chunk), columns_of(chunk));
    }
  };
  // x is the longest to wait for, unless the kernel before is to write it yet.
  if (!args.programmatic) start_x(0);
  const BlockRuns<kGeneral> runs(split, warp_k, first_column + warp_n, args.column_stride, columns);
  WeightStream<WBits, C, BlockRuns<kGeneral>, 1> weights(args, storage.ring[warp], lane, runs);
  ParameterStream<WBits, T, kTiles, kGeneral> parameters(args, runs, lane / 4 * 8);
  ptx::griddepcontrol_launch_dependents();
  if (args.programmatic) start_x(0);

  DecodeAccumulator<WBits, T, C, kGeneral> sums;
  const auto part_of_x = [&](int chunk, int m) {
    const int first = split.part_begin(chunk, 0), begin = split.part_begin(chunk, warp_k);
    return x.of_lane(lane, m) + (begin - first) * (Layout::kBlockK * 2);
  };
  const auto complete_x = [&](int chunk) {
    ptx::griddepcontrol_wait();
    x.complete(first_of(chunk), columns_of(chunk));
    const int begin = split.part_begin(chunk, warp_k), end = split.part_begin(chunk, warp_k + 1);
    const unsigned char* part[kTilesM];
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) part[m] = part_of_x(chunk, m);
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
      const int begin = split.part_begin(chunk, warp_k), end = split.part_begin(chunk, warp_k + 1);
      if (begin != end && reduction.column() + warp_n < columns) {
        const unsigned char* pair[kTilesM];
#pragma unroll
        for (int m = 0; m < kTilesM; ++m) pair[m] = part_of_x(chunk, m);
        int segment = begin * kSegments;
        const int last = end * kSegments;
        uint4 words[kTiles];
        const auto multiply_segment = [&] {
          if (segment % kSegments == 0) {
            weights.take(words);
          } else {
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
              words[t].x >>= WBits * kSegment, words[t].y >>= WBits * kSegment;
              words[t].z >>= WBits * kSegment, words[t].w >>= WBits * kSegment;
            }
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
              sums.template multiply<kStep>(words, half);
              if constexpr (kGroupSteps < kSegment && (kStep + 1) % kGroupSteps == 0) {
                sums.end_group(args, parameters);
              }
            });
          });
          if (++segment % kSegments == 0) weights.refill();
        };
#pragma unroll 1
        do {
          if constexpr (kGroupSteps == kSegment) {
            const int shift = args.group_shift - kSegmentShift;
            const int stop = min(last, ((segment >> shift) + 1) << shift);
            sums.begin_group(parameters);
#pragma unroll 1
            do multiply_segment();
            while (segment < stop);
            sums.end_group(args, parameters);
          } else {
            multiply_segment();
          }
        } while (segment < last);
      }
      sums.finish();
    }
    reduction.publish([&](auto& target, int of_lane) { sums.store(target, of_lane); });
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
  unsigned char* shared = ptx::dynamic_shared_memory();
  auto& storage = *reinterpret_cast<DecodeStorage<C>*>(shared);
  unsigned char* slice = shared + sizeof(DecodeStorage<C>);
  const bool general =
      args.zeros == nullptr || args.scales_are_bf16 != (T == DType::bf16) || args.chunks > 1;
  if constexpr (multiplies_digits(C)) {
    constexpr int kAll = DigitShape<WBits>::kUnitProducts, kFew = WBits == 8 ? 1 : 2;
    const int group = 1 << min(args.group_shift, 30);
    const int shared = group < KernelLayout<WBits>::kBlockK ? 16 : 32;  // columns of a product
    if (group >= shared * kAll) {
      decode_digits<WBits, T, C, kAll>(args, storage, slice);
    } else if (group >= shared * kFew) {
      decode_digits<WBits, T, C, kFew>(args, storage, slice);
    } else if constexpr (kFew > 1) {  // groups of 16 columns; never mind the time
      decode_digits<WBits, T, C, 1>(args, storage, slice);
    }
  } else {
    constexpr int kSegment = kSegmentSteps<WBits>;
    if (args.group_shift >= (kSegment == 4 ? 6 : 5)) {
      if (general) {
        decode_tiles<WBits, T, C, kSegment, true>(args, storage, slice);
      } else {
        decode_tiles<WBits, T, C, kSegment, false>(args, storage, slice);
      }
    } else if (kSegment == 4 && args.group_shift == 5) {
      if (general) {
        decode_tiles<WBits, T, C, 2, true>(args, storage, slice);
      } else {
        decode_tiles<WBits, T, C, 2, false>(args, storage, slice);
      }
    } else {  // groups of 16 columns; never mind the time
      decode_tiles<WBits, T, C, 1, true>(args, storage, slice);
    }
  }
}

}  // namespace mpq::kernels

#pragma once
// Prefill on Hopper: many batch rows, y^T = W x^T on wgmma. Weights are operand A from registers,
// dequantised there to the activations' type (one rounding of s * (q - z) or s * q + b, or nearly:
// general_weights.cuh); x is operand B, brought by TMA into swizzled shared memory. With up to 32
// rows and 4 bits operand A is codes, raised (raised_codes.cuh), and scales and zeros are for the
// sums of a group; with 8 rows on mma.sync, whose products are short enough.
//
// A CTA is a producer warpgroup, whose warps have a ring in shared memory each to fill, and two to
// four consumer warpgroups, each with its share of the tile's channels and all of its batch rows. K
// goes by in chunks of weights (prefill_chunk_k) and stages of x; where stages are long they are
// the same, and one ring holds both. A consumer turns a group of steps (16 columns each) of codes
// into fragments while the groups before it are multiplied: one group of two steps where products
// are short, else two groups of one. (With three ptxas 13.0 serialises them all, warning C7513.)
//
//   cluster  `multicast` CTAs side by side along N share x: each fetches a part for all; times
//            `split` slices of K, whose sums are sent through distributed shared memory to the
//            CTA that adds them, in the order of the slices, and writes that part of y
//   phases   warpgroups of a CTA can split K, too: every other stage each, or every fourth
//   pairs    with few rows two CTAs of two consumers can share a multiprocessor, so that what
//            nothing hides in one is beside the other's products
//   grid     clusters walk over the tiles, batch tiles of a group first, so that a group's x stays
//            in L2 while all of W passes; where K is split, a cluster has one tile
//   y        a CTA that has tile after tile leaves y in shared memory, from where TMA writes it
//            while the next tile is multiplied

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <type_traits>

#include "mpq/kernel_shape.hpp"
#include "prefill_sm90_consumer.cuh"
#include "prefill_sm90_parts.cuh"
#include "prefill_sm90_producer.cuh"
#include "prefill_sm90_raised.cuh"
#include "prefill_sm90_raised_wgmma.cuh"
#include "ptx/cluster.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"

namespace mpq::kernels {

/// Asks for the tensor maps and makes the mbarriers of the rings, a slot's by each of the
/// consumers' warps in turn: one takes 20 cycles.
template <int WBits, KernelConfig C, bool kGeneral>
__device__ __forceinline__ void prepare_rings(const HopperPrefillArguments& args,
                                              HopperPrefillStorage<WBits, C, kGeneral>& storage,
                                              int warp) {
  using Shape = HopperPrefillShape<WBits, C>;
  using Storage = HopperPrefillStorage<WBits, C, kGeneral>;
  constexpr int kWarps = 4 * Shape::kConsumers, kEmptied = 4 * Shape::kConsumersN;
  const int receivers = Shape::kFewRows ? 1 : args.multicast;
  if (!ptx::elect_one()) return;
  // Tensor maps, a warp each, in the order in which they are needed.
  if (warp == 0) ptx::prefetch_tensormap(&args.weights);
  if (Shape::kParameterBoxes && warp == 1) ptx::prefetch_tensormap(&args.scales);
  if (Shape::kParameterBoxes && warp == 2) ptx::prefetch_tensormap(&args.zeros);
  if (warp == 3) ptx::prefetch_tensormap(&args.x);
  if (Shape::kStoresByTma && args.y_by_pieces && warp == 4) ptx::prefetch_tensormap(&args.y);
#pragma unroll 1
  for (int slot = warp; slot < Storage::kStages; slot += kWarps) {
    ptx::mbarrier_init(&storage.x_full[slot], Shape::kOneRing && !Shape::kRaised ? 3 : 2);
    ptx::mbarrier_init(&storage.x_empty[slot], kEmptied * receivers);
    if (Shape::kRaised) ptx::mbarrier_init(&storage.x_summed[slot], 1);
  }
#pragma unroll 1
  for (int slot = warp; !Shape::kOneRing && slot < Storage::kWeightStages; slot += kWarps) {
    ptx::mbarrier_init(&storage.weights_full[slot], 1);
    ptx::mbarrier_init(&storage.weights_empty[slot], kEmptied);
  }
  ptx::fence_mbarrier_init();
}

template <int WBits, DType T, KernelConfig C, bool kGeneral>
__device__ __forceinline__ void produce(const HopperPrefillArguments& args,
                                        HopperPrefillStorage<WBits, C, kGeneral>& storage) {
  PrefillProducer<WBits, T, C, kGeneral>(args, storage).run();
  __syncwarp();
  if (args.split > 1) {  // reduce() meets in the cluster's barrier
    ptx::barrier_cluster_arrive_relaxed();
    ptx::barrier_cluster_wait();
  }
}

template <int WBits, DType T, KernelConfig C, Dequantising kWay>
__device__ __forceinline__ void consume(
    const HopperPrefillArguments& args,
    HopperPrefillStorage<WBits, C, kWay == Dequantising::general>& storage, int warpgroup) {
  constexpr bool kGeneral = kWay == Dequantising::general;
  if (!args.followed) ptx::griddepcontrol_launch_dependents();
  if (!args.follows) ptx::griddepcontrol_wait();  // the predecessor may still read y
  if (args.followed) ptx::griddepcontrol_launch_dependents();
  using Shape = HopperPrefillShape<WBits, C>;
  TileWalk<WBits, C> tile(args);
  constexpr bool kRaised = Shape::kRaised;
  using Consumer =
      std::conditional_t<!kRaised, PrefillConsumer<WBits, T, C, kWay>,
                         std::conditional_t<C.tile_m == 8, RaisedConsumer<WBits, T, C, kGeneral>,
                                            RaisedWgmmaConsumer<WBits, T, C, kGeneral>>>;
  Consumer consumer(args, storage, warpgroup, tile);
  if constexpr (Shape::kForgetsTile) {
    for (int number = TileWalk<WBits, C>::first(args);; number += TileWalk<WBits, C>::step()) {
      if (!TileWalk<WBits, C>(args, number).valid()) break;
      consumer.multiply(TileWalk<WBits, C>(args, number));
      if (args.exchanges) consumer.reduce();
      consumer.template store<false>(TileWalk<WBits, C>(args, ptx::opaque(number)));
      if (args.exchanges) break;  // one tile
    }
  } else if constexpr (kRaised) {  // one body, where registers are short
    for (; tile.valid(); tile.next()) {
      consumer.multiply(tile);
      if (args.exchanges) consumer.reduce();
      consumer.template store<false>(tile);
      if (args.exchanges) break;  // one tile
    }
  } else if constexpr (!Shape::kFewRows && kGeneral) {
    // One body here, too: up to one per cent slower, and much less code.
    while (tile.valid()) {
      consumer.multiply(tile);
      if (args.exchanges) {
        consumer.reduce();
        consumer.template store<true>(tile);
        break;  // one tile
      }
      const TileWalk<WBits, C> multiplied = tile;
      tile.next();
      consumer.template store<false>(multiplied);
    }
  } else if (args.exchanges) {
    consumer.multiply(tile);
    consumer.reduce();
    consumer.template store<true>(tile);
  } else {
    while (tile.valid()) {
      consumer.multiply(tile);
      const TileWalk<WBits, C> multiplied = tile;
      tile.next();  // divides, beside what follows
      consumer.template store<false>(multiplied);
    }
  }
  consumer.finish();
}

/// One row of kKernelTable.
template <int WBits, DType T, int Row, Dequantising kWay>
__global__ void __launch_bounds__(HopperPrefillShape<WBits, kKernelTable[Row]>::kThreads,
                                  kKernelTable[Row].ctas_per_sm)
    prefill_sm90(const __grid_constant__ HopperPrefillArguments args) {
#if MPQ_HAS_WGMMA
  constexpr KernelConfig C = kKernelTable[Row];
  constexpr bool kGeneral = kWay == Dequantising::general;
  using Shape = HopperPrefillShape<WBits, C>;
  unsigned char* shared = ptx::dynamic_shared_memory_held();
  auto& storage = *reinterpret_cast<HopperPrefillStorage<WBits, C, kGeneral>*>(shared);
  // The same for all lanes of a warp, and known to be.
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 32), 0);
  const int warpgroup = warp / 4;
  if (warpgroup != 0) prepare_rings<WBits, C, kGeneral>(args, storage, warp - 4);
  ptx::fetch_arguments<offsetof(HopperPrefillArguments, x)>(args);
  __syncwarp();
  if (warpgroup == 0) {
    ptx::setmaxnreg_dec<Shape::kProducerRegisters>();
    produce<WBits, T, C, kGeneral>(args, storage);
  } else {
    start<WBits, C, kConsumersStart>(args);
    ptx::setmaxnreg_inc<Shape::kConsumerRegisters>();
    consume<WBits, T, C, kWay>(args, storage, warpgroup - 1);
  }
  // Who waits for this launch waits for the one before, too.
  if (args.follows) ptx::griddepcontrol_wait();
  if (args.multicast > 1) {  // neighbours may still arrive at barriers here
    __syncwarp();
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
  }
#endif
}

}  // namespace mpq::kernels

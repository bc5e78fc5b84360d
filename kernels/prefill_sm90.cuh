#pragma once
// Prefill on Hopper: many batch rows, y^T = W x^T on wgmma. Weights are operand A from registers,
// dequantised there to the activations' type (one rounding of s * (q - z) or s * q + b); x is
// operand B, brought by TMA into swizzled shared memory. With up to 32 rows and 4 bits operand A is
// codes, raised (raised_codes.cuh), and scales and zeros are for the sums of a group; with 8 rows
// on mma.sync, whose products are short enough.
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
//   phases   warpgroups of a CTA can split K, too: every other stage each
//   pairs    with few rows two CTAs of two consumers can share a multiprocessor, so that what
//            nothing hides in one is beside the other's products
//   grid     clusters walk over the tiles, batch tiles of a group first, so that a group's x stays
//            in L2 while all of W passes; where K is split, a cluster has one tile
//   y        a CTA that has tile after tile leaves y in shared memory, from where TMA writes it
//            while the next tile is multiplied

#include <cuda.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "mpq/plan.hpp"
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

/// The first lane of each warp of the producer has a share, for it takes a while.
template <int WBits, KernelConfig C, bool kGeneral>
__device__ __forceinline__ void initialise_barriers(
    const HopperPrefillArguments& args, HopperPrefillStorage<WBits, C, kGeneral>& storage) {
  using Shape = HopperPrefillShape<WBits, C>;
  using Storage = HopperPrefillStorage<WBits, C, kGeneral>;
  constexpr int kConsumerWarps = 4 * Shape::kConsumersN;
  const auto thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (auto& full : storage.x_full) {
      ptx::mbarrier_init(&full, Shape::kOneRing && !Shape::kRaised ? 3 : 2);  // who brings what
    }
  } else if (thread == 32) {
    for (auto& empty : storage.x_empty) ptx::mbarrier_init(&empty, kConsumerWarps * args.multicast);
  } else if (thread == 64) {
    for (int i = 0; Shape::kRaised && i < Storage::kStages; ++i) {
      ptx::mbarrier_init(&storage.x_summed[i], 1);
    }
    for (int i = 0; !Shape::kOneRing && i < Storage::kWeightStages; ++i) {
      ptx::mbarrier_init(&storage.weights_full[i], 1);
      ptx::mbarrier_init(&storage.weights_empty[i], kConsumerWarps);
    }
  } else if (thread == 96) {
    ptx::prefetch_tensormap(&args.x);
    ptx::prefetch_tensormap(&args.weights);
    if (Shape::kStoresByTma && args.y_by_pieces) ptx::prefetch_tensormap(&args.y);
    ptx::mbarrier_init(&storage.sums_arrived, 1);
  } else {
    return;
  }
  ptx::fence_mbarrier_init();
  if (thread == 96 && args.split > 1) {  // once: the cluster has one tile
    const int slice = slice_of_rank(args, ptx::cluster_rank());
    ptx::mbarrier_arrive_expect_tx(&storage.sums_arrived, Storage::inbox_bytes(args, slice));
  }
}

template <int WBits, DType T, KernelConfig C, bool kGeneral>
__device__ __forceinline__ void produce(const HopperPrefillArguments& args,
                                        HopperPrefillStorage<WBits, C, kGeneral>& storage) {
  PrefillProducer<WBits, T, C, kGeneral>(args, storage).run();
  if (args.split > 1) {  // reduce() meets in the cluster's barrier
    ptx::barrier_cluster_arrive_relaxed();
    ptx::barrier_cluster_wait();
  }
}

template <int WBits, DType T, KernelConfig C, bool kGeneral>
__device__ __forceinline__ void consume(const HopperPrefillArguments& args,
                                        HopperPrefillStorage<WBits, C, kGeneral>& storage,
                                        int warpgroup) {
  if (!args.follows) ptx::griddepcontrol_wait();  // the predecessor may still read y
  if (args.followed) ptx::griddepcontrol_launch_dependents();
  TileWalk<WBits, C> tile(args);
  using Shape = HopperPrefillShape<WBits, C>;
  constexpr bool kRaised = Shape::kRaised;
  using Consumer =
      std::conditional_t<!kRaised, PrefillConsumer<WBits, T, C, kGeneral>,
                         std::conditional_t<C.tile_m == 8, RaisedConsumer<WBits, T, C, kGeneral>,
                                            RaisedWgmmaConsumer<WBits, T, C, kGeneral>>>;
  Consumer consumer(args, storage, warpgroup, tile);
  if constexpr (Shape::kForgetsTile) {
    for (int number = ptx::cluster_index();; number += ptx::cluster_count()) {
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
template <int WBits, DType T, int Row, bool kGeneral>
__global__ void __launch_bounds__(HopperPrefillShape<WBits, kKernelTable[Row]>::kThreads,
                                  kKernelTable[Row].ctas_per_sm)
    prefill_sm90(const __grid_constant__ HopperPrefillArguments args) {
#if MPQ_HAS_WGMMA
  constexpr KernelConfig C = kKernelTable[Row];
  unsigned char* shared = ptx::dynamic_shared_memory();
  auto& storage = *reinterpret_cast<HopperPrefillStorage<WBits, C, kGeneral>*>(shared);
  // The same for all lanes of a warp, and known to be.
  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);

  initialise_barriers<WBits, C, kGeneral>(args, storage);
  __syncthreads();
  if (args.multicast > 1) {  // neighbours write here
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
  }
  if (!args.followed) ptx::griddepcontrol_launch_dependents();

  using Shape = HopperPrefillShape<WBits, C>;
  if (warpgroup == 0) {
    ptx::setmaxnreg_dec<Shape::kProducerRegisters>();
    produce<WBits, T, C, kGeneral>(args, storage);
  } else {
    ptx::setmaxnreg_inc<Shape::kConsumerRegisters>();
    consume<WBits, T, C, kGeneral>(args, storage, warpgroup - 1);
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

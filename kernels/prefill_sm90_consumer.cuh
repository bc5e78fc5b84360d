#pragma once
// The warpgroups of the Hopper prefill kernel that dequantise, multiply and write y.

#include <cstdint>
#include <type_traits>

#include "byte_weights.cuh"
#include "group_parameters.cuh"
#include "prefill_sm90_parts.cuh"
#include "ptx/cluster.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"
#include "statistics.cuh"

namespace mpq::kernels {

/// A warpgroup's channels of the tile: kTiles times 64.
template <int WBits, DType T, KernelConfig C, bool kGeneral>
class PrefillConsumer {
 public:
  using Shape = HopperPrefillShape<WBits, C>;
  using Storage = HopperPrefillStorage<WBits, C, kGeneral>;
  using Layout = typename Shape::Layout;
  static constexpr int kTiles = Shape::kTiles;

  __device__ __forceinline__ PrefillConsumer(const HopperPrefillArguments& args, Storage& storage,
                                             int warpgroup, const TileWalk<WBits, C>& first)
      : args_(args.forward),
        cluster_(args),
        storage_(storage),
        warpgroup_(warpgroup),
        column_(Shape::kPhases == 1 ? warpgroup : warpgroup % Shape::kConsumersN),
        phase_(Shape::kPhases == 1 ? 0 : warpgroup / Shape::kConsumersN),
        warp_(static_cast<int>(threadIdx.x) / 32 % 4),
        lane_(static_cast<int>(threadIdx.x) % 32),
        leader_(first.leader),
        member_(first.member),
        slice_(first.slice),
        x_descriptor_(ptx::matrix_descriptor_swizzle_128b(storage.rings.x[0])),
        group_mask_((1u << args.forward.group_shift) - 1u),
        small_groups_(group_mask_ < Shape::kStageK - 1) {
    x_cursor_.slot = phase_;
    if (kStaggers && first.repeats()) {
      constexpr int kLead = 2;  // stages
      if (warpgroup_ == 0) {
        lead_chunk_ = min(kLead / Shape::kStagesPerChunk, first.chunk_count - 1);
      } else {
        ptx::bar_sync(kStaggerBarrier, 128 * Shape::kConsumers);
      }
    }
  }

  /// sums_ = W x^T over this warpgroup's stages of the tile's slice of K.
  __device__ __forceinline__ void multiply(const TileWalk<WBits, C>& tile) {
    std::uint32_t k = static_cast<std::uint32_t>(tile.chunk_begin + phase_) * Shape::kChunkK;
    clear_sums();
    const int chunks = Shape::kPhases == 1
                           ? tile.chunk_count
                           : (tile.chunk_count - phase_ + Shape::kPhases - 1) / Shape::kPhases;
    if (Shape::kPhases > 1 && chunks == 0) return;
    begin_chunk();
    begin_stage();
    dequantise_group<0>(0, true, k);
    int previous = -1;
    hold_sums();
    for (int chunk = 0; chunk < chunks; ++chunk) {
#pragma unroll
      for (int s = 0; s < Shape::kStagesPerChunk; ++s) {
        const int slot = x_cursor_.slot;
        multiply_stage<0>(s, slot, previous, k);
        previous = slot;
        x_cursor_.advance();
        k += Shape::kStageK * Shape::kPhases;
        if (s + 1 < Shape::kStagesPerChunk) {
          begin_stage();
          dequantise_group<0>(s + 1, false, k);
        } else if (chunk + 1 < chunks) {
          begin_chunk();
          begin_stage();
          dequantise_group<0>(0, false, k);
        }
      }
      if constexpr (kStaggers) {
        if (chunk == lead_chunk_) {
          ptx::bar_arrive(kStaggerBarrier, 128 * Shape::kConsumers);
          lead_chunk_ = -1;
        }
      }
    }
    ptx::wgmma_wait_group<0>();
    hold_sums();
    release_x(previous);
  }

  /// Adds the slices' sums, in their order. Each CTA of the cluster then holds the units that it
  /// owns.
  __device__ __forceinline__ void reduce() {
    const int thread = static_cast<int>(threadIdx.x) % 128;
    const bool alone = cluster_.split == 1;
    // The rings, which become inboxes, have been read.
    if (alone) {
      ptx::bar_sync(kConsumersBarrier, 128 * Shape::kConsumers);
    } else {
      ptx::barrier_cluster_arrive_relaxed();
      ptx::barrier_cluster_wait();
    }
    for_each_unit([&](int t, int pass) {
      if (owns(t, pass)) return;
      auto& inbox = inbox_of(t, pass)[slice_ * Shape::kPhases + phase_];
      const int owner = unit_of(t, pass) % cluster_.split;
#pragma unroll
      for (int i = 0; i < kPassFragments; ++i) {
        const float* d = &sums_[t][4 * (pass * kPassFragments + i)];
        if (alone) {
          inbox[i][thread] = make_float4(d[0], d[1], d[2], d[3]);
        } else {
          const float values[4] = {d[0], d[1], d[2], d[3]};
          ptx::st_async(&inbox[i][thread].x, values, &storage_.sums_arrived,
                        owner * cluster_.multicast + member_);
        }
      }
    });
    // The sums are in their inboxes.
    if (alone) {
      ptx::bar_sync(kConsumersBarrier, 128 * Shape::kConsumers);
    } else {
      ptx::mbarrier_wait(&storage_.sums_arrived, 0);
    }
    for_each_unit([&](int t, int pass) {
      if (owns(t, pass)) add_slices(t, pass, thread);
    });
  }

  /// Writes the CTA's share of the tile, bias added, by way of shared memory: 128 bytes of a row of
  /// y at a time.
  __device__ __forceinline__ void store(const TileWalk<WBits, C>& tile) {
    const bool vectors = reinterpret_cast<std::uintptr_t>(args_.y) % 16 == 0 && args_.ldy % 8 == 0;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const int n0 = tile.n0 + (column_ * kTiles + t) * Layout::kBlockN;
      float bias[2] = {};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int channel = n0 + 16 * warp_ + lane_ / 4 + 8 * h;
        if (args_.bias != nullptr && channel < args_.n) bias[h] = __ldg(args_.bias + channel);
      }
#pragma unroll
      for (int pass = 0; pass < Shape::kPasses; ++pass) {
        const int m0 = tile.m0 + pass * Shape::kPassRows;
        if (m0 >= args_.m || !owns(t, pass)) continue;
        ptx::bar_sync(kConsumerBarrier + warpgroup_, 128);  // the pass before has been read
        stage_pass(t, pass, bias);
        ptx::bar_sync(kConsumerBarrier + warpgroup_, 128);
        write_pass(n0, m0, vectors);
      }
    }
  }

 private:
  static constexpr int kPassFragments = Shape::kPassRows / 8;
  static constexpr bool kStaggers = !Shape::kFewRows;

  // Of one channel, in one group.
  static constexpr bool kByBytes = !kGeneral && WBits == 8 && T == DType::bf16;
  struct PairParameters {
    std::conditional_t<kGeneral, float, Pair<T>> scale;
    float affine;
    typename Codes<WBits, T>::Zero zero;
  };
  using Parameters = std::conditional_t<kByBytes, ByteWeights, PairParameters>;
  // Groups of 16 columns change from step to step; even and odd steps have a set each, so that no
  // more branches are needed. Only kGeneral has such groups.
  static constexpr int kSets = kGeneral ? 2 : 1;

  __device__ __forceinline__ void clear_sums() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (float& sum : sums_[t]) sum = 0.f;
    }
    hold_sums();
  }
  __device__ __forceinline__ void hold_sums() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) ptx::hold(sums_[t]);
  }

  // Takes the next chunk of weights from its slot, which is free again at once.
  __device__ __forceinline__ void begin_chunk() {
    if constexpr (!Shape::kOneRing) {
      const int slot = weights_cursor_.slot;
      ptx::mbarrier_wait(&storage_.weights_full[slot], weights_cursor_.phase);
      load_words(slot);
      __syncwarp();
      if (lane_ == 0) ptx::mbarrier_arrive(&storage_.weights_empty[slot]);
      weights_cursor_.advance();
    }
  }

  __device__ __forceinline__ void begin_stage() {
    ptx::mbarrier_wait(&storage_.x_full[x_cursor_.slot], x_cursor_.phase);
    if constexpr (Shape::kOneRing) load_words(x_cursor_.slot);
  }

  __device__ __forceinline__ void load_words(int slot) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int b = 0; b < Shape::kBlocksPerChunk; ++b) {
        words_[t][b] = storage_.rings.weights[slot][column_ * kTiles + t][b][warp_][lane_];
      }
    }
  }

  // Tells the CTAs that write there that this warp has done with a slot; -1: none.
  __device__ __forceinline__ void release_x(int slot) {
    __syncwarp();  // every lane has read its parameters
    if (Shape::kFewRows || cluster_.multicast == 1) {
      if (slot >= 0 && lane_ == 0) ptx::mbarrier_arrive(&storage_.x_empty[slot]);
    } else if (slot >= 0 && lane_ < cluster_.multicast) {
      ptx::mbarrier_arrive_cluster(&storage_.x_empty[slot], leader_ + lane_);
    }
  }

  // The products of stage s from group kGroup on; behind each group the next one's fragments are
  // made. `previous`: the slot of the stage before.
  template <int kGroup>
  __device__ __forceinline__ void multiply_stage(int s, int slot, int previous, std::uint32_t k) {
    multiply_group<kGroup>(slot);
    ptx::wgmma_wait_group<Shape::kGroupsInFlight>();
    if constexpr (kGroup == Shape::kGroupsInFlight - 1) release_x(previous);
    constexpr int kNext = (kGroup + 1) * Shape::kGroupSteps;
    if constexpr (kNext < Shape::kStageSteps) {
      dequantise_group<kGroup + 1>(s, false, k);
      multiply_stage<kGroup + 1>(s, slot, previous, k);
    }
  }

  // A group's steps of stage s of the chunk, at column k, from codes to fragments. `first`: the
  // slice begins here, maybe inside a group of columns.
  template <int kGroup>
  __device__ __forceinline__ void dequantise_group(int s, bool first, std::uint32_t k) {
    dequantise<kGroup * Shape::kGroupSteps>(s, first, k);
    if constexpr (Shape::kGroupSteps == 2) dequantise<kGroup * 2 + 1>(s, false, k);
  }

  template <int kStep>
  __device__ __forceinline__ void dequantise(int s, bool first, std::uint32_t k) {
    if constexpr (kStep == 0) {
      if (first || Shape::kPhases > 1 || (k & group_mask_) == 0) load_parameters<kStep>();
    } else if constexpr (kStep % 2 == 0) {
      if (small_groups_ && (kStep * Layout::kStepK & group_mask_) == 0) load_parameters<kStep>();
    }
    const int chunk_step = s * Shape::kStageSteps + kStep;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const uint4& words = words_[t][chunk_step / Layout::kStepsPerBlock];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        fragments_[kStep % Shape::kFragmentSets][t][e] = weight_pair<kStep % kSets>(
            word_of(words, e), chunk_step % Layout::kStepsPerBlock, t, e % 2);
      }
    }
  }

  // Of the groups that step kStep and the one after it lie in.
  template <int kStep>
  __device__ __forceinline__ void load_parameters() {
    const auto& from = storage_.rings.parameters[x_cursor_.slot];
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const int row = (kStep + set) * Layout::kStepK >> args_.group_shift;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const int channel = (column_ * kTiles + t) * Layout::kBlockN + 16 * warp_ + lane_ / 4;
        const auto at = static_cast<int>(parameter_position(channel));
        using ZeroPair = std::conditional_t<WBits == 8, std::uint32_t, std::uint16_t>;
        std::uint32_t scales, zeros = 0;  // affine: codes are taken as they are
        float2 affine{0.f, 0.f};
        if (kGeneral && args_.statistics != nullptr) {
          const auto* codes = reinterpret_cast<const std::uint8_t*>(from.scales[row]) + at;
          const auto* bases = reinterpret_cast<const uint2*>(from.affine_zeros[row]);
          const auto pair = StatisticPair<T>::template of<0>(
              *reinterpret_cast<const std::uint16_t*>(codes), bases[statistic_base_of(at)]);
          scales = pair.scale_bits();
          affine = pair.affine();
        } else {
          scales = *reinterpret_cast<const std::uint32_t*>(&from.scales[row][at]);
          if (kGeneral && args_.zeros == nullptr) {
            affine = *reinterpret_cast<const float2*>(&from.affine_zeros[row][at]);
          } else {
            zeros = *reinterpret_cast<const ZeroPair*>(&from.zeros[row][at]);
          }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          Parameters& to = parameters_[set][t][h];
          const auto scale = static_cast<std::uint16_t>(scales >> (16 * h));
          if constexpr (kByBytes) {
            to = ByteWeights(scale, zeros >> (16 * h) & 0xffffu);
          } else {
            if constexpr (kGeneral) {
              to.scale = scale_to_float(scale, args_.scales_are_bf16);
              to.affine = h == 0 ? affine.x : affine.y;
            } else {
              to.scale = bits_as<Pair<T>>(scale * 0x00010001u);
            }
            to.zero = Codes<WBits, T>::zero_of_stored(&zeros, h);
          }
        }
      }
    }
  }

  // Two weights of one channel, rounded once to the activations' type.
  template <int kSet>
  __device__ __forceinline__ std::uint32_t weight_pair(std::uint32_t word, int step, int t, int h) {
    const Parameters& parameters = parameters_[kSet][t][h];
    if constexpr (kByBytes) {
      return parameters.pair(word, step);
    } else {
      return weight_pair_of(parameters, word, step);
    }
  }
  static __device__ __forceinline__ std::uint32_t weight_pair_of(const PairParameters& parameters,
                                                                 std::uint32_t word, int step) {
    const Pair<T> codes = Codes<WBits, T>::fragment(word, step, parameters.zero);
    if constexpr (kGeneral) {
      const float2 wide = to_float2<T>(codes);
      return bits_as<std::uint32_t>(
          round_to_pair<T>(__fmaf_rn(parameters.scale, wide.x, parameters.affine),
                           __fmaf_rn(parameters.scale, wide.y, parameters.affine)));
    } else {
      return bits_as<std::uint32_t>(__hmul2(codes, parameters.scale));
    }
  }

  // Starts a group of products.
  template <int kGroup>
  __device__ __forceinline__ void multiply_group(int slot) {
    constexpr int kPartBytes = C.tile_m * Shape::kSwizzledK * 2;
    constexpr int kPartSteps = Shape::kSwizzledK / Layout::kStepK;
    const std::uint64_t x =
        x_descriptor_ + static_cast<std::uint32_t>(slot) * (Storage::kXBytes >> 4);
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < Shape::kGroupSteps; ++i) {
      const int step = kGroup * Shape::kGroupSteps + i;
      const int at = step / kPartSteps * kPartBytes + step % kPartSteps * Layout::kStepK * 2;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        ptx::wgmma_k16<T>(sums_[t], fragments_[step % Shape::kFragmentSets][t], x + (at >> 4));
      }
    }
    ptx::wgmma_commit_group();
  }

  template <class Function>
  __device__ __forceinline__ void for_each_unit(Function function) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int pass = 0; pass < Shape::kPasses; ++pass) function(t, pass);
    }
  }

  // Of the CTA's units, pass `pass` of strip t of this consumer.
  __device__ __forceinline__ int unit_of(int t, int pass) const {
    return (column_ * kTiles + t) * Shape::kPasses + pass;
  }

  // Whether this warpgroup of this CTA adds it up and writes it.
  __device__ __forceinline__ bool owns(int t, int pass) const {
    const int unit = unit_of(t, pass);
    return unit % cluster_.split == slice_ && unit / cluster_.split % Shape::kPhases == phase_;
  }

  // Where its sums come in, in its owner.
  __device__ __forceinline__ auto* inbox_of(int t, int pass) const {
    return &storage_.inbox[unit_of(t, pass) / cluster_.split * cluster_.split * Shape::kPhases];
  }

  // The sums of a unit that the warpgroup owns: those in its inbox and its own, in their order.
  __device__ __forceinline__ void add_slices(int t, int pass, int thread) {
    const auto* inbox = inbox_of(t, pass);
    const int own_place = slice_ * Shape::kPhases + phase_;
    float4 total[kPassFragments] = {};
#pragma unroll 1
    for (int i = 0; i < own_place; ++i) add_fragments(total, inbox[i], thread);
#pragma unroll
    for (int i = 0; i < kPassFragments; ++i) {
      const float* own = &sums_[t][4 * (pass * kPassFragments + i)];
      total[i].x += own[0], total[i].y += own[1], total[i].z += own[2], total[i].w += own[3];
    }
#pragma unroll 1
    for (int i = own_place + 1; i < cluster_.split * Shape::kPhases; ++i) {
      add_fragments(total, inbox[i], thread);
    }
#pragma unroll
    for (int i = 0; i < kPassFragments; ++i) {
      float* own = &sums_[t][4 * (pass * kPassFragments + i)];
      own[0] = total[i].x, own[1] = total[i].y, own[2] = total[i].z, own[3] = total[i].w;
    }
  }

  static __device__ __forceinline__ void add_fragments(float4 (&to)[kPassFragments],
                                                       const float4 (&from)[kPassFragments][128],
                                                       int thread) {
#pragma unroll
    for (int i = 0; i < kPassFragments; ++i) {
      const float4 part = from[i][thread];
      to[i].x += part.x, to[i].y += part.y, to[i].z += part.z, to[i].w += part.w;
    }
  }

  // Rounds the sums of pass `pass` of strip t into shared memory.
  __device__ __forceinline__ void stage_pass(int t, int pass, const float (&bias)[2]) {
#pragma unroll
    for (int i = 0; i < Shape::kPassRows / 16; ++i) {
      std::uint32_t r[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int j = pass * (Shape::kPassRows / 8) + 2 * i + e / 2;
        const float* d = &sums_[t][4 * j + 2 * (e % 2)];
        r[e] = bits_as<std::uint32_t>(round_to_pair<T>(d[0] + bias[e % 2], d[1] + bias[e % 2]));
      }
      const int row = 16 * i + lane_ / 16 * 8 + lane_ % 8;
      const int piece = 2 * warp_ + lane_ / 8 % 2;
      ptx::stmatrix_x4_trans(&storage_.y[warpgroup_][row][8 * swizzled_piece(row, piece)], r);
    }
  }

  // Copies a staged pass to channels n0 ... of rows m0 ... of y.
  __device__ __forceinline__ void write_pass(int n0, int m0, bool vectors) const {
    constexpr int kPieces = Layout::kBlockN / 8;
    // Places are not worth registers throughout the main loop.
    const int thread = ptx::opaque(static_cast<int>(threadIdx.x)) % 128;
#pragma unroll
    for (int i = 0; i < Shape::kPassRows * kPieces / 128; ++i) {
      const int at = i * 128 + thread;
      const int row = at / kPieces, piece = at % kPieces, n = n0 + 8 * piece;
      if (m0 + row >= args_.m || n >= args_.n) continue;
      auto* target = static_cast<std::uint16_t*>(args_.y) + (m0 + row) * args_.ldy + n;
      const std::uint16_t* source = &storage_.y[warpgroup_][row][8 * swizzled_piece(row, piece)];
      if (vectors && n + 8 <= args_.n) {
        *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(source);
      } else {
        for (int c = 0; c < 8 && n + c < args_.n; ++c) target[c] = source[c];
      }
    }
  }

  const ForwardArguments& args_;
  const HopperPrefillArguments& cluster_;
  Storage& storage_;
  int warpgroup_;
  int column_, phase_;  // strips, and stages of K, of this warpgroup
  int warp_, lane_;
  int leader_, member_, slice_;
  int lead_chunk_ = -1;  // after which the other consumer may start
  std::uint64_t x_descriptor_;
  std::uint32_t group_mask_;
  bool small_groups_;  // several begin in a stage
  RingCursor<Storage::kStages, Shape::kPhases> x_cursor_;
  RingCursor<Storage::kWeightStages> weights_cursor_;
  uint4 words_[kTiles][Shape::kBlocksPerChunk];
  std::uint32_t fragments_[Shape::kFragmentSets][kTiles][4];
  Parameters parameters_[kSets][kTiles][2];  // [set][strip][h]
  float sums_[kTiles][C.tile_m / 2];
};

}  // namespace mpq::kernels

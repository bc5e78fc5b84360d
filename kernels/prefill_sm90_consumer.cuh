#pragma once
// The warpgroups of the Hopper prefill kernel that dequantise, multiply and write y.

#include <cstdint>
#include <type_traits>

#include "group_parameters.cuh"
#include "prefill_sm90_parts.cuh"
#include "ptx/cluster.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"

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
        warp_(static_cast<int>(threadIdx.x) / 32 % 4),
        lane_(static_cast<int>(threadIdx.x) % 32),
        leader_(first.leader),
        member_(first.member),
        slice_(first.slice),
        x_descriptor_(ptx::matrix_descriptor_swizzle_128b(storage.rings.x[0])),
        group_mask_((1u << args.forward.group_shift) - 1u) {
    if (first.repeats()) {
      constexpr int kLead = 2;  // stages
      if (warpgroup_ == 0) {
        lead_chunk_ = min(kLead / Shape::kStagesPerChunk, first.chunk_count - 1);
      } else {
        ptx::bar_sync(kStaggerBarrier, 128 * Shape::kConsumers);
      }
    }
  }

  /// sums_ = W x^T over the tile's slice of K, at least one chunk.
  __device__ __forceinline__ void multiply(const TileWalk<WBits, C>& tile) {
    std::uint32_t k = static_cast<std::uint32_t>(tile.chunk_begin) * Shape::kChunkK;
    begin_chunk();
    begin_stage();
    dequantise<0>(0, true, k);
    int previous = 0;
    hold_sums();
    for (int chunk = 0; chunk < tile.chunk_count; ++chunk) {
#pragma unroll
      for (int s = 0; s < Shape::kStagesPerChunk; ++s) {
        const bool first = chunk == 0 && s == 0;
        const int slot = x_cursor_.slot;
        // Two groups are left in flight while the next one's fragments are made.
        multiply_step<0>(slot, !first);
        ptx::wgmma_wait_group<2>();
        dequantise<1>(s, false, k);
        multiply_step<1>(slot, true);
        ptx::wgmma_wait_group<2>();
        release_x(previous, !first);
        dequantise<2>(s, false, k);
        multiply_step<2>(slot, true);
        ptx::wgmma_wait_group<2>();
        dequantise<3>(s, false, k);
        multiply_step<3>(slot, true);
        ptx::wgmma_wait_group<2>();
        previous = slot;
        x_cursor_.advance();
        k += Shape::kStageK;
        if (s + 1 < Shape::kStagesPerChunk) {
          begin_stage();
          dequantise<0>(s + 1, false, k);
        } else if (chunk + 1 < tile.chunk_count) {
          begin_chunk();
          begin_stage();
          dequantise<0>(0, false, k);
        }
      }
      if (chunk == lead_chunk_) {
        ptx::bar_arrive(kStaggerBarrier, 128 * Shape::kConsumers);
        lead_chunk_ = -1;
      }
    }
    ptx::wgmma_wait_group<0>();
    hold_sums();
    release_x(previous, true);
  }

  /// Adds the slices' sums. Each CTA of the cluster then holds the passes that it owns.
  __device__ __forceinline__ void reduce() {
    const int thread = static_cast<int>(threadIdx.x) % 128;
    ptx::bar_sync(kConsumersBarrier, 128 * Shape::kConsumers);  // the rings have been read
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int j = 0; j < C.tile_m / 8; ++j) {
        const float* d = &sums_[t][4 * j];
        storage_.sums[warpgroup_][t][j][thread] = make_float4(d[0], d[1], d[2], d[3]);
      }
    }
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int pass = 0; pass < Shape::kPasses; ++pass) {
        if (owns(t, pass)) add_slices(t, pass, thread);
      }
    }
  }

  /// Writes the CTA's share of the tile, bias added, by way of shared memory: 128 bytes of a row of
  /// y at a time.
  __device__ __forceinline__ void store(const TileWalk<WBits, C>& tile) {
    const bool vectors = reinterpret_cast<std::uintptr_t>(args_.y) % 16 == 0 && args_.ldy % 8 == 0;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const int n0 = tile.n0 + (warpgroup_ * kTiles + t) * Layout::kBlockN;
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
  // Of one channel, in one group.
  struct Parameters {
    std::conditional_t<kGeneral, float, Pair<T>> scale;
    float affine;
    typename Codes<WBits, T>::Zero zero;
  };
  // Groups of 16 columns change from step to step; even and odd steps have a set each, so that no
  // more branches are needed. Only kGeneral has such groups.
  static constexpr int kSets = kGeneral ? 2 : 1;

  __device__ __forceinline__ void hold_sums() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) ptx::hold(sums_[t]);
  }

  // Takes the next chunk of weights from its slot, which is free again at once.
  __device__ __forceinline__ void begin_chunk() {
    const int slot = weights_cursor_.slot;
    ptx::mbarrier_wait(&storage_.weights_full[slot], weights_cursor_.phase);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int b = 0; b < Shape::kBlocksPerChunk; ++b) {
        words_[t][b] = storage_.rings.weights[slot][warpgroup_ * kTiles + t][b][warp_][lane_];
      }
    }
    __syncwarp();
    if (lane_ == 0) ptx::mbarrier_arrive(&storage_.weights_empty[slot]);
    weights_cursor_.advance();
  }

  __device__ __forceinline__ void begin_stage() {
    ptx::mbarrier_wait(&storage_.x_full[x_cursor_.slot], x_cursor_.phase);
  }

  // Tells the CTAs that write there that this warp has done with a slot.
  __device__ __forceinline__ void release_x(int slot, bool used) {
    __syncwarp();  // every lane has read its parameters
    if (cluster_.multicast == 1) {
      if (used && lane_ == 0) ptx::mbarrier_arrive(&storage_.x_empty[slot]);
    } else if (used && lane_ < cluster_.multicast) {
      ptx::mbarrier_arrive_cluster(&storage_.x_empty[slot], leader_ + lane_);
    }
  }

  // Step kStep of stage s of the chunk, at column k, from codes to fragments. `first`: the slice
  // begins here, maybe inside a group.
  template <int kStep>
  __device__ __forceinline__ void dequantise(int s, bool first, std::uint32_t k) {
    if constexpr (kStep == 0) {
      if (first || (k & group_mask_) == 0) load_parameters<kStep>();
    } else if constexpr (kStep == 2) {
      if ((kStep * Layout::kStepK & group_mask_) == 0) load_parameters<kStep>();
    }
    const int chunk_step = s * Shape::kStageSteps + kStep;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const uint4& words = words_[t][chunk_step / Layout::kStepsPerBlock];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        fragments_[kStep][t][e] = weight_pair<kStep % kSets>(
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
        const int channel = (warpgroup_ * kTiles + t) * Layout::kBlockN + 16 * warp_ + lane_ / 4;
        const auto at = static_cast<int>(parameter_position(channel));
        const auto scales = *reinterpret_cast<const std::uint32_t*>(&from.scales[row][at]);
        using ZeroPair = std::conditional_t<WBits == 8, std::uint32_t, std::uint16_t>;
        std::uint32_t zeros = 0;  // affine: codes are taken as they are
        float2 affine{0.f, 0.f};
        if (kGeneral && args_.affine_zeros != nullptr) {
          affine = *reinterpret_cast<const float2*>(&from.affine_zeros[row][at]);
        } else {
          zeros = *reinterpret_cast<const ZeroPair*>(&from.zeros[row][at]);
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          Parameters& to = parameters_[set][t][h];
          const auto scale = static_cast<std::uint16_t>(scales >> (16 * h));
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

  // Two weights of one channel, rounded once to the activations' type.
  template <int kSet>
  __device__ __forceinline__ std::uint32_t weight_pair(std::uint32_t word, int step, int t, int h) {
    const Parameters& parameters = parameters_[kSet][t][h];
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

  // Starts the products of a step: one group of wgmma.
  template <int kStep>
  __device__ __forceinline__ void multiply_step(int slot, bool accumulate) {
    constexpr int kStageBytes = C.tile_m * Shape::kStageK * 2, kStepBytes = Layout::kStepK * 2;
    const std::uint64_t x = x_descriptor_ + static_cast<std::uint32_t>(slot) * (kStageBytes >> 4) +
                            kStep * (kStepBytes >> 4);
    ptx::wgmma_fence();
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      ptx::wgmma_k16<T>(sums_[t], fragments_[kStep][t], x, accumulate);
    }
    ptx::wgmma_commit_group();
  }

  // Whether this CTA of the cluster writes pass `pass` of strip t.
  __device__ __forceinline__ bool owns(int t, int pass) const {
    return (t * Shape::kPasses + pass) % cluster_.split == slice_;
  }

  // The sums of one pass, from all slices in their order.
  __device__ __forceinline__ void add_slices(int t, int pass, int thread) {
    constexpr int kFragments = Shape::kPassRows / 8;
    const auto& own = storage_.sums[warpgroup_][t];
    float4 total[kFragments] = {};
    // Reads of neighbours have a long way: as many in flight as there are registers for.
    constexpr int kAhead = kTiles * C.tile_m < 256 ? 2 : 1;
#pragma unroll kAhead
    for (int slice = 0; slice < cluster_.split; ++slice) {
      const int rank = slice * cluster_.multicast + member_;
#pragma unroll
      for (int i = 0; i < kFragments; ++i) {
        const float4 part = ptx::ld_shared_cluster(&own[pass * kFragments + i][thread], rank);
        total[i].x += part.x, total[i].y += part.y, total[i].z += part.z, total[i].w += part.w;
      }
    }
#pragma unroll
    for (int i = 0; i < kFragments; ++i) {
      float* d = &sums_[t][4 * (pass * kFragments + i)];
      d[0] = total[i].x, d[1] = total[i].y, d[2] = total[i].z, d[3] = total[i].w;
    }
  }

  // Rounds rows [32 * pass, + 32) of strip t into shared memory.
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
#pragma unroll
    for (int i = 0; i < Shape::kPassRows * kPieces / 128; ++i) {
      const int at = i * 128 + static_cast<int>(threadIdx.x) % 128;
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
  int warpgroup_, warp_, lane_;
  int leader_, member_, slice_;
  int lead_chunk_ = -1;  // after which the other consumer may start
  std::uint64_t x_descriptor_;
  std::uint32_t group_mask_;
  RingCursor<C.stages> x_cursor_;
  RingCursor<Shape::kWeightStages> weights_cursor_;
  uint4 words_[kTiles][Shape::kBlocksPerChunk];
  std::uint32_t fragments_[Shape::kStageSteps][kTiles][4];
  Parameters parameters_[kSets][kTiles][2];  // [set][strip][h]
  float sums_[kTiles][C.tile_m / 2] = {};
};

}  // namespace mpq::kernels

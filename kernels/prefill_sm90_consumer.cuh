#pragma once
// The warpgroups of the Hopper prefill kernel that dequantise each weight to the activations' type,
// rounded, and multiply.

#include <cstdint>
#include <type_traits>

#include "dequant.cuh"
#include "fused_weights.cuh"
#include "general_weights.cuh"
#include "prefill_sm90_parts.cuh"
#include "prefill_sm90_warpgroup.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma.cuh"

namespace mpq::kernels {

/// A warpgroup's channels of the tile: kTiles times 64.
template <int WBits, DType T, KernelConfig C, Dequantising kWay>
class PrefillConsumer : public PrefillWarpgroup<WBits, T, C, kWay == Dequantising::general> {
 public:
  using Base = PrefillWarpgroup<WBits, T, C, kWay == Dequantising::general>;
  using Base::kTiles;
  using typename Base::Layout, typename Base::Shape, typename Base::Storage;

  __device__ __forceinline__ PrefillConsumer(const HopperPrefillArguments& args, Storage& storage,
                                             int warpgroup, const TileWalk<WBits, C>& first)
      : Base(args, storage, warpgroup, first),
        x_descriptor_(ptx::matrix_descriptor_swizzle_128b(storage.rings.x[0])),
        group_mask_((1u << args.forward.group_shift) - 1u) {
    x_cursor_.slot = phase_;
    if constexpr (kPicksZeros) {  // held in registers
      const unsigned at = 8 * (lane_ / 4) + 2 * warp_, strip = column_ * kTiles * strip_zeros();
      zeros_at_ = ptx::opaque(strip + (args.zeros_are_affine ? 2 * at : at & ~3u));
      zeros_picked_ = ptx::opaque(args.zeros_are_affine ? kPicksHalves
                                  : warp_ % 2 == 0      ? 0x4140u
                                                        : 0x4342u);
    } else if (kFused && Shape::kMayBeAffine) {
      zeros_picked_ = ptx::opaque(args.zeros_are_affine ? kPicksHalves : 0u);
    }
    if (kHoldsMagic) magic_ = Half2Of<T>::kMagic | static_cast<unsigned>(args.forward.m >> 31);
  }

  /// sums_ = W x^T over this warpgroup's stages of the tile's slice of K.
  __device__ __forceinline__ void multiply(const TileWalk<WBits, C>& tile) {
    this->with_own_strips([&]<int kOwn>() { multiply_strips<kOwn>(tile); });
  }

 private:
  using Base::args_, Base::cluster_, Base::storage_, Base::sums_;
  using Base::warpgroup_, Base::column_, Base::phase_, Base::warp_, Base::lane_;

  static constexpr bool kGeneral = kWay == Dequantising::general;
  static constexpr bool kFused = kWay == Dequantising::fused;
  static constexpr bool kPicksZeros = kFused && Shape::kMayBeAffine && WBits < 8;
  static constexpr int kGroupSteps = Shape::kGroupSteps, kGroupsInFlight = Shape::kGroupsInFlight,
                       kFragmentSets = Shape::kFragmentSets;

  // kOwn: strips of this warpgroup, here and below.
  template <int kOwn>
  __device__ __forceinline__ void multiply_strips(const TileWalk<WBits, C>& tile) {
    std::uint32_t k = static_cast<std::uint32_t>(tile.chunk_begin + phase_) * Shape::kChunkK;
    this->clear_sums();
    const int chunks = this->own_chunks(tile);
    if (Shape::kPhases > 1 && chunks == 0) return;
    begin_chunk<kOwn>();
    begin_stage<kOwn>();
    dequantise_group<kOwn, 0>(0, true, k);
    int previous = -1;
    hold_sums();
    for (int chunk = 0; chunk < chunks; ++chunk) {
#pragma unroll
      for (int s = 0; s < Shape::kStagesPerChunk; ++s) {
        const int slot = x_cursor_.slot;
        multiply_stage<kOwn, 0>(s, slot, previous, k);
        previous = slot;
        x_cursor_.advance();
        k += Shape::kStageK * Shape::kPhases;
        if (s + 1 < Shape::kStagesPerChunk) {
          begin_stage<kOwn>();
          dequantise_group<kOwn, 0>(s + 1, false, k);
        } else if (chunk + 1 < chunks) {
          begin_chunk<kOwn>();
          begin_stage<kOwn>();
          dequantise_group<kOwn, 0>(0, false, k);
        }
      }
    }
    ptx::wgmma_wait_group<0>();
    hold_sums();
    this->release_x(previous);
    if (kFused && cluster_.fused_result != 1.f) this->multiply_sums(cluster_.fused_result);
  }

  // Of one channel, in one group.
  struct PairParameters {
    Pair<T> scale;
    typename Codes<WBits, T>::Zero zero;
  };
  // Of two channels.
  using Parameters =
      std::conditional_t<kFused, FusedWeights<WBits, T>,
                         std::conditional_t<kGeneral, GeneralWeights<WBits, T>, PairParameters[2]>>;

  __device__ __forceinline__ void hold_sums() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) ptx::hold(sums_[t]);
  }

  // Takes the next chunk of weights from its slot, which is free again at once.
  template <int kOwn>
  __device__ __forceinline__ void begin_chunk() {
    if constexpr (!Shape::kOneRing) {
      const int slot = weights_cursor_.slot;
      ptx::mbarrier_wait(&storage_.weights_full[slot], weights_cursor_.phase);
      load_words<kOwn>(slot);
      __syncwarp();
      if (lane_ == 0) ptx::mbarrier_arrive(&storage_.weights_empty[slot]);
      weights_cursor_.advance();
    }
  }

  template <int kOwn>
  __device__ __forceinline__ void begin_stage() {
    ptx::mbarrier_wait(&storage_.x_full[x_cursor_.slot], x_cursor_.phase);
    if constexpr (Shape::kParametersEachStage) load_parameters<kOwn, 0>();
    if constexpr (Shape::kOneRing) load_words<kOwn>(x_cursor_.slot);
  }

  template <int kOwn>
  __device__ __forceinline__ void load_words(int slot) {
#pragma unroll
    for (int t = 0; t < kOwn; ++t) {
#pragma unroll
      for (int b = 0; b < Shape::kBlocksPerChunk; ++b) {
        words_[t][b] = storage_.rings.weights[slot][column_ * kTiles + t][b][warp_][lane_];
      }
    }
  }

  // The products of stage s from group kGroup on; behind each group the next one's fragments are
  // made. `previous`: the slot of the stage before.
  template <int kOwn, int kGroup>
  __device__ __forceinline__ void multiply_stage(int s, int slot, int previous, std::uint32_t k) {
    multiply_group<kOwn, kGroup>(slot);
    ptx::wgmma_wait_group<kGroupsInFlight>();
    if constexpr (kGroup == kGroupsInFlight - 1) this->release_x(previous);
    constexpr int kNext = (kGroup + 1) * kGroupSteps;
    if constexpr (kNext < Shape::kStageSteps) {
      dequantise_group<kOwn, kGroup + 1>(s, false, k);
      multiply_stage<kOwn, kGroup + 1>(s, slot, previous, k);
    }
  }

  // A group's steps of stage s of the chunk, at column k, from codes to fragments. `first`: the
  // slice begins here, maybe inside a group of columns.
  template <int kOwn, int kGroup>
  __device__ __forceinline__ void dequantise_group(int s, bool first, std::uint32_t k) {
    dequantise<kOwn, kGroup * kGroupSteps>(s, first, k);
    if constexpr (kGroupSteps == 2) dequantise<kOwn, kGroup * 2 + 1>(s, false, k);
  }

  template <int kOwn, int kStep>
  __device__ __forceinline__ void dequantise(int s, bool first, std::uint32_t k) {
    if constexpr (kStep == 0) {
      const bool begins = first || (k & group_mask_) == 0;
      if (!Shape::kParametersEachStage && begins) load_parameters<kOwn, kStep>();
    } else if constexpr (kStep % 2 == 0) {
      constexpr unsigned kColumn = kStep * Layout::kStepK;
      if (group_mask_ < (kColumn & (0u - kColumn))) load_parameters<kOwn, kStep>();
    }
    const int chunk_step = s * Shape::kStageSteps + kStep;
#pragma unroll
    for (int t = 0; t < kOwn; ++t) {
      const uint4& words = words_[t][chunk_step / Layout::kStepsPerBlock];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        fragments_[kStep % kFragmentSets][t][e] =
            weight_pair(word_of(words, e), chunk_step % Layout::kStepsPerBlock, t, e % 2);
      }
    }
  }

  // Of the group that step kStep of the stage and the one after it lie in.
  template <int kOwn, int kStep>
  __device__ __forceinline__ void load_parameters() {
    const int row = kStep * Layout::kStepK >> args_.group_shift;
#pragma unroll
    for (int t = 0; t < kOwn; ++t) {
      // Where they may be fused, narrow ones are.
      constexpr AffineZeros kAffineZeros =
          Shape::kMayBeAffine ? AffineZeros::wide : AffineZeros::either;
      constexpr bool kMayBeInteger = !kGeneral || may_be_integer(WBits, T);
      const auto stored =
          this->template stored_parameters<kAffineZeros, kMayBeInteger>(x_cursor_.slot, row, t);
      if constexpr (kFused) {
        const FusedFactors factors{cluster_.fused_multiplier, cluster_.fused_zero,
                                   Shape::kMayBeAffine && zeros_picked_ == kPicksHalves};
        const std::uint32_t zeros = kPicksZeros  ? pick_zeros(x_cursor_.slot, row, t)
                                    : WBits == 8 ? stored.zeros
                                                 : __byte_perm(stored.zeros, 0, 0x4140);
        parameters_[t] = Parameters(stored.scales, zeros, factors);
      } else if constexpr (kGeneral) {
        const auto scale = [&](std::uint32_t bits) {
          return scale_to_float(static_cast<std::uint16_t>(bits), args_.scales_are_bf16);
        };
        parameters_[t] = Parameters(float2{scale(stored.scales), scale(stored.scales >> 16)},
                                    stored.zeros, stored.affine, cluster_.most_zero);
      } else {
        load_each(parameters_[t], stored);
      }
    }
  }

  // Zeros of two channels, in halves of a register: codes, which are bytes, or affine ones of 16
  // bits. Both are in one word of shared memory.
  __device__ __forceinline__ std::uint32_t pick_zeros(int slot, int row, int t) const {
    const auto* zeros =
        reinterpret_cast<const unsigned char*>(storage_.rings.parameters[slot].zeros);
    const unsigned strips = (static_cast<unsigned>(row) * Shape::kStrips + t) * strip_zeros();
    return __byte_perm(*reinterpret_cast<const std::uint32_t*>(zeros + strips + zeros_at_), 0,
                       zeros_picked_);
  }
  // Bytes of a strip's.
  __device__ __forceinline__ unsigned strip_zeros() const {
    return static_cast<unsigned>(cluster_.strip_zeros) * 8u;
  }

  __device__ __forceinline__ void load_each(PairParameters (&to)[2],
                                            const typename Base::StoredParameters& stored) const {
    using Codes = Codes<WBits, T>;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      to[h].scale =
          Codes::scale(bits_as<Pair<T>>(__byte_perm(stored.scales, 0, h == 0 ? 0x1010 : 0x3232)));
      to[h].zero = Codes::zero_of_stored(&stored.zeros, h);
    }
  }

  // Two weights of one channel, rounded to the activations' type.
  __device__ __forceinline__ std::uint32_t weight_pair(std::uint32_t word, int step, int t, int h) {
    if constexpr (kFused || kGeneral) {
      return parameters_[t].pair(word, step, h);
    } else {
      const PairParameters& parameters = parameters_[t][h];
      const Pair<T> codes = Codes<WBits, T>::fragment(word, step, parameters.zero,
                                                      kHoldsMagic ? magic_ : Half2Of<T>::kMagic);
      return bits_as<std::uint32_t>(__hmul2(codes, parameters.scale));
    }
  }

  // Starts a group of products.
  template <int kOwn, int kGroup>
  __device__ __forceinline__ void multiply_group(int slot) {
    const std::uint64_t x =
        x_descriptor_ + static_cast<std::uint32_t>(slot) * (sizeof(typename Storage::X) >> 4);
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < kGroupSteps; ++i) {
      const int step = kGroup * kGroupSteps + i;
#pragma unroll
      for (int t = 0; t < kOwn; ++t) {
        ptx::wgmma_k16<T>(sums_[t], fragments_[step % kFragmentSets][t],
                          x + (Shape::x_bytes(step) >> 4));
      }
    }
    ptx::wgmma_commit_group();
  }

  // PRMT has room for one immediate: of magic and selector the compiler would take the first, and
  // move the other to a register each time. (That m is not negative it does not know.)
  static constexpr bool kHoldsMagic = WBits == 8 && T == DType::f16 && !kFused && !kGeneral;
  std::uint32_t magic_;
  std::uint64_t x_descriptor_;
  std::uint32_t group_mask_;
  // Of FusedWeights: where a slot has the lane's zeros, bytes from the first (kPicksZeros); PRMT's
  // selector, which is this where they are halves, and so affine (or of 8 bits).
  static constexpr std::uint32_t kPicksHalves = 0x3210;
  std::uint32_t zeros_at_, zeros_picked_;
  RingCursor<Storage::kStages, Shape::kPhases> x_cursor_;
  RingCursor<Storage::kWeightStages> weights_cursor_;
  uint4 words_[kTiles][Shape::kBlocksPerChunk];
  std::uint32_t fragments_[kFragmentSets][kTiles][4];
  Parameters parameters_[kTiles];  // [strip]
};

}  // namespace mpq::kernels

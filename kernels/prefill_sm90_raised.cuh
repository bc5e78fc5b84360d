#pragma once
// The warpgroups of the Hopper prefill kernel that multiply few rows: codes as they are, raised,
// and scales and zeros for the sums of a group.

#include <cstdint>

#include "dequant.cuh"
#include "prefill_sm90_parts.cuh"
#include "prefill_sm90_warpgroup.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma.cuh"
#include "raised_codes.cuh"

namespace mpq::kernels {

/// A warpgroup's channels of the tile, kTiles times 64. Of the columns of a group, or of 128, with
/// q + o a raised code:
///   y += s (sum of (q + o) x - sum of o x - z sum of x)
/// The sums of x come from the producer, and are where the products' sums begin.
template <int WBits, DType T, KernelConfig C, bool kGeneral>
class RaisedConsumer : public PrefillWarpgroup<WBits, T, C, kGeneral> {
 public:
  using Base = PrefillWarpgroup<WBits, T, C, kGeneral>;
  using typename Base::Layout, typename Base::Shape, typename Base::Storage;

  __device__ __forceinline__ RaisedConsumer(const HopperPrefillArguments& args, Storage& storage,
                                            int warpgroup, const TileWalk<WBits, C>& first)
      : Base(args, storage, warpgroup, first),
        x_descriptor_(ptx::matrix_descriptor_swizzle_128b(storage.rings.x(0))),
        words_at_(at(storage.rings.weights(0)[column_ * kTiles][0][warp_][lane_])),
        x_sums_at_(at(storage.rings.slots[0].x_sums[0][2 * (lane_ % 4)])) {
    cursor_.slot = phase_;
  }

  /// sums_ = W x^T over this warpgroup's stages of the tile's slice of K.
  __device__ __forceinline__ void multiply(const TileWalk<WBits, C>& tile) {
    this->clear_sums();
    with_sum_steps<kGeneral>(args_, [&]<int kSumSteps>() { multiply_by<kSumSteps>(tile); });
  }

 private:
  using Base::args_, Base::storage_, Base::sums_;
  using Base::column_, Base::phase_, Base::warp_, Base::lane_;
  using Raised = RaisedCodes<WBits, T>;
  using Base::kTiles;
  static_assert(Shape::kOneRing && Shape::kStageSteps % 8 == 0);

  // kSumSteps: of the columns that are summed before they are scaled. A body of the loop is a
  // stage, or one of its sums: ptxas has more registers for each of several short sums in a row.
  template <int kSumSteps>
  static constexpr int kBodySteps = kSumSteps < 8 || kGeneral ? kSumSteps : Shape::kStageSteps;
  // Steps of a group of wgmma; the next group's fragments are made while it is multiplied.
  template <int kSumSteps>
  static constexpr int kGroupSteps = kSumSteps < 2 ? kSumSteps : 2;
  // Steps whose fragments are held: of two groups, or of one where registers are few.
  static constexpr int kFragmentSets =
      kTiles == 1 || (Shape::kConsumerRegisters > 104 && !kGeneral) ? 4 : 2;

  template <int kSumSteps>
  __device__ __forceinline__ void multiply_by(const TileWalk<WBits, C>& tile) {
    constexpr int kBodies = Shape::kStageSteps / kBodySteps<kSumSteps>;
    int left = this->own_chunks(tile) * kBodies;
    if (left == 0) return;
    body_ = 0;
    wait_for_stage();
    load_words<kSumSteps>();
    make_group<kSumSteps, 0>();
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      scale_[t][0] = scale_[t][1] = 0.f;
#pragma unroll
      for (float& product : products_[t]) product = 0.f;
    }
    int done = -1;  // a slot that nobody reads any more when all products so far are there
#pragma unroll 1
    for (;;) {
      const int slot = cursor_.slot, body = body_;
      const bool last = --left == 0;
      multiply_groups<kSumSteps, 0>(slot, body, done, last);
      done = body == kBodies - 1 ? slot : -1;
      if (last) break;
      // Fragments of the one group are still being read.
      if constexpr (kBodySteps<kSumSteps> < kFragmentSets) ptx::wgmma_wait_group<0>();
      make_group<kSumSteps, 0>();
    }
    cursor_.advance();  // to the next tile's
    end_sum();
    this->release_x(done);
  }

  __device__ __forceinline__ void wait_for_stage() {
    ptx::mbarrier_wait(&storage_.x_summed[cursor_.slot], cursor_.phase);
  }
  __device__ __forceinline__ const unsigned char* bytes_of(int slot) const {
    return reinterpret_cast<const unsigned char*>(&storage_.rings.slots[slot]);
  }

  // Of a body, shifted so that its first step is where step 0 would be.
  template <int kSumSteps>
  __device__ __forceinline__ void load_words() {
    constexpr int kSteps = kBodySteps<kSumSteps>, kBlockSteps = Layout::kStepsPerBlock;
    constexpr int kBlockBytes = Layout::kWordsPerBlock * 4;
    const int first = body_ * kSteps;
    const unsigned char* from =
        bytes_of(cursor_.slot) + words_at_ + first / kBlockSteps * kBlockBytes;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int b = 0; b < (kSteps + kBlockSteps - 1) / kBlockSteps; ++b) {
        words_[t][b] =
            *reinterpret_cast<const uint4*>(from + (t * Shape::kBlocksPerChunk + b) * kBlockBytes);
      }
      if constexpr (kSteps < kBlockSteps) {
        const int shift = first % kBlockSteps * WBits;
        uint4& words = words_[t][0];
        words.x >>= shift, words.y >>= shift, words.z >>= shift, words.w >>= shift;
      }
    }
  }

  // The products of a body. When all of its words are fragments those of the next one are asked
  // for, unless it is the last.
  template <int kSumSteps, int kGroup>
  __device__ __forceinline__ void multiply_groups(int slot, int body, int done, bool last) {
    constexpr int kSteps = kGroupSteps<kSumSteps>, kStep = kGroup * kSteps;
    constexpr int kBody = kBodySteps<kSumSteps>;
    if constexpr (kStep % kSumSteps == 0) {
      begin_sum(slot, body * (kBody / kSumSteps) + kStep / kSumSteps,
                (body * kBody + kStep) * Layout::kStepK, kStep == 0 ? done : -1);
    }
    if (kStep + kSteps == kBody && !last) {
      if (++body_ == Shape::kStageSteps / kBody) {
        body_ = 0;
        cursor_.advance();
        wait_for_stage();
      }
      load_words<kSumSteps>();
    }
    hold_products();  // where they begin, ahead of the fence
    ptx::wgmma_fence();
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int step = kStep; step < kStep + kSteps; ++step) {
        ptx::wgmma_k16<T>(products_[t], fragments_[step % kFragmentSets][t],
                          x_of(slot, body * kBody, step));
      }
    }
    ptx::wgmma_commit_group();
    ptx::wgmma_wait_group<(kFragmentSets > kSteps ? 1 : 0)>();
    if constexpr (kStep + kSteps < kBody) {
      make_group<kSumSteps, kGroup + 1>();
      multiply_groups<kSumSteps, kGroup + 1>(slot, body, done, last);
    }
  }

  // Codes of a group's steps to fragments.
  template <int kSumSteps, int kGroup>
  __device__ __forceinline__ void make_group() {
    constexpr int kSteps = kGroupSteps<kSumSteps>;
#pragma unroll
    for (int step = kGroup * kSteps; step < (kGroup + 1) * kSteps; ++step) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const uint4& words = words_[t][step / Layout::kStepsPerBlock];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          fragments_[step % kFragmentSets][t][e] =
              Raised::fragment(word_of(words, e), step % Layout::kStepsPerBlock);
        }
      }
    }
  }

  // Ends the sum before it, and begins the `sum`-th of its stage, at column `column` there.
  __device__ __forceinline__ void begin_sum(int slot, int sum, int column, int done) {
    const int row = column >> args_.group_shift;
    typename Base::StoredParameters stored[kTiles];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) stored[t] = this->stored_parameters(slot, row, t);
    float4 x_sums[C.tile_m / 8];  // of two rows each
#pragma unroll
    for (int i = 0; i < C.tile_m / 8; ++i) {
      x_sums[i] = *reinterpret_cast<const float4*>(bytes_of(slot) + x_sums_at_ +
                                                   (sum * C.tile_m + 8 * i) * sizeof(float2));
    }
    end_sum();
    this->release_x(done);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) begin_products(t, stored[t], x_sums);
  }

  __device__ __forceinline__ void begin_products(int t,
                                                 const typename Base::StoredParameters& stored,
                                                 const float4 (&x_sums)[C.tile_m / 8]) {
    float zero[2], minus_affine[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const auto scale = static_cast<std::uint16_t>(stored.scales >> (16 * h));
      scale_[t][h] = scale_to_float(scale, kGeneral ? args_.scales_are_bf16 : T == DType::bf16);
      zero[h] = static_cast<float>(stored.zeros >> (8 * h) & 0xffu);
      minus_affine[h] = h == 0 ? -stored.affine.x : -stored.affine.y;
    }
#pragma unroll
    for (int i = 0; i < C.tile_m / 8; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float* products = &products_[t][4 * i + 2 * h];
        products[0] = __fmaf_rn(zero[h], x_sums[i].y, x_sums[i].x);
        products[1] = __fmaf_rn(zero[h], x_sums[i].w, x_sums[i].z);
        if constexpr (kGeneral) {
          float* sums = &sums_[t][4 * i + 2 * h];
          sums[0] = __fmaf_rn(minus_affine[h], x_sums[i].y, sums[0]);
          sums[1] = __fmaf_rn(minus_affine[h], x_sums[i].w, sums[1]);
        }
      }
    }
  }

  __device__ __forceinline__ void hold_products() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) ptx::hold(products_[t]);
  }

  // Waits for all products and adds them to the sums.
  __device__ __forceinline__ void end_sum() {
    ptx::wgmma_wait_group<0>();
    hold_products();
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < C.tile_m / 2; ++i) {
        sums_[t][i] = __fmaf_rn(scale_[t][i / 2 % 2], products_[t][i], sums_[t][i]);
      }
    }
  }

  // Descriptor of a step's columns of x, `step` steps behind the stage's step `first`.
  __device__ __forceinline__ std::uint64_t x_of(int slot, int first, int step) const {
    const int in_part = first % (Shape::kSwizzledK / Layout::kStepK);
    const int at = Shape::x_bytes(first - in_part) + Shape::x_bytes(in_part + step);
    return x_descriptor_ + static_cast<std::uint32_t>(slot) * (Storage::kXPitch >> 4) +
           static_cast<std::uint32_t>(at >> 4);
  }

  // Where something of a slot lies in it.
  template <class Part>
  __device__ __forceinline__ int at(const Part& of_first_slot) const {
    return static_cast<int>(reinterpret_cast<const unsigned char*>(&of_first_slot) - bytes_of(0));
  }

  std::uint64_t x_descriptor_;
  int words_at_, x_sums_at_;  // of this lane, in a slot
  RingCursor<Storage::kStages, Shape::kPhases> cursor_;
  int body_;  // of the stage: the one whose words were asked for last
  uint4 words_[kTiles][Shape::kBlocksPerChunk];
  std::uint32_t fragments_[kFragmentSets][kTiles][4];
  float products_[kTiles][C.tile_m / 2];  // since the last sum began
  float scale_[kTiles][2];
};

}  // namespace mpq::kernels

#pragma once
// The warpgroups of the Hopper prefill kernel that multiply 8 rows: codes as they are, raised, on
// mma.sync, and scales and zeros for the sums of a group.

#include <cstdint>

#include "dequant.cuh"
#include "prefill_sm90_parts.cuh"
#include "prefill_sm90_warpgroup.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "ptx/mma.cuh"
#include "raised_codes.cuh"

namespace mpq::kernels {

/// A warpgroup's channels of the tile, kTiles times 64; a warp's are kTiles times 16. Of the
/// columns of a group, or of 128, with q + o a raised code:
///   y += s (sum of (q + o) x - sum of o x - z sum of x)
/// The sums of x come from the producer, and are where the products' sums begin.
template <int WBits, DType T, KernelConfig C, bool kGeneral>
class RaisedConsumer : public PrefillWarpgroup<WBits, T, C, kGeneral> {
 public:
  using Base = PrefillWarpgroup<WBits, T, C, kGeneral>;
  using typename Base::Layout, typename Base::Shape, typename Base::Storage;

  __device__ __forceinline__ RaisedConsumer(const HopperPrefillArguments& args, Storage& storage,
                                            int warpgroup, const TileWalk<WBits, C>& first)
      : Base(args, storage, warpgroup, first) {
    cursor_.slot = phase_;
    // For ldmatrix: its four matrices are two steps.
    const int row = lane_ % 8, piece = lane_ / 8;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int at = swizzled_piece(row, piece + 8 / kPieces * i);
      x_at_[i] = row * (Shape::kSwizzledK * 2) + at * 16;
    }
  }

  /// sums_ = W x^T over this warpgroup's stages of the tile's slice of K.
  __device__ __forceinline__ void multiply(const TileWalk<WBits, C>& tile) {
    this->clear_sums();
    with_sum_steps<kGeneral>(args_, [&]<int kSumSteps>() {
      this->with_own_strips([&]<int kOwn>() { multiply_by<kSumSteps, kOwn>(tile); });
    });
  }

 private:
  using Base::args_, Base::storage_, Base::sums_;
  using Base::column_, Base::phase_, Base::warp_, Base::lane_;
  using Raised = RaisedCodes<WBits, T>;
  using Base::kTiles;
  static_assert(Shape::kOneRing && Shape::kStageSteps % 8 == 0);
  static constexpr int kPieces = 2;  // ldmatrix for 64 columns of x
  static_assert(C.tile_m == 8);
  // Products of a tile that do not wait for each other: two at least are under way.
  template <int kOwn>
  static constexpr int kChainsOf = kOwn == 1 ? 2 : 1;

  // kSumSteps: of the columns that are summed before they are scaled. A body of the loop is a
  // stage, or one of its sums.
  template <int kSumSteps>
  static constexpr int kBodySteps = Shape::template kRaisedBodySteps<kSumSteps, kGeneral>;

  // kOwn: strips of this warpgroup.
  template <int kSumSteps, int kOwn>
  __device__ __forceinline__ void multiply_by(const TileWalk<WBits, C>& tile) {
    constexpr int kBody = kBodySteps<kSumSteps>;
    const int stages = this->own_chunks(tile);
#pragma unroll 1
    for (int stage = 0; stage < stages; ++stage) {
      const int slot = cursor_.slot;
      ptx::mbarrier_wait(&storage_.x_summed[slot], cursor_.phase);
#pragma unroll 1
      for (int first = 0; first < Shape::kStageSteps; first += kBody) {
        load_words<kBody, kOwn>(slot, first);
#pragma unroll
        for (int step = 0; step < kBody; step += kSumSteps) {
          add_sum<kSumSteps, kOwn>(slot, first, step);
        }
      }
      this->release_x(slot);
      cursor_.advance();
    }
  }

  // Of kSteps steps of a stage, shifted so that the first is where step 0 would be.
  template <int kSteps, int kOwn>
  __device__ __forceinline__ void load_words(int slot, int first) {
    constexpr int kBlockSteps = Layout::kStepsPerBlock;
#pragma unroll
    for (int t = 0; t < kOwn; ++t) {
#pragma unroll
      for (int b = 0; b < (kSteps + kBlockSteps - 1) / kBlockSteps; ++b) {
        words_[t][b] =
            storage_.rings
                .weights[slot][column_ * kTiles + t][first / kBlockSteps + b][warp_][lane_];
      }
      if constexpr (kSteps < kBlockSteps) {
        const int shift = first % kBlockSteps * WBits;
        uint4& words = words_[t][0];
        words.x >>= shift, words.y >>= shift, words.z >>= shift, words.w >>= shift;
      }
    }
  }

  // Adds the products of the kSumSteps steps from `begin` on, of a body that begins at k-step
  // `first` of the stage.
  template <int kSumSteps, int kOwn>
  __device__ __forceinline__ void add_sum(int slot, int first, int begin) {
    constexpr int kChains = kChainsOf<kOwn>;
    const int sum = first / kSumSteps + begin / kSumSteps;
    const int row = ((first + begin) * Layout::kStepK) >> args_.group_shift;
    float products[kOwn][kChains][4] = {};
    float scale[kOwn][2];
    begin_sum(slot, sum, row, products, scale);
    std::uint32_t x[4];
#pragma unroll
    for (int step = begin; step < begin + kSumSteps; ++step) {
      if (kSumSteps == 1 || step % 2 == 0) load_x(x, slot, first + step);
      const int half = kSumSteps == 1 ? first % 2 : step % 2;
#pragma unroll
      for (int t = 0; t < kOwn; ++t) {
        const uint4& words = words_[t][step / Layout::kStepsPerBlock];
        std::uint32_t codes[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          codes[e] = Raised::fragment(word_of(words, e), step % Layout::kStepsPerBlock);
        }
        ptx::mma_m16n8k16<T>(products[t][step % kChains], codes, half == 0 ? x[0] : x[2],
                             half == 0 ? x[1] : x[3]);
      }
    }
#pragma unroll
    for (int t = 0; t < kOwn; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float product = products[t][0][i];
        if constexpr (kChains > 1) product += products[t][1][i];
        sums_[t][i] = __fmaf_rn(scale[t][i / 2 % 2], product, sums_[t][i]);
      }
    }
  }

  // What the `sum`-th sum of a slot, of row `row` of its parameters, begins at.
  template <int kOwn>
  __device__ __forceinline__ void begin_sum(int slot, int sum, int row,
                                            float (&products)[kOwn][kChainsOf<kOwn>][4],
                                            float (&scale)[kOwn][2]) {
    const float4 x_sums = *reinterpret_cast<const float4*>(
        &storage_.rings.x_sums[slot][sum][2 * (lane_ % 4)]);  // of two rows
#pragma unroll
    for (int t = 0; t < kOwn; ++t) {
      const auto stored = this->stored_parameters(slot, row, t);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        scale[t][h] = scale_to_float(static_cast<std::uint16_t>(stored.scales >> (16 * h)),
                                     kGeneral ? args_.scales_are_bf16 : T == DType::bf16);
        const float zero = static_cast<float>(stored.zeros >> (8 * h) & 0xffu);
        const float minus_affine = h == 0 ? -stored.affine.x : -stored.affine.y;
        products[t][0][2 * h] = __fmaf_rn(zero, x_sums.y, x_sums.x);
        products[t][0][2 * h + 1] = __fmaf_rn(zero, x_sums.w, x_sums.z);
        if constexpr (kGeneral) {
          float* sums = &sums_[t][2 * h];
          sums[0] = __fmaf_rn(minus_affine, x_sums.y, sums[0]);
          sums[1] = __fmaf_rn(minus_affine, x_sums.w, sums[1]);
        }
      }
    }
  }

  __device__ __forceinline__ void load_x(std::uint32_t (&x)[4], int slot, int step) const {
    constexpr int kPartSteps = Shape::kSwizzledK / Layout::kStepK;
    const auto* part = storage_.rings.x[slot][step / kPartSteps];
    const int piece = step % kPartSteps * kPieces / kPartSteps;
    int at = x_at_[0];  // an index that is not known would put x_at_ into memory
#pragma unroll
    for (int i = 1; i < kPieces; ++i) at = piece == i ? x_at_[i] : at;
    ptx::ldmatrix_x4(x, reinterpret_cast<const unsigned char*>(part) + at);
  }

  int x_at_[kPieces];  // in 64 columns of x, this lane's part of two steps
  RingCursor<Storage::kStages, Shape::kPhases> cursor_;
  uint4 words_[kTiles][Shape::kBlocksPerChunk];
};

}  // namespace mpq::kernels

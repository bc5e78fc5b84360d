#pragma once
// The warpgroups of the Hopper prefill kernel that multiply 8 rows and 4 bits and fewer: raised
// codes on mma.sync.

#include <cstdint>

#include "prefill_sm90_raised_warpgroup.cuh"
#include "ptx/memory.cuh"
#include "ptx/mma.cuh"

namespace mpq::kernels {

template <int WBits, DType T, KernelConfig C, bool kGeneral>
class RaisedConsumer : public RaisedWarpgroup<WBits, T, C, kGeneral> {
 public:
  using Base = RaisedWarpgroup<WBits, T, C, kGeneral>;
  using typename Base::Layout, typename Base::Shape, typename Base::Storage;

  __device__ __forceinline__ RaisedConsumer(const HopperPrefillArguments& args, Storage& storage,
                                            int warpgroup, const TileWalk<WBits, C>& first)
      : Base(args, storage, warpgroup, first) {
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
    this->sum([&]<int kSumSteps, int kOwn, AffineZeros kAffineZeros>() {
      const int stages = this->own_chunks(tile);
#pragma unroll 1
      for (int stage = 0; stage < stages; ++stage) {
        this->template add_stage<kSumSteps>(
            [&](int slot, int first) { add_body<kSumSteps, kOwn, kAffineZeros>(slot, first); });
      }
    });
  }

 private:
  using Base::args_, Base::storage_, Base::sums_, Base::lane_;
  using Base::kTiles;
  static constexpr int kPieces = 2;  // ldmatrix for 64 columns of x
  static_assert(C.tile_m == 8);
  // Products of a tile that do not wait for each other: two at least are under way.
  template <int kOwn>
  static constexpr int kChainsOf = kOwn == 1 ? 2 : 1;

  template <int kSumSteps, int kOwn, AffineZeros kAffineZeros>
  __device__ __forceinline__ void add_body(int slot, int first) {
    constexpr int kBody = Base::template kBodySteps<kSumSteps>;
#pragma unroll
    for (int t = 0; t < kOwn; ++t) this->template load_words<kBody>(words_[t], slot, first, t);
#pragma unroll
    for (int step = 0; step < kBody; step += kSumSteps) {
      add_sum<kSumSteps, kOwn, kAffineZeros>(slot, first, step);
    }
  }

  // Adds the products of the kSumSteps steps from `begin` on, of a body that begins at k-step
  // `first` of the stage.
  template <int kSumSteps, int kOwn, AffineZeros kAffineZeros>
  __device__ __forceinline__ void add_sum(int slot, int first, int begin) {
    constexpr int kChains = kChainsOf<kOwn>;
    const int sum = first / kSumSteps + begin / kSumSteps;
    const int row = ((first + begin) * Layout::kStepK) >> args_.group_shift;
    float products[kOwn][kChains][4] = {};
    float scale[kOwn][2];
    begin_sum<kAffineZeros>(slot, sum, row, products, scale);
    std::uint32_t x[4];
#pragma unroll
    for (int step = begin; step < begin + kSumSteps; ++step) {
      if (kSumSteps == 1 || step % 2 == 0) load_x(x, slot, first + step);
      const int half = kSumSteps == 1 ? first % 2 : step % 2;
#pragma unroll
      for (int t = 0; t < kOwn; ++t) {
        std::uint32_t codes[4];
        Base::raise(codes, words_[t], step);
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
  template <AffineZeros kAffineZeros, int kOwn>
  __device__ __forceinline__ void begin_sum(int slot, int sum, int row,
                                            float (&products)[kOwn][kChainsOf<kOwn>][4],
                                            float (&scale)[kOwn][2]) {
    const float4 x_sums = *reinterpret_cast<const float4*>(
        &storage_.rings.x_sums[slot][sum][2 * (lane_ % 4)]);  // of two rows
#pragma unroll
    for (int t = 0; t < kOwn; ++t) {
      const auto stored = this->template stored_parameters<kAffineZeros>(slot, row, t);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        scale[t][h] = this->template scale_of<kAffineZeros>(stored, h);
        Base::template begin_at<kAffineZeros>(&products[t][0][2 * h], &sums_[t][2 * h],
                                              Base::zero_of(stored, h), stored, h, x_sums);
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
  uint4 words_[kTiles][Shape::kBlocksPerChunk];
};

}  // namespace mpq::kernels

#pragma once
// Sums of x for raised codes, in the Hopper prefill kernel.

#include <algorithm>
#include <cstdint>

#include "prefill_sm90_parts.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/mma.cuh"
#include "raised_codes.cuh"

namespace mpq::kernels {

/// A producer's warp that finds what offsets and zeros are to take off (RaisedWarpgroup), of every
/// other slot of x, when it is full.
template <int WBits, DType T, KernelConfig C, bool kGeneral>
class XSummer {
 public:
  using Shape = HopperPrefillShape<WBits, C>;
  using Storage = HopperPrefillStorage<WBits, C, kGeneral>;

  /// odd: of the odd slots, else of the others.
  __device__ __forceinline__ XSummer(const HopperPrefillArguments& args, Storage& storage, bool odd)
      : args_(args), storage_(storage), odd_(odd), lane_(static_cast<int>(threadIdx.x % 32)) {}

  /// Of the tile's slice of K.
  __device__ __forceinline__ void add(const TileWalk<WBits, C>& tile) {
    with_sum_steps(args_.forward, [&]<int kSumSteps>() { add_by<kSumSteps>(tile); });
  }

 private:
  // Products of x, as it lies in a slot, and a matrix whose first columns are minus the offsets and
  // minus one.
  template <int kSumSteps>
  __device__ __forceinline__ void add_by(const TileWalk<WBits, C>& tile) {
    using Raised = RaisedCodes<WBits, T>;
    constexpr int kBody = Shape::template kRaisedBodySteps<kSumSteps, kGeneral>;
    // Of a product's columns of x, this lane's share of the matrix: column lane / 4.
    OffsetFragments constants;
#pragma unroll
    for (int step = 0; step < kWordSteps; step += kProductSteps) {
      if constexpr (kProductSteps == 1) {
        constants[step] = lane_ < 4   ? Raised::minus_offset(step % kBody)
                          : lane_ < 8 ? Raised::minus_one()
                                      : 0;
      } else {  // the next step's in the third and fourth column
        const int column = lane_ / 4;
        constants[step / 2] = column / 2 >= kProductSteps ? 0
                              : column % 2 == 1           ? Raised::minus_one()
                              : column == 0               ? Raised::minus_offset(step % kBody)
                                            : Raised::minus_offset((step + 1) % kBody);
      }
    }
#pragma unroll 1
    for (int chunk = 0; chunk < tile.chunk_count; ++chunk, cursor_.advance()) {
      const int slot = cursor_.slot;
      // Never of a slot only some rounds: a round that is missed is as good as the next but one.
      if (slot % 2 != odd_) continue;
      ptx::mbarrier_wait(&storage_.x_full[slot], cursor_.phase);
      if constexpr (kProductSteps == 2) {
        sum_eight_rows<kSumSteps>(slot, constants);
      } else {
#pragma unroll 1
        for (int row = 0; row < C.tile_m; row += kProductRows) {
          sum_rows<kSumSteps>(slot, row, constants);
        }
      }
      if (lane_ == 0) ptx::mbarrier_arrive(&storage_.x_summed[slot]);
    }
  }

  static constexpr int kWordSteps = 16 / WBits;  // RaisedCodes::kSteps
  static constexpr int kProductRows = std::min(C.tile_m, 16);
  // k-steps in a product: two of eight rows lie one above the other in operand A.
  static constexpr int kProductSteps = 16 / kProductRows;
  using OffsetFragments = std::uint32_t[kWordSteps / kProductSteps];

  // Of eight rows: operand A has a step's columns in its upper, the next one's in its lower half.
  template <int kSumSteps>
  __device__ __forceinline__ void sum_eight_rows(int slot, const OffsetFragments& constants) {
    constexpr int kPartSteps = Shape::kSwizzledK / Shape::Layout::kStepK;
    constexpr int kBody = Shape::template kRaisedBodySteps<kSumSteps, kGeneral>;
    constexpr int kSteps = std::max(kSumSteps, 2);  // of what is added up here
    constexpr int kSums = Shape::kStageSteps / kSteps;
    constexpr int kChains = kSteps > 2 ? 2 : 1;
    const int row = lane_ % 8;  // whose piece the lane reads for ldmatrix
    float sums[kSums][kChains][4] = {};
#pragma unroll
    for (int step = 0; step < Shape::kStageSteps; step += 2) {
      const int piece = swizzled_piece(row, 2 * (step % kPartSteps + lane_ / 8 % 2) + lane_ / 16);
      std::uint32_t x[4];
      ptx::ldmatrix_x4(x, &storage_.rings.x[slot][step / kPartSteps][row][8 * piece]);
      const std::uint32_t constant = constants[step % kBody % kWordSteps / 2];
      ptx::mma_m16n8k16<T>(sums[step / kSteps][step / 2 % kChains], x, constant, constant);
    }
    auto* to = storage_.rings.x_sums[slot];
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      float(&s)[kChains][4] = sums[i];
#pragma unroll
      for (int e = 0; kChains == 2 && e < 4; ++e) s[0][e] += s[kChains - 1][e];
      // Of one step in lanes 0, 4 ..., of the next in lanes 1, 5 ....
      if constexpr (kSumSteps == 1) {
        if (lane_ % 4 == 0) to[2 * i][lane_ / 4] = {s[0][0], s[0][1]};
        if (lane_ % 4 == 1) to[2 * i + 1][lane_ / 4] = {s[0][2], s[0][3]};
      } else {
        const float offsets = __shfl_down_sync(0xffffffffu, s[0][2], 1);
        const float ones = __shfl_down_sync(0xffffffffu, s[0][3], 1);
        if (lane_ % 4 == 0) to[i][lane_ / 4] = {s[0][0] + offsets, s[0][1] + ones};
      }
    }
    __syncwarp();
  }

  // Of rows first_row ...: two sums in turn, for each product would wait for the one before.
  template <int kSumSteps>
  __device__ __forceinline__ void sum_rows(int slot, int first_row,
                                           const OffsetFragments& constants) {
    constexpr int kPartSteps = Shape::kSwizzledK / Shape::Layout::kStepK;
    constexpr int kBody = Shape::template kRaisedBodySteps<kSumSteps, kGeneral>;
    constexpr int kChains = kSumSteps < 2 ? 1 : 2;
    constexpr int kSpan = 8;                           // steps at a time
    const int row = first_row + lane_ % kProductRows;  // whose piece the lane reads for ldmatrix
#pragma unroll
    for (int begin = 0; begin < Shape::kStageSteps; begin += kSpan) {
      float sums[kSpan / kSumSteps][kChains][4] = {};
#pragma unroll
      for (int step = begin; step < begin + kSpan; ++step) {
        const int piece = swizzled_piece(row, 2 * (step % kPartSteps) + lane_ / 16);
        std::uint32_t x[4];
        ptx::ldmatrix_x4(x, &storage_.rings.x[slot][step / kPartSteps][row][8 * piece]);
        const std::uint32_t constant = constants[step % kBody % kWordSteps];
        ptx::mma_m16n8k16<T>(sums[(step - begin) / kSumSteps][step % kChains], x, constant,
                             constant);
      }
      if (lane_ % 4 == 0) {
#pragma unroll
        for (int i = 0; i < kSpan / kSumSteps; ++i) {
          float(&s)[kChains][4] = sums[i];
#pragma unroll
          for (int e = 0; kChains == 2 && e < 4; ++e) s[0][e] += s[kChains - 1][e];
          float2* to = storage_.rings.x_sums[slot][begin / kSumSteps + i] + first_row + lane_ / 4;
          to[0] = {s[0][0], s[0][1]};
          to[8] = {s[0][2], s[0][3]};
        }
      }
      __syncwarp();
    }
  }

  const HopperPrefillArguments& args_;
  Storage& storage_;
  bool odd_;
  int lane_;
  RingCursor<Storage::kStages> cursor_;
};

}  // namespace mpq::kernels

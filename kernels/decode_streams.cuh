#pragma once
// What a lane of the decode kernel reads from memory ahead of its use: weights, scales and zeros.

#include <cstdint>

#include "arguments.hpp"
#include "decode_storage.cuh"
#include "dequant.cuh"
#include "group_parameters.cuh"
#include "mpq/layout.hpp"
#include "ptx/memory.cuh"
#include "statistics.cuh"

namespace mpq::kernels {

/// kWords words that are read once a group: 1, 2, or 4 at a time.
template <int kWords>
__device__ __forceinline__ void load_words(std::uint32_t* words, const void* from) {
  if constexpr (kWords % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      const uint4 v = __ldg(static_cast<const uint4*>(from) + i / 4);
      words[i] = v.x, words[i + 1] = v.y, words[i + 2] = v.z, words[i + 3] = v.w;
    }
  } else if constexpr (kWords == 2) {
    const uint2 v = __ldg(static_cast<const uint2*>(from));
    words[0] = v.x, words[1] = v.y;
  } else {
    words[0] = __ldg(static_cast<const std::uint32_t*>(from));
  }
}

/// What comes with a unit's weights: nothing.
struct NoCompanion {
  __device__ __forceinline__ void begin() const {}
  __device__ __forceinline__ void copy() const {}
};

/// A lane's way through the weights, a ring of copies ahead of where it computes. kUnitBlocks: of
/// decode_unit_k. Companion: what else is copied with a unit's first block.
template <int WBits, KernelConfig C, class Runs, int kUnitBlocks, class Companion = NoCompanion>
class WeightStream {
 public:
  static constexpr int kTiles = DecodeStorage<C>::kTiles;
  using Layout = KernelLayout<WBits>;
  static constexpr int kBlockWords = Layout::kWordsPerBlock / 4;  // of 16 bytes

  __device__ __forceinline__ WeightStream(const ForwardArguments& args,
                                          uint4 (&ring)[C.stages][kTiles][32], int lane,
                                          const Runs& runs, Companion companion = {})
      : args_(args), runs_(runs), ring_(&ring[0][0][lane]), companion_(companion) {
    begin_run();
    if constexpr (kEvenly) {
      run_blocks_ = left_;
      gap_blocks_ =
          runs.stride() * static_cast<int>(static_cast<unsigned>(args.k_padded) / Layout::kBlockK) -
          run_blocks_;
    }
    constexpr int kAtOnce = kEvenly ? C.stages : 1;
#pragma unroll kAtOnce
    for (int i = 0; i < C.stages; ++i) copy(i % kUnitBlocks == 0);
  }
  /// Waits for the oldest block in flight.
  __device__ __forceinline__ void take(uint4 (&words)[kTiles]) const {
    ptx::cp_async_wait_group<C.stages - 1>();
#pragma unroll
    for (int t = 0; t < kTiles; ++t) words[t] = ring_[slot_ + 32 * t];
  }
  /// Starts the next copy, into the place of the block that was taken: `block` of its unit.
  __device__ __forceinline__ void refill(int block = 0) {
    copy((block + C.stages) % kUnitBlocks == 0);
  }

 private:
  static constexpr unsigned kPerBlock = Layout::kBlockN / DecodeStorage<C>::kWarpN;
  static constexpr bool kEvenly = Runs::kEvenly && kPerBlock == 1;

  __device__ __forceinline__ void copy(bool begins_unit) {
    if (begins_unit) companion_.begin();
    if (left_ > 0) {
      if (begins_unit) companion_.copy();
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        ptx::cp_async_16_evict_first(ring_ + slot_ + 32 * t, source_ + 32 * t);
      }
      if constexpr (!kEvenly) {
        source_ += kBlockWords;
        if (--left_ == 0) {
          runs_.next();
          begin_run();
        }
      }
    }
    ptx::cp_async_commit_group();
    if constexpr (kEvenly) {
      // Without a branch: code that a loop jumps over has to be fetched, too.
      source_ += kBlockWords;
      const bool turns = --left_ == 0;
      if (turns) source_ += std::int64_t{gap_blocks_} * kBlockWords;
      if (turns) runs_.next();
      if (turns && !runs_.empty()) left_ = run_blocks_;
    }
    slot_ = slot_ == (C.stages - 1) * 32 * kTiles ? 0 : slot_ + 32 * kTiles;
  }
  __device__ __forceinline__ void begin_run() {
    left_ = runs_.empty() ? 0 : (runs_.end() - runs_.begin()) * kUnitBlocks;
    if (!kEvenly && left_ == 0) return;
    const auto column = static_cast<unsigned>(runs_.column());
    // (A layer's blocks are fewer than 2^32.)
    const std::uint32_t block =
        column / kPerBlock * (static_cast<unsigned>(args_.k_padded) / Layout::kBlockK) +
        static_cast<unsigned>(runs_.begin()) * kUnitBlocks;
    const unsigned lane = threadIdx.x % 32;
    source_ = args_.qweight + std::uint64_t{block} * kBlockWords +
              (column % kPerBlock * (kTiles * 32) + lane);
  }
  const ForwardArguments& args_;
  Runs runs_;
  const uint4* source_;
  int left_, slot_ = 0;          // left_: of the run, to be asked for; below 0 behind the last
  int run_blocks_, gap_blocks_;  // kEvenly: of a run, and from its end to the next one's beginning
  uint4* ring_;
  [[no_unique_address]] Companion companion_;
};

/// Scales of two channels, and what is added for every unit of x.
struct AffinePair {
  float scale[2], affine[2];
};

/// Of tile kTile of four, from packed statistics: a lane's codes, and two bases.
template <DType T, int kTile>
__device__ __forceinline__ AffinePair affine_pair_of(const std::uint32_t* codes,
                                                     const std::uint32_t* bases) {
  const auto pair = StatisticPair<T>::template of<2 * (kTile % 2)>(
      codes[kTile / 2], {bases[kTile / 2 * 2], bases[kTile / 2 * 2 + 1]});
  const float2 scale = to_float2<T>(pair.scale), affine = pair.affine();
  return {{scale.x, scale.y}, {affine.x, affine.y}};
}

/// Parameters of a lane's channels in one group, as stored: two neighbours of each tile. kGeneral:
/// of any kind; else integer zeros, and scales of the activations' type.
template <int WBits, DType T, int kTiles, bool kGeneral>
struct LaneParameters {
  static constexpr int kZeroWords = kTiles * static_cast<int>(sizeof(ZeroCode<WBits>)) / 2;
  static constexpr bool kWide = sizeof(ZeroCode<WBits>) == 2;
  static __device__ __forceinline__ constexpr int word_of_zero(int t, int h) {
    return (2 * t + h) / (kWide ? 2 : 4);
  }
  static __device__ __forceinline__ constexpr unsigned first_byte(int t, int h) {
    return static_cast<unsigned>(kWide ? 2 * h : (2 * t + h) % 4);
  }
  /// Packed statistics have their codes here and their bases in zeros.
  std::uint32_t scales[kTiles];
  /// Packed ZeroCodes, in the first kZeroWords, or affine zeros: floats or, in the first kTiles,
  /// halves.
  std::uint32_t zeros[kGeneral ? 2 * kTiles : kZeroWords];

  __device__ __forceinline__ float scale(const ForwardArguments& args, int t, int h) const {
    return scale_to_float(static_cast<std::uint16_t>(scales[t] >> (16 * h)),
                          kGeneral ? args.scales_are_bf16 : T == DType::bf16);
  }
  /// Reads them, kind by kind: `at` is the place of the lane's channels in scales and affine zeros.
  __device__ __forceinline__ void load(const ForwardArguments& args, std::uint32_t at,
                                       std::uint32_t zero_at) {
    if constexpr (kGeneral) {
      if (args.statistics != nullptr) {
        load_words<kTiles / 2>(scales, args.statistics + at);
        load_words<kTiles>(zeros, args.statistic_bases + statistic_base_of(at));
        return;
      }
    }
    load_words<kTiles>(scales, args.scales + at);
    if (kGeneral && args.affine_zeros != nullptr) {
      if constexpr (kGeneral && reads_narrow_zeros(WBits)) {
        // The first half in one way: a register that two ways lead to would be waited for.
        const int bytes = affine_zero_bytes<WBits>(args);
        const auto* words = reinterpret_cast<const std::uint32_t*>(
            static_cast<const unsigned char*>(args.affine_zeros) +
            std::uint64_t{at} * static_cast<unsigned>(bytes));
        load_words<kTiles>(zeros, words);
        if (bytes == 4) load_words<kTiles>(zeros + kTiles, words + kTiles);
      } else {
        load_words<kGeneral ? 2 * kTiles : kZeroWords>(
            zeros, static_cast<const float*>(args.affine_zeros) + at);
      }
    } else {
      load_words<kZeroWords>(zeros, static_cast<const ZeroCode<WBits>*>(args.zeros) + zero_at);
    }
  }
  /// Of tile kTile where zeros are affine.
  template <int kTile>
  __device__ __forceinline__ AffinePair affine_pair(const ForwardArguments& args) const {
    static_assert(kGeneral && (kTiles == 2 || kTiles == 4));
    if (args.statistics == nullptr) {
      const float floats[2] = {__uint_as_float(zeros[2 * kTile]),
                               __uint_as_float(zeros[2 * kTile + 1])};
      const float2 halves = to_float2<T>(bits_as<Pair<T>>(zeros[kTile]));
      const bool narrow = affine_zero_bytes<WBits>(args) == 2;
      return {{scale(args, kTile, 0), scale(args, kTile, 1)},
              {narrow ? halves.x : floats[0], narrow ? halves.y : floats[1]}};
    }
    return affine_pair_of<T, kTile>(scales, zeros);
  }
  /// An integer zero.
  __device__ __forceinline__ int zero(int t, int h) const {
    const unsigned first = first_byte(t, h);
    return static_cast<int>(__byte_perm(zeros[word_of_zero(t, h)], 0,
                                        0x4400u + (kWide ? (first + 1) * 16 : 0x40u) + first));
  }
  /// An integer zero, twice.
  __device__ __forceinline__ std::uint32_t zero_pair(int t, int h) const {
    return __byte_perm(
        zeros[word_of_zero(t, h)], 0,
        kWide ? first_byte(t, h) * 0x1111u + 0x1010u : first_byte(t, h) * 0x0101u + 0x4040u);
  }
  /// Minus an integer zero: its code in the mantissa of 2^23, subtracted from that.
  __device__ __forceinline__ float minus_zero(int t, int h) const {
    constexpr float kBase = 0x1p23f;
    const unsigned first = first_byte(t, h);
    return kBase -
           __uint_as_float(__byte_perm(zeros[word_of_zero(t, h)], 0x4b000000u,
                                       0x7500u + (kWide ? (first + 1) * 16 : 0x40u) + first));
  }
};

/// A lane's way through the parameters of the groups that it meets, one group ahead.
template <int WBits, DType T, int kTiles, bool kGeneral, class Runs>
class ParameterStream {
 public:
  using Parameters = LaneParameters<WBits, T, kTiles, kGeneral>;

  /// position: of the lane's channels within its column (parameter_position).
  __device__ __forceinline__ ParameterStream(const ForwardArguments& args, const Runs& runs,
                                             int position)
      : args_(args), runs_(runs), position_(position) {
    begin_run();
    advance();
  }
  /// Of the group that comes next.
  __device__ __forceinline__ const Parameters& ahead() const { return ahead_; }
  /// Goes to the group after it.
  __device__ __forceinline__ void advance() {
    if (left_ == 0) return;
    ahead_.load(args_, at_, zero_at_);
    at_ += static_cast<std::uint32_t>(args_.n_padded);
    zero_at_ += static_cast<std::uint32_t>(args_.zeros_stride);
    if (--left_ == 0) {
      runs_.next();
      begin_run();
    }
  }

 private:
  __device__ __forceinline__ void begin_run() {
    constexpr int kSteps = KernelLayout<WBits>::kStepsPerBlock;
    constexpr unsigned kPerBlock = KernelLayout<WBits>::kBlockN / (16 * kTiles);
    left_ = 0;
    if (runs_.empty()) return;
    const int group = group_of_step(args_, runs_.begin() * kSteps);
    left_ = group_of_step(args_, runs_.end() * kSteps - 1) - group + 1;
    const auto column = static_cast<unsigned>(runs_.column());
    const auto channels = static_cast<std::uint32_t>(
        static_cast<int>(column / kPerBlock * 64 + column % kPerBlock * (2 * kTiles)) + position_);
    at_ = static_cast<std::uint32_t>(group) * static_cast<std::uint32_t>(args_.n_padded) + channels;
    zero_at_ = static_cast<std::uint32_t>(group) * static_cast<std::uint32_t>(args_.zeros_stride) +
               channels;
  }
  const ForwardArguments& args_;
  Runs runs_;
  int position_, left_;
  std::uint32_t at_, zero_at_;  // elements; a layer's are fewer than 2^32
  Parameters ahead_;
};

}  // namespace mpq::kernels

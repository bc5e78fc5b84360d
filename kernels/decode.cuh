#pragma once
// Decode: few batch rows at the speed of reading the weights. y^T = W x^T with mma.m16n8k16, the
// weights as operand A.
//
//   grid     clusters of CTAs, persistent over strips of 64 channels; the CTAs of a cluster and the
//            warps of a CTA split K
//   weights  every lane copies its own 16-byte words of a block into its own places of a ring
//            (cp.async) and reads them back itself, so the ring needs no barrier and no registers;
//            it runs on from strip to strip, and starts before the preceding kernel has ended
//   x        the CTA's slice of K, staged once in shared memory so that one 16-byte load gives a
//            lane two k-steps of operand B
//   scales   applied to the sums of a group in float32, so that codes enter the products exactly:
//            y = sum_g s_g (sum_k (q - z_g) x), and for affine zeros + b_g sum_k x
//   y        partial sums of the warps and then of the CTAs, added in a fixed order; the exchange
//            within the cluster overlaps the next strip

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "arguments.hpp"
#include "dequant.cuh"
#include "group_parameters.cuh"
#include "mpq/layout.hpp"
#include "mpq/plan.hpp"
#include "ptx/cluster.cuh"
#include "ptx/memory.cuh"
#include "ptx/mma.cuh"

namespace mpq::kernels {

/// Shared memory of a CTA. Its slice of x follows, then the sums of x (see ActivationSlice).
template <KernelConfig C>
struct DecodeStorage {
  static constexpr int kPitch = C.tile_n + 4;  // spreads the rows of a fragment over the banks
  static constexpr int kTiles = C.tile_n / 16 / C.warps_n;
  uint4 ring[C.warps()][C.stages][kTiles][32];
  float of_warps[C.warps_k][C.tile_m][kPitch];
  float of_cta[2][C.tile_m][kPitch];  // of a strip and, meanwhile, of the one before
};

/// Calls f<0>() to f<kCount - 1>().
template <int kCount, class F>
__device__ __forceinline__ void static_for(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) {
    (f.template operator()<I>(), ...);
  }
  (std::make_integer_sequence<int, kCount>{});
}

/// The runs of blocks that a warp works through: of each of its strips, its part of each chunk,
/// empty ones left out.
class BlockRuns {
 public:
  __device__ __forceinline__ BlockRuns(const KSplit& split, int warp_k, int strips)
      : split_(split),
        warp_k_(warp_k),
        strips_(strips),
        stride_(static_cast<int>(gridDim.x) / split.cluster),
        strip_(static_cast<int>(blockIdx.x) / split.cluster) {
    seek();
  }
  __device__ __forceinline__ bool done() const { return strip_ >= strips_; }
  __device__ __forceinline__ void next() {
    step();
    seek();
  }
  __device__ __forceinline__ int strip() const { return strip_; }
  __device__ __forceinline__ int begin() const { return begin_; }
  __device__ __forceinline__ int end() const { return end_; }

 private:
  __device__ __forceinline__ void step() {
    if (++chunk_ == split_.chunks) chunk_ = 0, strip_ += stride_;
  }
  __device__ __forceinline__ void seek() {
    for (;; step()) {
      begin_ = split_.part_begin(chunk_, warp_k_);
      end_ = split_.part_begin(chunk_, warp_k_ + 1);
      if (begin_ < end_ || done()) return;
    }
  }
  const KSplit& split_;
  int warp_k_, strips_, stride_, strip_, chunk_ = 0, begin_ = 0, end_ = 0;
};

/// A lane's way through the weights, a ring of copies ahead of where it computes.
template <int WBits, KernelConfig C>
class WeightStream {
 public:
  static constexpr int kTiles = DecodeStorage<C>::kTiles;
  static constexpr int kBlockWords = KernelLayout<WBits>::kWordsPerBlock / 4;  // of 16 bytes

  /// weights: the lane's words of block 0; blocks: of a strip.
  __device__ __forceinline__ WeightStream(uint4 (&ring)[C.stages][kTiles][32], int lane,
                                          const BlockRuns& runs, const uint4* weights, int blocks)
      : runs_(runs), weights_(weights), blocks_(blocks), ring_(&ring[0][0][lane]) {
    seek();
#pragma unroll 1
    for (int i = 0; i < C.stages; ++i) refill();
  }
  /// Waits for the oldest block in flight.
  __device__ __forceinline__ void take(uint4 (&words)[kTiles]) const {
    ptx::cp_async_wait_group<C.stages - 1>();
#pragma unroll
    for (int t = 0; t < kTiles; ++t) words[t] = ring_[slot_ + 32 * t];
  }
  /// Starts the next copy, into the place of the block that was taken.
  __device__ __forceinline__ void refill() {
    if (left_ > 0) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) ptx::cp_async_16(ring_ + slot_ + 32 * t, source_ + 32 * t);
      source_ += kBlockWords;
      if (--left_ == 0) {
        runs_.next();
        seek();
      }
    }
    ptx::cp_async_commit_group();
    slot_ = slot_ == (C.stages - 1) * 32 * kTiles ? 0 : slot_ + 32 * kTiles;
  }

 private:
  __device__ __forceinline__ void seek() {
    left_ = runs_.done() ? 0 : runs_.end() - runs_.begin();
    source_ = weights_ +
              (static_cast<std::int64_t>(runs_.strip()) * blocks_ + runs_.begin()) * kBlockWords;
  }
  BlockRuns runs_;
  const uint4* weights_;
  const uint4* source_;
  int blocks_, left_, slot_ = 0;
  uint4* ring_;
};

/// Parameters of a lane's channels in one group, as stored: of each tile, two neighbours.
template <int WBits, int kTiles, bool kAffine>
struct LaneParameters {
  using Zero = std::conditional_t<kAffine, float, ZeroCode<WBits>>;
  using ZeroPair = std::conditional_t<
      kAffine, float2,
      std::conditional_t<sizeof(ZeroCode<WBits>) == 1, std::uint16_t, std::uint32_t>>;
  std::uint32_t scales[kTiles];
  ZeroPair zeros[kTiles];
};

/// A lane's way through the parameters of the groups that it meets, one group ahead.
template <int WBits, int kTiles, bool kAffine>
class ParameterStream {
 public:
  using Parameters = LaneParameters<WBits, kTiles, kAffine>;

  /// position: of the lane's first channel within a strip (parameter_position).
  __device__ __forceinline__ ParameterStream(const ForwardArguments& args, const BlockRuns& runs,
                                             int position)
      : args_(args), runs_(runs), position_(position) {
    seek();
    fetch();
  }
  __device__ __forceinline__ Parameters take() {
    const Parameters taken = ahead_;
    fetch();
    return taken;
  }

 private:
  using Zero = typename Parameters::Zero;
  static constexpr int kSteps = KernelLayout<WBits>::kStepsPerBlock;

  __device__ __forceinline__ void seek() {
    if (runs_.done()) {
      left_ = 0;
      return;
    }
    const int first = group_of_step(args_, runs_.begin() * kSteps);
    left_ = group_of_step(args_, runs_.end() * kSteps - 1) - first + 1;
    const std::int64_t column = 64 * runs_.strip() + position_;
    scales_ = args_.scales + static_cast<std::int64_t>(first) * args_.n_padded + column;
    if constexpr (kAffine) {
      zeros_ = args_.affine_zeros + static_cast<std::int64_t>(first) * args_.n_padded + column;
    } else {
      zeros_ = static_cast<const Zero*>(args_.zeros) +
               static_cast<std::int64_t>(first) * args_.zeros_stride + column;
    }
  }
  __device__ __forceinline__ void fetch() {
    if (left_ == 0) {
      if (runs_.done()) return;
      runs_.next();
      seek();
      if (left_ == 0) return;
    }
    --left_;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      ahead_.scales[t] = __ldg(reinterpret_cast<const std::uint32_t*>(scales_ + 16 * t));
      ahead_.zeros[t] =
          __ldg(reinterpret_cast<const typename Parameters::ZeroPair*>(zeros_ + 16 * t));
    }
    scales_ += args_.n_padded;
    zeros_ += kAffine ? args_.n_padded : args_.zeros_stride;
  }
  const ForwardArguments& args_;
  BlockRuns runs_;
  int position_, left_ = 0;
  const std::uint16_t* scales_ = nullptr;
  const Zero* zeros_ = nullptr;
  Parameters ahead_{};
};

/// The CTA's slice of x in shared memory, [pair of k-steps][8 rows or fewer, for each n = 8 tile]
/// [lane % 4][16 bytes]: the registers of operand B that lane (row, lane % 4) needs for both steps.
/// And, for affine zeros, sums of x over what each warp's part has of each group.
template <DType T, KernelConfig C>
class ActivationSlice {
 public:
  static constexpr int kTilesM = C.tile_m / 8;

  __device__ __forceinline__ ActivationSlice(unsigned char* shared, int rows)
      : shared_(shared), rows_(rows), slots_(decode_row_slots(C, rows)) {}

  __device__ __forceinline__ int pair_bytes() const { return 64 * slots_; }

  /// Columns [first, first + columns), whole pairs of steps; zero past x.
  __device__ __forceinline__ void stage(const ForwardArguments& args, int m0, int first,
                                        int columns) const {
    const int chunks = columns / 8, valid = args.k - first;
    const bool vectors =
        reinterpret_cast<std::uintptr_t>(args.x) % 16 == 0 && args.ldx % 8 == 0 && args.k % 8 == 0;
    const auto* x = static_cast<const std::uint16_t*>(args.x) + m0 * args.ldx + first;
    if (vectors) {
      constexpr int kInFlight = 4;
      for (int row = 0; row < rows_; ++row, x += args.ldx) {
        for (int base = static_cast<int>(threadIdx.x); base < chunks;
             base += kInFlight * C.threads()) {
          uint4 values[kInFlight];
#pragma unroll
          for (int i = 0; i < kInFlight; ++i) {
            const int chunk = base + i * C.threads();
            values[i] = make_uint4(0, 0, 0, 0);
            // Through L2: an L1 line may be older than what the preceding kernel wrote.
            if (chunk < chunks && 8 * chunk < valid) {
              values[i] = __ldcg(reinterpret_cast<const uint4*>(x + 8 * chunk));
            }
          }
#pragma unroll
          for (int i = 0; i < kInFlight; ++i) {
            if (base + i * C.threads() < chunks) put(row, base + i * C.threads(), values[i]);
          }
        }
      }
    } else {
      for (int row = 0; row < rows_; ++row, x += args.ldx) {
#pragma unroll 1
        for (int chunk = static_cast<int>(threadIdx.x); chunk < chunks; chunk += C.threads()) {
          std::uint16_t values[8];
#pragma unroll
          for (int j = 0; j < 8; ++j) {
            values[j] = 8 * chunk + j < valid ? __ldcg(x + 8 * chunk + j) : std::uint16_t{0};
          }
          put(row, chunk, bits_as<uint4>(values));
        }
      }
    }
  }

  /// sums [groups, tile_m]: of x over what steps [begin, end) have of each group, by one warp;
  /// `origin` is the slice's first step. Rows past x are 0.
  __device__ __forceinline__ void sum_groups(const ForwardArguments& args, int begin, int end,
                                             int origin, float* sums, int lane) const {
    if (begin == end) return;
    const int first = group_of_step(args, begin), last = group_of_step(args, end - 1);
    for (int i = lane; i < (last - first + 1) * C.tile_m; i += 32) {
      const int group = first + i / C.tile_m, row = i % C.tile_m;
      const int from = max(begin, first_step_of_group(args, group));
      const int to = min(end, first_step_of_group(args, group + 1));
      float total = 0.f;
      for (int step = from - origin; row < rows_ && step < to - origin; ++step) {
        const unsigned char* pair = shared_ + (step / 2) * pair_bytes() + 64 * row + step % 2 * 8;
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          const uint2 v = *reinterpret_cast<const uint2*>(pair + 16 * q);
          const float2 low = to_float2<T>(bits_as<Pair<T>>(v.x));
          const float2 high = to_float2<T>(bits_as<Pair<T>>(v.y));
          total += (low.x + low.y) + (high.x + high.y);
        }
      }
      sums[i] = total;
    }
  }

  /// A lane's place in pair 0. Lanes of rows past x read some row of it: what comes of that reaches
  /// only rows of y that are not there.
  __device__ __forceinline__ const unsigned char* of_lane(int lane) const {
    return shared_ + 64 * (lane / 4 & (slots_ - 1)) + 16 * (lane % 4);
  }
  /// Operand B of n = 8 tile m for both steps of a pair.
  static __device__ __forceinline__ uint4 load(const unsigned char* pair_of_lane, int m) {
    return *reinterpret_cast<const uint4*>(pair_of_lane + 512 * m);
  }

 private:
  __device__ __forceinline__ void put(int row, int chunk, const uint4& value) const {
    unsigned char* target = shared_ + (chunk / 4) * pair_bytes() + 64 * row + 4 * (chunk % 4);
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      *reinterpret_cast<std::uint32_t*>(target + 16 * q) = word_of(value, q);
    }
  }
  unsigned char* shared_;
  int rows_, slots_;
};

/// What a warp accumulates of a strip: a lane's share of [16 kTiles channels, tile_m rows].
template <int WBits, DType T, KernelConfig C, bool kAffine>
class DecodeAccumulator {
 public:
  using CodesOf = Codes<WBits, T>;
  static constexpr int kTiles = DecodeStorage<C>::kTiles, kTilesM = C.tile_m / 8;
  using Parameters = LaneParameters<WBits, kTiles, kAffine>;

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) total[t][m][i] = sums_[t][m][i] = 0.f;
      }
    }
  }

  /// Adds the group's sums, scaled, to the total.
  __device__ __forceinline__ void end_group(bool scales_are_bf16) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float scale =
            scale_to_float(static_cast<std::uint16_t>(scales_[t] >> (16 * h)), scales_are_bf16);
#pragma unroll
        for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
          for (int i = 2 * h; i < 2 * h + 2; ++i) {
            total[t][m][i] = __fmaf_rn(scale, sums_[t][m][i], total[t][m][i]);
            sums_[t][m][i] = 0.f;
          }
        }
      }
    }
  }

  /// x_sums: of the group, for affine zeros.
  __device__ __forceinline__ void begin_group(const Parameters& parameters, const float* x_sums,
                                              int lane) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      scales_[t] = parameters.scales[t];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if constexpr (!kAffine) zeros_[t][h] = CodesOf::zero_of_pair(parameters.zeros[t], h);
      }
      if constexpr (kAffine) {
#pragma unroll
        for (int m = 0; m < kTilesM; ++m) {
          const float2 x = *reinterpret_cast<const float2*>(x_sums + 8 * m + 2 * (lane % 4));
          const float2 b = parameters.zeros[t];
          total[t][m][0] = __fmaf_rn(b.x, x.x, total[t][m][0]);
          total[t][m][1] = __fmaf_rn(b.x, x.y, total[t][m][1]);
          total[t][m][2] = __fmaf_rn(b.y, x.x, total[t][m][2]);
          total[t][m][3] = __fmaf_rn(b.y, x.y, total[t][m][3]);
        }
      }
    }
  }

  /// Multiplies one k-step: step kStep of those that are lowest in `words`, b: operand B.
  template <int kStep>
  __device__ __forceinline__ void multiply(const uint4 (&words)[kTiles],
                                           const std::uint32_t (&b)[kTilesM][2]) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      std::uint32_t a[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const auto zero = [&] {
          if constexpr (kAffine) {
            return CodesOf::zero(0);
          } else {
            return zeros_[t][e % 2];
          }
        }();
        a[e] = bits_as<std::uint32_t>(CodesOf::fragment(word_of(words[t], e), kStep, zero));
      }
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) ptx::mma_m16n8k16<T>(sums_[t][m], a, b[m][0], b[m][1]);
    }
  }

  float total[kTiles][kTilesM][4];

 private:
  std::uint32_t scales_[kTiles];
  typename CodesOf::Zero zeros_[kTiles][2];
  float sums_[kTiles][kTilesM][4];
};

/// Partial sums of a strip on their way from the warps of a cluster to y.
template <DType T, KernelConfig C>
class StripReduction {
 public:
  static constexpr int kTiles = DecodeStorage<C>::kTiles, kTilesM = C.tile_m / 8;

  __device__ __forceinline__ StripReduction(const ForwardArguments& args, DecodeStorage<C>& storage,
                                            const KSplit& split, int m0)
      : args_(args),
        storage_(storage),
        split_(split),
        m0_(m0),
        count_(min(args.m - m0, C.tile_m) * C.tile_n) {}

  /// Adds the sums of the CTA's warps, in their order, and shows them to the cluster.
  __device__ __forceinline__ void publish(const float (&total)[kTiles][kTilesM][4], int strip) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    auto& mine = storage_.of_warps[warp / C.warps_n];
    const int channel = 16 * kTiles * (warp % C.warps_n) + lane / 4;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          mine[8 * m + 2 * (lane % 4) + i % 2][channel + 16 * t + 8 * (i / 2)] = total[t][m][i];
        }
      }
    }
    finish();
    __syncthreads();
    auto& partial = storage_.of_cta[parity_];
    for (int i = static_cast<int>(threadIdx.x); i < count_; i += C.threads()) {
      const int n = i % C.tile_n, m = i / C.tile_n;
      float sum = 0.f;
#pragma unroll
      for (int w = 0; w < C.warps_k; ++w) sum += storage_.of_warps[w][m][n];
      if (split_.cluster == 1) {
        store(m, n, strip, sum);
      } else {
        partial[m][n] = sum;
      }
    }
    __syncthreads();  // of_warps may be written again
    if (split_.cluster == 1) return;
    ptx::barrier_cluster_arrive();
    strip_ = strip;
    parity_ ^= 1;
  }

  /// Writes y of the strip that was published last, if there is one left to write.
  __device__ __forceinline__ void finish() {
    if (strip_ < 0) return;
    ptx::barrier_cluster_wait();
    const auto& partial = storage_.of_cta[parity_ ^ 1];
    for (int i = split_.rank * C.threads() + static_cast<int>(threadIdx.x); i < count_;
         i += split_.cluster * C.threads()) {
      const int n = i % C.tile_n, m = i / C.tile_n;
      float sum = 0.f;
      for (int rank = 0; rank < split_.cluster; ++rank) {
        sum += ptx::ld_shared_cluster(&partial[m][n], rank);
      }
      store(m, n, strip_, sum);
    }
    __syncwarp();
    strip_ = -1;
  }

  /// Nobody leaves while others may still read its sums.
  __device__ __forceinline__ void leave() {
    if (split_.cluster == 1) return;
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
  }

 private:
  __device__ __forceinline__ void store(int m, int n, int strip, float sum) const {
    const int channel = strip * C.tile_n + n;
    if (channel >= args_.n) return;
    if (args_.bias != nullptr) sum += __ldg(args_.bias + channel);
    static_cast<Scalar<T>*>(args_.y)[static_cast<std::int64_t>(m0_ + m) * args_.ldy + channel] =
        round_to<T>(sum);
  }
  const ForwardArguments& args_;
  DecodeStorage<C>& storage_;
  const KSplit& split_;
  int m0_, count_, strip_ = -1, parity_ = 0;
};

/// The CTA's work. No group of columns may begin but at multiples of kCheck k-steps.
template <int WBits, DType T, KernelConfig C, int kCheck, bool kAffine>
__device__ __forceinline__ void decode_strips(const ForwardArguments& args,
                                              DecodeStorage<C>& storage, unsigned char* slice) {
  using Layout = KernelLayout<WBits>;
  using Slice = ActivationSlice<T, C>;
  constexpr int kTiles = DecodeStorage<C>::kTiles, kTilesM = C.tile_m / 8;
  constexpr int kSteps = Layout::kStepsPerBlock, kSegment = kSteps < 4 ? kSteps : 4;
  static_assert(C.tile_n == Layout::kBlockN && C.warps_m == 1 && kSegment % kCheck == 0);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_n = warp % C.warps_n, warp_k = warp / C.warps_n;
  const int strips = args.n_padded / C.tile_n;
  const int m0 = static_cast<int>(blockIdx.y) * C.tile_m;
  const int blocks = args.k_padded / Layout::kBlockK;
  const KSplit split(blocks, C.warps_k, args.chunks, args.cluster,
                     static_cast<int>(blockIdx.x) & (args.cluster - 1));

  // Start: weights and parameters are on their way before x exists.
  const BlockRuns runs(split, warp_k, strips);
  WeightStream<WBits, C> weights(storage.ring[warp], lane, runs,
                                 args.qweight + warp_n * kTiles * 32 + lane, blocks);
  ParameterStream<WBits, kTiles, kAffine> parameters(args, runs,
                                                     warp_n * kTiles * 16 + 2 * (lane / 4));
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();

  const Slice x(slice, min(args.m - m0, C.tile_m));
  float* x_sums = reinterpret_cast<float*>(slice + split.most() * kSteps / 2 * x.pair_bytes());
  if constexpr (kAffine) {
    x_sums += warp_k *
              decode_most_groups(split.most_of_part() * Layout::kBlockK, args.group_shift) *
              C.tile_m;
  }
  DecodeAccumulator<WBits, T, C, kAffine> sums;
  StripReduction<T, C> reduction(args, storage, split, m0);
  bool staged = false;
  for (int strip = static_cast<int>(blockIdx.x) / split.cluster; strip < strips;
       strip += static_cast<int>(gridDim.x) / split.cluster) {
    sums.clear();
    for (int chunk = 0; chunk < split.chunks; ++chunk) {
      const int first = split.part_begin(chunk, 0), last = split.part_begin(chunk, C.warps_k);
      const int begin = split.part_begin(chunk, warp_k), end = split.part_begin(chunk, warp_k + 1);

      // x of the chunk; once and for all if there is only one.
      if (!staged || split.chunks > 1) {
        if (staged) __syncthreads();
        x.stage(args, m0, first * Layout::kBlockK, (last - first) * Layout::kBlockK);
        __syncthreads();
        if constexpr (kAffine) {
          if (warp_n == 0) {
            x.sum_groups(args, begin * kSteps, end * kSteps, first * kSteps, x_sums, lane);
          }
          __syncthreads();
        }
        staged = true;
      }
      if (begin == end) continue;

      // Multiply.
      const float* group_sums = x_sums;
      const auto begin_group = [&] {
        sums.begin_group(parameters.take(), group_sums, lane);
        if constexpr (kAffine) group_sums += C.tile_m;
      };
      begin_group();
      const unsigned char* pair = x.of_lane(lane) + (begin - first) * (kSteps / 2) * x.pair_bytes();
      int step = begin * kSteps;
#pragma unroll 1
      for (int block = begin; block < end; ++block) {
        uint4 words[kTiles];
        weights.take(words);
#pragma unroll 1
        for (int segment = 0; segment < kSteps; segment += kSegment) {
          static_for<kSegment / 2>([&]<int kPair>() {
            uint4 b[kTilesM];
#pragma unroll
            for (int m = 0; m < kTilesM; ++m) b[m] = Slice::load(pair, m);
            pair += x.pair_bytes();
            static_for<2>([&]<int kHalf>() {
              constexpr int kStep = 2 * kPair + kHalf;
              if constexpr (kStep % kCheck == 0) {
                if (starts_group(args, step) && step > begin * kSteps) {
                  sums.end_group(args.scales_are_bf16);
                  begin_group();
                }
              }
              ++step;
              std::uint32_t half[kTilesM][2];
#pragma unroll
              for (int m = 0; m < kTilesM; ++m) {
                half[m][0] = kHalf == 0 ? b[m].x : b[m].z;
                half[m][1] = kHalf == 0 ? b[m].y : b[m].w;
              }
              sums.template multiply<kStep>(words, half);
            });
          });
          if constexpr (kSegment < kSteps) {
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
              words[t].x >>= WBits * kSegment, words[t].y >>= WBits * kSegment;
              words[t].z >>= WBits * kSegment, words[t].w >>= WBits * kSegment;
            }
          }
        }
        weights.refill();
      }
      sums.end_group(args.scales_are_bf16);
    }
    reduction.publish(sums.total, strip);
  }
  reduction.finish();
  reduction.leave();
}

/// One row of kKernelTable. Grid: x = clusters * CTAs of a cluster, y = tiles of batch rows.
template <int WBits, DType T, int Row>
__global__ void __launch_bounds__(kKernelTable[Row].threads(), kKernelTable[Row].ctas_per_sm)
    decode(const __grid_constant__ ForwardArguments args) {
  constexpr KernelConfig C = kKernelTable[Row];
  static_assert(C.family == KernelFamily::decode);
  static_assert(sizeof(DecodeStorage<C>) == decode_storage_bytes(C));
  extern __shared__ __align__(128) unsigned char shared[];
  auto& storage = *reinterpret_cast<DecodeStorage<C>*>(shared);
  unsigned char* slice = shared + sizeof(DecodeStorage<C>);
  // Look for the beginning of a group as seldom as the groups allow.
  const auto run = [&]<bool kAffine>() {
    if (KernelLayout<WBits>::kStepsPerBlock >= 4 && args.group_shift >= 6) {
      decode_strips<WBits, T, C, WBits == 8 ? 2 : 4, kAffine>(args, storage, slice);
    } else if (args.group_shift >= 5) {
      decode_strips<WBits, T, C, 2, kAffine>(args, storage, slice);
    } else {
      decode_strips<WBits, T, C, 1, kAffine>(args, storage, slice);
    }
  };
  if (args.affine_zeros != nullptr) {
    run.template operator()<true>();
  } else {
    run.template operator()<false>();
  }
}

}  // namespace mpq::kernels

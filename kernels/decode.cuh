#pragma once
// Decode: few batch rows at the speed of reading the weights. y^T = W x^T with mma.m16n8k16, the
// weights as operand A.
//
//   grid     clusters of CTAs, persistent over tiles of channels; a warp has kWarpN channels beside
//            those of warps_n - 1 others, and splits K with the CTA's other warps and the cluster
//   weights  every lane copies its own 16-byte words of a block into its own places of a ring
//            (cp.async) and reads them back itself, so the ring needs no barrier and no registers;
//            it runs on from tile to tile, and starts before the preceding kernel has ended
//   x        the CTA's slice of K, staged once in shared memory so that one 16-byte load gives a
//            lane two k-steps of operand B
//   scales   applied to the sums of a group in float32, so that codes enter the products exactly:
//            y = sum_g s_g (sum_k (q - z_g) x), and for affine zeros + b_g sum_k x
//   y        partial sums of the warps and then of the CTAs, added in a fixed order; the exchange
//            within the cluster overlaps the next tile

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
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "ptx/mma.cuh"

namespace mpq::kernels {

/// Shared memory of a CTA. Its slice of x follows, then the sums of x (see ActivationSlice).
template <KernelConfig C>
struct DecodeStorage {
  static constexpr int kWarpN = C.tile_n, kTiles = C.tile_n / 16;
  static constexpr int kPitch = kWarpN + 4;  // spreads the rows of a fragment over the banks
  uint4 ring[C.warps()][C.stages][kTiles][32];
  float sums[C.warps()][C.tile_m][kPitch];
  /// Count what has arrived in the two inboxes (TileReduction).
  alignas(16) std::uint64_t arrived[2];
};

/// Calls f<0>() to f<kCount - 1>().
template <int kCount, class F>
__device__ __forceinline__ void static_for(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) {
    (f.template operator()<I>(), ...);
  }
  (std::make_integer_sequence<int, kCount>{});
}

/// What a warp works through: of each of its columns of kWarpN channels, its part of each chunk of
/// K. The plan sees to it that parts are empty in one chunk only if that is the only one.
class BlockRuns {
 public:
  __device__ __forceinline__ BlockRuns(const KSplit& split, int warp_k, int column, int stride,
                                       int columns)
      : split_(split), warp_k_(warp_k), stride_(stride), columns_(columns), column_(column) {
    if (begin() == end()) column_ = columns_;
  }
  __device__ __forceinline__ bool done() const { return column_ >= columns_; }
  __device__ __forceinline__ void next() {
    if (++chunk_ == split_.chunks) chunk_ = 0, column_ += stride_;
  }
  __device__ __forceinline__ int column() const { return column_; }
  __device__ __forceinline__ int begin() const { return split_.part_begin(chunk_, warp_k_); }
  __device__ __forceinline__ int end() const { return split_.part_begin(chunk_, warp_k_ + 1); }

 private:
  const KSplit& split_;
  int warp_k_, stride_, columns_, column_, chunk_ = 0;
};

/// A lane's way through the weights, a ring of copies ahead of where it computes.
template <int WBits, KernelConfig C>
class WeightStream {
 public:
  static constexpr int kTiles = DecodeStorage<C>::kTiles;
  static constexpr int kBlockWords = KernelLayout<WBits>::kWordsPerBlock / 4;  // of 16 bytes

  /// weights: the lane's words of block 0 and tile 0; blocks: of 64 channels.
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
    constexpr unsigned kPerBlock = KernelLayout<WBits>::kBlockN / DecodeStorage<C>::kWarpN;
    left_ = runs_.done() ? 0 : runs_.end() - runs_.begin();
    const auto column = static_cast<unsigned>(runs_.column());
    source_ =
        weights_ + column % kPerBlock * (kTiles * 32) +
        (static_cast<std::int64_t>(column / kPerBlock) * blocks_ + runs_.begin()) * kBlockWords;
  }
  BlockRuns runs_;
  const uint4* weights_;
  const uint4* source_;
  int blocks_, left_, slot_ = 0;
  uint4* ring_;
};

/// Parameters of a lane's channels in one group, as stored: two neighbours of each tile. kGeneral:
/// of any kind; else integer zeros, and scales of the activations' type.
template <int WBits, int kTiles, bool kGeneral>
struct LaneParameters {
  static constexpr int kZeroWords = kTiles * static_cast<int>(sizeof(ZeroCode<WBits>)) / 2;
  std::uint32_t scales[kTiles];
  /// Packed ZeroCodes, in the first kZeroWords, or the bits of affine zeros.
  std::uint32_t zeros[kGeneral ? 2 * kTiles : kZeroWords];
};

/// A lane's way through the parameters of the groups that it meets, one group ahead.
template <int WBits, int kTiles, bool kGeneral>
class ParameterStream {
 public:
  using Parameters = LaneParameters<WBits, kTiles, kGeneral>;

  /// position: of the lane's channels within its column (parameter_position).
  __device__ __forceinline__ ParameterStream(const ForwardArguments& args, const BlockRuns& runs,
                                             int position)
      : args_(args), runs_(runs), position_(position) {
    seek();
    if (left_ > 0) fetch();
  }
  __device__ __forceinline__ Parameters take() {
    const Parameters taken = ahead_;
    if (left_ > 0) fetch();
    return taken;
  }

 private:
  static constexpr int kSteps = KernelLayout<WBits>::kStepsPerBlock;
  static constexpr unsigned kPerBlock = KernelLayout<WBits>::kBlockN / (16 * kTiles);

  __device__ __forceinline__ void seek() {
    left_ = 0;
    if (runs_.done()) return;
    group_ = group_of_step(args_, runs_.begin() * kSteps);
    left_ = group_of_step(args_, runs_.end() * kSteps - 1) - group_ + 1;
    const auto column = static_cast<unsigned>(runs_.column());
    channels_ =
        static_cast<int>(column / kPerBlock * 64 + column % kPerBlock * (2 * kTiles)) + position_;
  }
  __device__ __forceinline__ void fetch() {
    const std::int64_t row = group_;
    load<kTiles>(ahead_.scales, args_.scales + row * args_.n_padded + channels_);
    if (!kGeneral || args_.affine_zeros == nullptr) {
      load<Parameters::kZeroWords>(ahead_.zeros, static_cast<const ZeroCode<WBits>*>(args_.zeros) +
                                                     row * args_.zeros_stride + channels_);
    } else {
      load<2 * kTiles>(ahead_.zeros, args_.affine_zeros + row * args_.n_padded + channels_);
    }
    ++group_;
    if (--left_ == 0) {
      runs_.next();
      seek();
    }
  }
  template <int kWords>
  static __device__ __forceinline__ void load(std::uint32_t* words, const void* from) {
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
  const ForwardArguments& args_;
  BlockRuns runs_;
  int position_, left_ = 0, group_ = 0, channels_ = 0;
  Parameters ahead_;
};

/// The CTA's slice of x in shared memory, [pair of k-steps][row, as many as there is room for]
/// [lane % 4][16 bytes]: the registers of operand B that lane (row, lane % 4) needs for both steps.
/// And, for affine zeros, sums of x over what each warp's part has of each group.
template <DType T, KernelConfig C>
class ActivationSlice {
 public:
  static constexpr int kTilesM = C.tile_m / 8;

  __device__ __forceinline__ ActivationSlice(const ForwardArguments& args, unsigned char* shared,
                                             int m0)
      : shared_(shared),
        rows_(min(args.m - m0, C.tile_m)),
        slots_shift_(C.tile_m > 8 ? kTilesM == 2 ? 4 : 5 : args.slots_shift) {}

  __device__ __forceinline__ int rows() const { return rows_; }
  __device__ __forceinline__ int pair_bytes() const { return 64 << slots_shift_; }

  /// Columns [first, first + columns), whole pairs of steps; zero past x. A warp takes a row, or
  /// several share it, so that all loads of a thread are under way together.
  __device__ __forceinline__ void stage(const ForwardArguments& args, int m0, unsigned first,
                                        unsigned columns) const {
    constexpr int kInFlight = 4;
    if (reinterpret_cast<std::uintptr_t>(args.x) % 16 != 0 || args.ldx % 8 != 0 || args.k % 8 != 0)
        [[unlikely]] {
      stage_unaligned(args, m0, first, columns);
      return;
    }
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int shift = min(slots_shift_, 3);  // of the warps, so many have different rows
    const unsigned stride = C.threads() >> shift, chunks = columns / 8;
    const int valid = (args.k - static_cast<int>(first)) / 8;
    for (int row = warp & ((1u << shift) - 1); row < rows_; row += 1 << shift) {
      unsigned chunk = (warp >> shift) * 32 + lane;
      const auto* x = static_cast<const std::uint16_t*>(args.x) + (m0 + row) * args.ldx + first;
#pragma unroll 1
      while (chunk < chunks) {
        uint4 values[kInFlight];
#pragma unroll
        for (int i = 0; i < kInFlight; ++i) {
          values[i] = make_uint4(0, 0, 0, 0);
          // Through L2: an L1 line may be older than what the preceding kernel wrote.
          if (static_cast<int>(chunk + i * stride) < valid) {
            values[i] = __ldcg(reinterpret_cast<const uint4*>(x) + chunk + i * stride);
          }
        }
#pragma unroll
        for (int i = 0; i < kInFlight; ++i, chunk += stride) {
          if (chunk < chunks) put(row, chunk, values[i]);
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
#pragma unroll 1
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
    return shared_ + 64 * (lane / 4 & ((1 << slots_shift_) - 1)) + 16 * (lane % 4);
  }
  /// Operand B of n = 8 tile m for both steps of a pair.
  static __device__ __forceinline__ uint4 load(const unsigned char* pair_of_lane, int m) {
    return *reinterpret_cast<const uint4*>(pair_of_lane + 512 * m);
  }

 private:
  __device__ __forceinline__ void stage_unaligned(const ForwardArguments& args, int m0,
                                                  unsigned first, unsigned columns) const {
    const int valid = args.k - static_cast<int>(first);
    for (int row = 0; row < rows_; ++row) {
      const auto* x = static_cast<const std::uint16_t*>(args.x) + (m0 + row) * args.ldx + first;
#pragma unroll 1
      for (unsigned chunk = threadIdx.x; chunk < columns / 8; chunk += C.threads()) {
        std::uint16_t values[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const int column = 8 * static_cast<int>(chunk) + j;
          values[j] = column < valid ? __ldcg(x + column) : std::uint16_t{0};
        }
        put(row, chunk, bits_as<uint4>(values));
      }
    }
  }
  __device__ __forceinline__ void put(int row, unsigned chunk, const uint4& value) const {
    unsigned char* target =
        shared_ + ((chunk / 4) << (6 + slots_shift_)) + 64 * row + 4 * (chunk % 4);
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      *reinterpret_cast<std::uint32_t*>(target + 16 * q) = word_of(value, q);
    }
  }
  unsigned char* shared_;
  int rows_, slots_shift_;
};

/// What a warp accumulates of a column: a lane's share of [kWarpN channels, tile_m rows].
template <int WBits, DType T, KernelConfig C, bool kGeneral>
class DecodeAccumulator {
 public:
  /// Fewer registers for zeros where parameters take more.
  using CodesOf = Codes<WBits, T, kGeneral ? 1 : 2>;
  static constexpr int kTiles = DecodeStorage<C>::kTiles, kTilesM = C.tile_m / 8;
  using Parameters = LaneParameters<WBits, kTiles, kGeneral>;

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      scales_[t] = 0;
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) total[t][m][i] = sums_[t][m][i] = 0.f;
      }
    }
  }

  /// Adds the group's sums, scaled, to the total.
  __device__ __forceinline__ void end_group(const ForwardArguments& args) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float scale = scale_to_float(static_cast<std::uint16_t>(scales_[t] >> (16 * h)),
                                           kGeneral ? args.scales_are_bf16 : T == DType::bf16);
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
  __device__ __forceinline__ void begin_group(const ForwardArguments& args,
                                              const Parameters& parameters, const float* x_sums,
                                              int lane) {
    const bool affine = kGeneral && args.affine_zeros != nullptr;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      scales_[t] = parameters.scales[t];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        zeros_[t][h] = CodesOf::zero_of_stored(parameters.zeros, 2 * t + h);
        if (affine) zeros_[t][h] = CodesOf::zero(0);
      }
    }
    if constexpr (kGeneral) {
      if (!affine) return;
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
        const float2 x = *reinterpret_cast<const float2*>(x_sums + 8 * m + 2 * (lane % 4));
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const float b = __uint_as_float(parameters.zeros[2 * t + h]);
            total[t][m][2 * h] = __fmaf_rn(b, x.x, total[t][m][2 * h]);
            total[t][m][2 * h + 1] = __fmaf_rn(b, x.y, total[t][m][2 * h + 1]);
          }
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
        a[e] = bits_as<std::uint32_t>(
            CodesOf::fragment(word_of(words[t], e), kStep, zeros_[t][e % 2]));
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

/// Sums of a tile on their way from the warps of a cluster to y. Every CTA of the cluster owns a
/// part of the tile: the others push their sums of it into its inbox (st.async), it adds them in
/// the order of the ranks. Two inboxes, so that pushing may begin while the tile before is still
/// being added.
template <DType T, KernelConfig C>
class TileReduction {
 public:
  static constexpr int kWarpN = DecodeStorage<C>::kWarpN, kTiles = DecodeStorage<C>::kTiles;

  /// inbox: [2][rank][element of the part], after the slice of x.
  __device__ __forceinline__ TileReduction(const ForwardArguments& args, DecodeStorage<C>& storage,
                                           float* inbox, int rank, int m0)
      : args_(args),
        storage_(storage),
        inbox_(inbox),
        rank_(rank),
        m0_(m0),
        rows_(min(args.m - m0, C.tile_m)),
        count_(count_of(args)) {
    if (args.cluster_shift == 0) return;
    if (threadIdx.x == 0) {
      ptx::mbarrier_init(&storage_.arrived[0], 1);
      ptx::mbarrier_init(&storage_.arrived[1], 1);
      ptx::fence_mbarrier_init();
    }
    ptx::barrier_cluster_arrive_relaxed();
  }

  /// Adds the sums of the CTA's warps, in their order, and sends them to their owners.
  __device__ __forceinline__ void publish(const float (&total)[kTiles][C.tile_m / 8][4],
                                          int column) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const bool alone = args_.cluster_shift == 0;
    auto& sums = storage_.sums;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int m = 0; m < C.tile_m / 8; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sums[warp][8 * m + 2 * (lane % 4) + i % 2][16 * t + lane / 4 + 8 * (i / 2)] =
              total[t][m][i];
        }
      }
    }
    finish();
    if (!alone) {
      // All inboxes are there (first time), or the one to be filled has been emptied.
      ptx::barrier_cluster_wait();
      ptx::barrier_cluster_arrive_relaxed();
    }
    __syncthreads();
    column_ = column;
    const int part = count_ >> args_.cluster_shift;
    std::uint64_t* arrived = &storage_.arrived[tiles_ & 1];
    float* inbox = inbox_ + (tiles_ & 1) * count_ + rank_ * part;
    if (!alone && threadIdx.x == 0) {
      ptx::mbarrier_arrive_expect_tx(arrived, 4 * count_);
    }
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < count_; i += C.threads()) {
      const Place place(i, args_.warps_n_shift);
      float sum = 0.f;
#pragma unroll 1
      for (int w = place.warp; w < C.warps(); w += 1 << args_.warps_n_shift) {
        sum += sums[w][place.m][place.n];
      }
      if (alone) {
        store(place, sum);
      } else {
        ptx::st_async(inbox + (i & (part - 1)), sum, arrived,
                      i >> (count_shift(args_) - args_.cluster_shift));
      }
    }
    __syncthreads();  // the warps' sums may be written again
    published_ = !alone;
    ++tiles_;
  }

  /// Writes y of the tile that was published last, if that is left to be done.
  __device__ __forceinline__ void finish() {
    if (!published_) return;
    published_ = false;
    const int last = tiles_ - 1;
    ptx::mbarrier_wait(&storage_.arrived[last & 1], static_cast<unsigned>(last / 2) & 1u);
    const int part = count_ >> args_.cluster_shift;
    const float* inbox = inbox_ + (last & 1) * count_;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < part; i += C.threads()) {
      float sum = 0.f;
#pragma unroll
      for (int rank = 0; rank < 8; ++rank) {
        if (rank < 1 << args_.cluster_shift) sum += inbox[rank * part + i];
      }
      store(Place(rank_ * part + i, args_.warps_n_shift), sum);
    }
    __syncwarp();
  }

  __device__ __forceinline__ int inbox_floats() const {
    return args_.cluster_shift == 0 ? 0 : 2 * count_;
  }
  /// The cluster's barrier is left as it was found.
  __device__ __forceinline__ void leave() {
    if (args_.cluster_shift > 0) ptx::barrier_cluster_wait();
  }

 private:
  // Element i of [row][column of the tile][channel of the column].
  struct Place {
    int n, warp, m;
    __device__ __forceinline__ Place(unsigned i, int warps_n_shift)
        : n(static_cast<int>(i % kWarpN)),
          warp(static_cast<int>(i / kWarpN & ((1u << warps_n_shift) - 1))),
          m(static_cast<int>(i / kWarpN >> warps_n_shift)) {}
  };
  static __device__ __forceinline__ int count_shift(const ForwardArguments& args) {
    return args.slots_shift + (kWarpN == 64 ? 6 : 5) + args.warps_n_shift;
  }
  static __device__ __forceinline__ int count_of(const ForwardArguments& args) {
    return 1 << count_shift(args);
  }
  __device__ __forceinline__ void store(const Place& place, float sum) const {
    const int channel = (column_ + place.warp) * kWarpN + place.n;
    if (channel >= args_.n || place.m >= rows_) return;
    if (args_.bias != nullptr) sum += __ldg(args_.bias + channel);
    static_cast<Scalar<T>*>(
        args_.y)[static_cast<std::int64_t>(m0_ + place.m) * args_.ldy + channel] = round_to<T>(sum);
  }
  const ForwardArguments& args_;
  DecodeStorage<C>& storage_;
  float* inbox_;
  int rank_, m0_, rows_, count_, column_ = 0, tiles_ = 0;
  bool published_ = false;
};

/// The CTA's work. No group of columns of K may begin but at multiples of kCheck k-steps.
template <int WBits, DType T, KernelConfig C, int kCheck, bool kGeneral>
__device__ __forceinline__ void decode_tiles(const ForwardArguments& args,
                                             DecodeStorage<C>& storage, unsigned char* slice) {
  using Layout = KernelLayout<WBits>;
  using Slice = ActivationSlice<T, C>;
  constexpr int kTiles = DecodeStorage<C>::kTiles, kTilesM = C.tile_m / 8;
  constexpr int kSteps = Layout::kStepsPerBlock, kSegment = kSteps < 4 ? kSteps : 4;
  static_assert(kSegment % kCheck == 0);
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int warp_n = warp & ((1 << args.warps_n_shift) - 1), warp_k = warp >> args.warps_n_shift;
  const auto columns = static_cast<int>(static_cast<unsigned>(args.n_padded) / C.tile_n);
  const int first_column = static_cast<int>(blockIdx.x >> args.cluster_shift) << args.warps_n_shift;
  const int m0 = static_cast<int>(blockIdx.y) * C.tile_m;
  const auto blocks = static_cast<int>(static_cast<unsigned>(args.k_padded) / Layout::kBlockK);
  const KSplit split{C.warps() >> args.warps_n_shift,
                     args.chunks,
                     1 << args.cluster_shift,
                     static_cast<int>(blockIdx.x & ((1u << args.cluster_shift) - 1)),
                     args.base,
                     args.extra};

  // Start: weights and parameters are on their way before x exists.
  const BlockRuns runs(split, warp_k, first_column + warp_n, args.column_stride, columns);
  WeightStream<WBits, C> weights(storage.ring[warp], lane, runs, args.qweight + lane, blocks);
  ParameterStream<WBits, kTiles, kGeneral> parameters(args, runs, lane / 4 * 8);
  const Slice x(args, slice, m0);
  float* inbox = reinterpret_cast<float*>(slice + split.most() * kSteps / 2 * x.pair_bytes());
  TileReduction<T, C> reduction(args, storage, inbox, split.rank, m0);
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();

  float* x_sums = inbox + reduction.inbox_floats();
  if constexpr (kGeneral) {
    x_sums += warp_k *
              decode_most_groups(split.most_of_part() * Layout::kBlockK, args.group_shift) *
              C.tile_m;
  }
  DecodeAccumulator<WBits, T, C, kGeneral> sums;
  bool staged = false;
#pragma unroll 1
  for (int column = first_column; column < columns; column += args.column_stride) {
    sums.clear();
#pragma unroll 1
    for (int chunk = 0; chunk < split.chunks; ++chunk) {
      const int first = split.part_begin(chunk, 0), last = split.part_begin(chunk, split.warps);
      const int begin = split.part_begin(chunk, warp_k), end = split.part_begin(chunk, warp_k + 1);

      // x of the chunk; once and for all if there is only one.
      if (!staged || split.chunks > 1) {
        if (staged) __syncthreads();
        x.stage(args, m0, static_cast<unsigned>(first) * Layout::kBlockK,
                static_cast<unsigned>(last - first) * Layout::kBlockK);
        __syncthreads();
        if constexpr (kGeneral) {
          if (args.affine_zeros != nullptr && warp_n == 0) {
            x.sum_groups(args, begin * kSteps, end * kSteps, first * kSteps, x_sums, lane);
          }
          __syncthreads();
        }
        staged = true;
      }
      if (column + warp_n >= columns) continue;

      // Multiply.
      const float* group_sums = x_sums;
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
                if (starts_group(args, step + kStep) || (kStep == 0 && step == begin * kSteps)) {
                  sums.end_group(args);
                  sums.begin_group(args, parameters.take(), group_sums, lane);
                  group_sums += C.tile_m;
                }
              }
              std::uint32_t half[kTilesM][2];
#pragma unroll
              for (int m = 0; m < kTilesM; ++m) {
                half[m][0] = kHalf == 0 ? b[m].x : b[m].z;
                half[m][1] = kHalf == 0 ? b[m].y : b[m].w;
              }
              sums.template multiply<kStep>(words, half);
            });
          });
          step += kSegment;
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
      sums.end_group(args);
    }
    reduction.publish(sums.total, column);
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
  unsigned char* shared = ptx::dynamic_shared_memory();
  auto& storage = *reinterpret_cast<DecodeStorage<C>*>(shared);
  unsigned char* slice = shared + sizeof(DecodeStorage<C>);
  // Look for the beginning of a group as seldom as the groups allow. Groups below 64 columns are
  // always taken for general: one variant less for each.
  constexpr int kSeldom = KernelLayout<WBits>::kStepsPerBlock < 4 ? 2 : 4;
  const bool general = args.affine_zeros != nullptr || args.scales_are_bf16 != (T == DType::bf16);
  if (args.group_shift >= (kSeldom == 4 ? 6 : 5)) {
    if (general) {
      decode_tiles<WBits, T, C, kSeldom, true>(args, storage, slice);
    } else {
      decode_tiles<WBits, T, C, kSeldom, false>(args, storage, slice);
    }
  } else if (kSeldom == 4 && args.group_shift == 5) {
    decode_tiles<WBits, T, C, 2, true>(args, storage, slice);
  } else {
    decode_tiles<WBits, T, C, 1, true>(args, storage, slice);
  }
}

}  // namespace mpq::kernels

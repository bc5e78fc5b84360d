#pragma once
// How scales and zeros come to the kernels that multiply one or two rows as fixed-point numbers
// (decode_fixed_point.cuh): from memory or, where they are of the usual kinds, by way of a ring in
// shared memory; and to the sums.

#include <cstdint>

#include "arguments.hpp"
#include "decode_streams.cuh"
#include "dequant.cuh"
#include "mpq/kernel_shape.hpp"
#include "mpq/layout.hpp"
#include "ptx/memory.cuh"
#include "static_for.cuh"

namespace mpq::kernels {

/// How scales and zeros come to the lanes.
enum class ParameterWay : std::uint8_t {
  memory,       ///< of any kind and groups: each lane reads its own, a sum ahead (UnitParameters)
  ring,         ///< integer zeros, scales of the activations' type or float16, groups of 128
                ///< columns and more (ParameterRing)
  small_ring,   ///< the same, groups of 64 and 32 (GroupRing)
  affine_ring,  ///< affine zeros of float32, scales of the activations' type, any groups
  narrow_ring,  ///< affine zeros, too, of the activations' type
  packed_ring,  ///< packed statistics, groups of 32 or 64
};

/// A warp's part of K in each of its columns of 64 channels; in units.
class UnitRuns {
 public:
  static constexpr bool kEvenly = true;  // as in BlockRuns
  __device__ __forceinline__ UnitRuns(int begin, int end, int column, int stride, int columns)
      : begin_(begin), end_(end), column_(column), stride_(stride), columns_(columns) {}
  __device__ __forceinline__ int column() const { return column_; }
  __device__ __forceinline__ int stride() const { return stride_; }
  __device__ __forceinline__ int begin() const { return begin_; }
  __device__ __forceinline__ int end() const { return end_; }
  __device__ __forceinline__ bool empty() const { return column_ >= columns_ || begin_ == end_; }
  __device__ __forceinline__ void next() { column_ += stride_; }

 private:
  int begin_, end_, column_, stride_, columns_;
};

/// A lane's way through scales and zeros of any kind, a sum ahead.
template <int WBits, DType T>
class UnitParameters {
 public:
  static constexpr int kUnitK = KernelLayout<WBits>::kAlignK;  // decode_unit_k
  static constexpr int kHalfK = KernelLayout<WBits>::kBlockK / 2;
  using Parameters = LaneParameters<WBits, T, 4, true>;

  /// columns: of a sum. halves: the third and fourth of four lanes have those of them that are in
  /// the upper half of a block, the others the lower ones.
  __device__ __forceinline__ UnitParameters(const ForwardArguments& args, const UnitRuns& runs,
                                            int columns, bool halves, int lane)
      : args_(args), runs_(runs), halves_(halves), lane_(lane), columns_(columns) {
    begin_run();
    advance();
  }
  __device__ __forceinline__ void begin() const {}
  /// Of the sums that end next.
  __device__ __forceinline__ const Parameters& ahead() const { return ahead_; }
  /// Goes to the sums after them.
  __device__ __forceinline__ void advance() {
    if (left_ == 0) return;
    ahead_.load(args_, at(column_, args_.n_padded), at(column_, args_.zeros_stride));
    if (halves_) {
      column_ += columns_ / 2;
      if (column_ % kHalfK == 0) column_ += kHalfK;
    } else {
      column_ += columns_;
    }
    left_ -= columns_;
    if (left_ == 0) {
      runs_.next();
      begin_run();
    }
  }

 private:
  // In parameters of which a group's row is `stride` from the next.
  __device__ __forceinline__ std::uint32_t at(int column, int stride) const {
    return static_cast<std::uint32_t>(column >> args_.group_shift) *
               static_cast<std::uint32_t>(stride) +
           channels_;
  }
  __device__ __forceinline__ void begin_run() {
    left_ = 0;
    if (runs_.empty()) return;
    const int units = runs_.end() - runs_.begin(), first = runs_.begin() * kUnitK;
    left_ = units * kUnitK;
    channels_ = static_cast<std::uint32_t>(runs_.column() * 64 + lane_ / 4 * 8);
    // The run's parameters, one unit a lane, from memory to the L2 cache: a unit takes less time
    // than that.
    if (lane_ > 0 && lane_ < units) {
      const int column = first + lane_ * kUnitK;
      const std::uint32_t parameter = at(column, args_.n_padded);
      if (args_.statistics != nullptr) {
        ptx::prefetch_l2(args_.statistics + parameter);
        ptx::prefetch_l2(args_.statistic_bases + statistic_base_of(parameter));
      } else {
        ptx::prefetch_l2(args_.scales + parameter);
      }
      if (args_.affine_zeros != nullptr) {
        if (affine_zero_bytes<WBits>(args_) == 4) {
          ptx::prefetch_l2(static_cast<const float*>(args_.affine_zeros) + parameter);
        } else {
          ptx::prefetch_l2(static_cast<const std::uint16_t*>(args_.affine_zeros) + parameter);
        }
      } else if (args_.zeros != nullptr) {
        ptx::prefetch_l2(static_cast<const ZeroCode<WBits>*>(args_.zeros) +
                         at(column, args_.zeros_stride));
      }
    }
    column_ = first + (halves_ && lane_ % 4 >= 2 ? kHalfK : 0);
  }
  const ForwardArguments& args_;
  UnitRuns runs_;
  bool halves_;
  int lane_, columns_, left_, column_;
  std::uint32_t channels_;
  Parameters ahead_;
};

/// Words of shared memory: 2, or 4 at a time.
template <int kWords>
__device__ __forceinline__ void read_words(std::uint32_t* words, const unsigned char* from) {
  if constexpr (kWords == 2) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    words[0] = v.x, words[1] = v.y;
  } else {
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      const uint4 v = *reinterpret_cast<const uint4*>(from + 4 * i);
      words[i] = v.x, words[i + 1] = v.y, words[i + 2] = v.z, words[i + 3] = v.w;
    }
  }
}

/// The same by way of a ring in shared memory, asked for with their weights: what waits behind
/// these does not come sooner. For integer zeros and scales of type T, and groups of 128 columns
/// and more. kHalves: of the two of a unit of 256 the third and fourth of four lanes have the upper
/// one; else each lane has one after the other.
template <int WBits, DType T, KernelConfig C, bool kHalves>
class ParameterRing {
 public:
  static constexpr int kUnitK = KernelLayout<WBits>::kAlignK, kSums = kUnitK / 128;
  using Parameters = LaneParameters<WBits, T, 4, false>;
  static constexpr int kZeroSize = sizeof(ZeroCode<WBits>);
  static constexpr int kScaleBytes = 64 * 2, kSumBytes = kScaleBytes + 64 * kZeroSize;
  static constexpr int kSlotBytes = kSums * kSumBytes, kBytes = C.stages * kSlotBytes;
  static_assert(C.warps() * kBytes == decode_parameter_bytes(C, WBits));

  /// What copies, for WeightStream: a lane 16 bytes of scales or zeros.
  class Copier {
   public:
    __device__ __forceinline__ Copier(const ForwardArguments& args, unsigned char* ring,
                                      const UnitRuns& runs, int lane)
        : args_(args), to_(ring + 16 * lane), runs_(runs), lane_(lane), unit_(runs.begin()) {
      const unsigned column_bytes = 64 * (is_scale() ? 2 : kZeroSize);
      const unsigned place_bytes = 16 * place() - (is_scale() ? 0 : kScaleBytes);
      from_ = static_cast<const unsigned char*>(is_scale() ? args.scales : args.zeros) +
              (static_cast<unsigned>(runs.column()) * column_bytes + place_bytes);
      column_stride_ = runs.stride() * static_cast<int>(column_bytes);
    }
    __device__ __forceinline__ void begin() const { __syncwarp(); }  // what was there has been read
    /// Starts the next unit's.
    __device__ __forceinline__ void copy() {
      if (lane_ < kSlotBytes / 16) {
        const auto group =
            static_cast<unsigned>((unit_ * kUnitK + sum() * 128) >> args_.group_shift);
        const auto stride =
            static_cast<unsigned>(is_scale() ? 2 * args_.n_padded : kZeroSize * args_.zeros_stride);
        ptx::cp_async_16(to_ + slot_, from_ + std::uint64_t{group} * stride);
      }
      slot_ = slot_ == kBytes - kSlotBytes ? 0 : slot_ + kSlotBytes;
      const bool turns = ++unit_ == runs_.end();
      if (turns) from_ += column_stride_;
      if (turns) unit_ = runs_.begin();
    }

   private:
    __device__ __forceinline__ int sum() const { return kSums == 1 ? 0 : lane_ / (kSumBytes / 16); }
    __device__ __forceinline__ int place() const { return lane_ - sum() * (kSumBytes / 16); }
    __device__ __forceinline__ bool is_scale() const { return place() < kScaleBytes / 16; }
    const ForwardArguments& args_;
    unsigned char* to_;
    UnitRuns runs_;
    int lane_, unit_, slot_ = 0;
    int column_stride_;  // bytes from column to column
    const unsigned char* from_;
  };

  __device__ __forceinline__ ParameterRing(const unsigned char* ring, int lane)
      : scales_(ring + sum_at(lane) + lane / 4 * 16),
        zeros_(ring + sum_at(lane) + kScaleBytes + lane / 4 * (8 * kZeroSize)) {}

  /// When the first block of the unit that they are of has been taken.
  __device__ __forceinline__ void begin() {
    __syncwarp();  // what other lanes have copied
    read_words<4>(ahead_.scales, scales_ + slot_);
    read_words<2 * kZeroSize>(ahead_.zeros, zeros_ + slot_);
    constexpr int kStep = kHalves ? kSlotBytes : kSumBytes;
    slot_ = slot_ == kBytes - kStep ? 0 : slot_ + kStep;
  }
  __device__ __forceinline__ const Parameters& ahead() const { return ahead_; }
  __device__ __forceinline__ void advance() const {}

 private:
  // Of the lane's first sum, in a unit's parameters.
  static __device__ __forceinline__ int sum_at(int lane) {
    return kHalves && kSums > 1 && lane % 4 >= 2 ? kSumBytes : 0;
  }
  const unsigned char *scales_, *zeros_;
  int slot_ = 0;
  Parameters ahead_;
};

/// The same for smaller groups and other zeros, of a width whose unit is 128. kEnds: sums that end
/// in a unit, one after the other; where groups are smaller than a block the third and fourth of
/// four lanes have those of its upper half.
template <int WBits, DType T, KernelConfig C, ParameterWay kWay, int kEnds>
class GroupRing {
 public:
  using Layout = KernelLayout<WBits>;
  static constexpr int kUnitK = Layout::kAlignK, kSlots = decode_units_ahead(C, WBits);
  static_assert(kUnitK == 128 && (kEnds == 1 || kEnds == 2));
  static constexpr bool kNarrow = kWay == ParameterWay::narrow_ring;
  static constexpr bool kAffine = kWay == ParameterWay::affine_ring || kNarrow;
  static constexpr bool kPacked = kWay == ParameterWay::packed_ring;
  /// Of 64 channels: scales, zeros; or codes of statistics, their bases.
  static constexpr int kScaleBytes = 64 * (kPacked ? 1 : 2);
  static constexpr int kZeroBytes =
      kPacked ? 64 / kStatisticChannels * 8
              : 64 * (kNarrow   ? 2
                      : kAffine ? 4
                                : static_cast<int>(sizeof(ZeroCode<WBits>)));
  static constexpr int kRowBytes = kScaleBytes + kZeroBytes;
  static_assert(kRowBytes <= decode_group_bytes(WBits, kNarrow ? 2 : kAffine || kPacked ? 4 : 0));
  static constexpr int kRowPieces = kRowBytes / 16, kCopyRows = kPacked ? 4 : 24 / kRowPieces;
  static constexpr int kLanes = kCopyRows * kRowPieces;  // that copy

  /// Groups of a unit, as many rows of a slot.
  static __device__ __forceinline__ int rows(const ForwardArguments& args) {
    return max(kUnitK >> args.group_shift, 1);
  }
  /// Of a warp.
  static __device__ __forceinline__ int bytes(const ForwardArguments& args) {
    return kSlots * kRowBytes * rows(args);
  }
  /// What copies, for WeightStream: a lane 16 bytes at a time.
  class Copier {
   public:
    __device__ __forceinline__ Copier(const ForwardArguments& args, unsigned char* ring,
                                      const UnitRuns& runs, int lane)
        : runs_(runs),
          lane_(lane),
          unit_(runs.begin()),
          rows_(rows(args)),
          group_shift_(args.group_shift) {
      const int row = lane / kRowPieces, piece = lane % kRowPieces;
      to_ = ring + position(row, rows_) * kRowBytes + 16 * piece;
      const bool scale = piece < kScaleBytes / 16;
      const unsigned column_bytes = scale ? kScaleBytes : kZeroBytes;
      const void* scales = kPacked ? static_cast<const void*>(args.statistics) : args.scales;
      const void* zeros = kPacked   ? static_cast<const void*>(args.statistic_bases)
                          : kAffine ? args.affine_zeros
                                    : args.zeros;
      // From group to group.
      const auto columns = static_cast<unsigned>(args.n_padded) / 64;
      stride_ = scale || kPacked || kAffine ? columns * column_bytes
                                            : static_cast<unsigned>(args.zeros_stride) *
                                                  static_cast<unsigned>(sizeof(ZeroCode<WBits>));
      from_ = static_cast<const unsigned char*>(scale ? scales : zeros) +
              static_cast<unsigned>(runs.column()) * column_bytes +
              (16 * piece - (scale ? 0 : kScaleBytes)) + static_cast<unsigned>(row) * stride_;
      column_stride_ = runs.stride() * static_cast<int>(column_bytes);
    }
    __device__ __forceinline__ void begin() const { __syncwarp(); }  // what was there has been read
    /// Starts the next unit's.
    __device__ __forceinline__ void copy() {
      const unsigned group = static_cast<unsigned>(unit_ * kUnitK) >> group_shift_;
#pragma unroll
      for (int row = 0; row < kUnitK / kLeastGroup; row += kCopyRows) {
        // (Where all rows are copied at once there may be fewer than lanes for them.)
        if (lane_ < kLanes && row + (kPacked ? lane_ / kRowPieces : 0) < rows_) {
          ptx::cp_async_16(to_ + slot_ + position(row, rows_) * kRowBytes,
                           from_ + std::uint64_t{group + row} * stride_);
        }
      }
      slot_ += rows_ * kRowBytes;
      if (slot_ == kSlots * kRowBytes * rows_) slot_ = 0;
      const bool turns = ++unit_ == runs_.end();
      if (turns) from_ += column_stride_;
      if (turns) unit_ = runs_.begin();
    }

   private:
    UnitRuns runs_;
    int lane_, unit_, rows_, group_shift_, slot_ = 0;
    int column_stride_;  // bytes from column to column
    unsigned stride_;
    unsigned char* to_;
    const unsigned char* from_;
  };

  /// What LaneParameters has, of affine zeros.
  struct AffineParameters {
    std::uint32_t scales[4], zeros[kNarrow ? 4 : 8];
    template <int kTile>
    __device__ __forceinline__ AffinePair affine_pair(const ForwardArguments& /*args*/) const {
      const float2 scale = to_float2<T>(bits_as<Pair<T>>(scales[kTile]));
      if constexpr (kNarrow) {
        const float2 affine = to_float2<T>(bits_as<Pair<T>>(zeros[kTile]));
        return {{scale.x, scale.y}, {affine.x, affine.y}};
      } else {
        return {{scale.x, scale.y},
                {__uint_as_float(zeros[2 * kTile]), __uint_as_float(zeros[2 * kTile + 1])}};
      }
    }
  };
  /// The same of packed statistics.
  struct PackedParameters {
    std::uint32_t scales[2], zeros[4];
    template <int kTile>
    __device__ __forceinline__ AffinePair affine_pair(const ForwardArguments& /*args*/) const {
      return affine_pair_of<T, kTile>(scales, zeros);
    }
  };
  using Parameters = std::conditional_t<
      kAffine, AffineParameters,
      std::conditional_t<kPacked, PackedParameters, LaneParameters<WBits, T, 4, false>>>;

  __device__ __forceinline__ GroupRing(const ForwardArguments& args, const unsigned char* ring,
                                       int lane)
      : scales_(ring + lane / 4 * (kScaleBytes / 8)),
        zeros_(ring + kScaleBytes + (kPacked ? 0 : lane / 4 * (kZeroBytes / 8))),
        step_(rows(args) / kEnds * kRowBytes),
        bytes_(bytes(args)) {
    const bool upper = args.group_shift < kLog2<Layout::kBlockK> && lane % 4 >= 2;
    if (upper) scales_ += kRowBytes, zeros_ += kRowBytes;
  }
  /// When the block of the sum that they are of has been taken.
  __device__ __forceinline__ void begin() {
    __syncwarp();  // what other lanes have copied
    read_words<kScaleBytes / 32>(ahead_.scales, scales_ + slot_);
    read_words<kPacked ? 4 : kZeroBytes / 32>(ahead_.zeros, zeros_ + slot_);
    slot_ = slot_ + step_ == bytes_ ? 0 : slot_ + step_;
  }
  __device__ __forceinline__ const Parameters& ahead() const {
    return ahead_;
  }
  __device__ __forceinline__ void advance() const {}

 private:
  // Row of a slot where a group of the unit is: those of a sum's halves side by side.
  static __device__ __forceinline__ int position(int group, int rows) {
    constexpr bool kInTurn = Layout::kBlockK == kUnitK;  // groups of one half, then the other's
    return kInTurn && rows == 4 ? group % 2 * 2 + group / 2 : group;
  }
  const unsigned char *scales_, *zeros_;
  int step_, bytes_, slot_ = 0;
  Parameters ahead_;
};

/// Adds a group's sums, scaled, to a lane's totals. x: the sum of x; sum(i): of q x of channel
/// lane / 4 + 8 i. What integer zeros take off is exact.
template <ParameterWay kWay, int kTotals, class Parameters, class Sum>
__device__ __forceinline__ void add_scaled(const ForwardArguments& args,
                                           const Parameters& parameters, int x, const Sum& sum,
                                           float (&total)[kTotals]) {
  constexpr bool kInteger = kWay == ParameterWay::ring || kWay == ParameterWay::small_ring;
  constexpr bool kAffine = !kInteger && kWay != ParameterWay::memory;
  if (kAffine || (!kInteger && args.zeros == nullptr)) {
    if constexpr (!kInteger) {
      const auto x_float = static_cast<float>(x);
      static_for<kTotals / 2>([&]<int kTile>() {
        const AffinePair pair = parameters.template affine_pair<kTile>(args);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int i = 2 * kTile + h;
          total[i] = __fmaf_rn(pair.affine[h], x_float, total[i]);
          total[i] = __fmaf_rn(pair.scale[h], static_cast<float>(sum(i)), total[i]);
        }
      });
    }
  } else if constexpr (!kAffine) {
    const int minus_x = ptx::opaque(-x);
#pragma unroll
    for (int i = 0; i < kTotals; ++i) {
      const auto exact = static_cast<float>(sum(i) + parameters.zero(i / 2, i % 2) * minus_x);
      total[i] = __fmaf_rn(parameters.scale(args, i / 2, i % 2), exact, total[i]);
    }
  }
}

}  // namespace mpq::kernels

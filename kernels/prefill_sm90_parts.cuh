#pragma once
// What the parts of the Hopper prefill kernel share: its arguments, its memory, and who works on
// what.

#include <cuda.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "arguments.hpp"
#include "dequant.cuh"
#include "mpq/kernel_shape.hpp"
#include "mpq/layout.hpp"
#include "ptx/cluster.cuh"
#include "ptx/mbarrier.cuh"

namespace mpq::kernels {

/// One launch; a __grid_constant__ parameter.
struct HopperPrefillArguments {
  // Close together, for the constant cache: see ptx::fetch_arguments.
  ForwardArguments forward;
  int tiles_n, tiles_m;  ///< tiles of a cluster (multicast * tile_n channels) and of tile_m rows
  int multicast, split;  ///< CTAs of a cluster
  // Divided on the host, where it costs nothing:
  int slice_chunks, longer_slices;  ///< chunks of a slice of K; so many slices have one more
  std::uint32_t split_reciprocal, tiles_m_reciprocal;  ///< times 2^31, and a little more
  int first_channel;                                   ///< of the first tile
  int x_rows;                                          ///< of a box of x
  int parameter_bytes;             ///< of the scales and zeros of a tile's channels and a stage
  int strip_scales, strip_zeros;   ///< of 64 channels of a group, pieces of 8 bytes
  std::uint32_t fused_multiplier;  ///< of the layer's scales, in FusedWeights
  float fused_result;              ///< 2^fused_shift, for the sums
  bool zeros_are_shared;           ///< all groups have the same, see shared_zero_rows
  bool exchanges;         ///< sums of slices and phases are added up; a cluster then has one tile
  bool followed;          ///< by a launch that computes other channels of the same y, and only
  bool follows;           ///< begins when the kernels before this one have ended: such a launch
  bool x_by_stages;       ///< a box of x is a stage
  bool x_by_tma;          ///< else x's rows are not 16-byte aligned, and multicast is 1
  bool y_by_pieces;       ///< y's rows are whole pieces of 16 bytes, aligned
  bool zeros_are_affine;  ///< of FusedWeights' layer: `zeros` are not ZeroCodes but of 16 bits
  std::uint32_t fused_zero;  ///< what zeros are multiplied by, in FusedWeights
  float most_zero;           ///< of GeneralWeights
  /// [m, k] halves, boxes [x_rows][64], 128-byte swizzle; or [k / 64][m][64], boxes of a stage.
  CUtensorMap x;
  CUtensorMap last_x;  ///< the same with boxes of the rows that are left for the last of them
  CUtensorMap y;       ///< [m, n] halves, boxes [rows of kBoxPasses][64], 128-byte swizzle
  /// Where kParameterBoxes: [kernel groups][pieces of 8 bytes]; a box is what of a tile's channels
  /// begins in a stage. Zeros may be affine; of packed statistics these are codes and bases.
  CUtensorMap scales, zeros;
  CUtensorMap weights;  ///< [strips of 64 channels][KiB along K][256] words, a tile's chunk a box
};

/// What divide() wants of a divisor.
inline std::uint32_t reciprocal(int divisor) {
  return (1u << 31) / static_cast<unsigned>(divisor) + 1;
}
/// number / divisor, by its reciprocal: right below 2^31 / divisor, else maybe one too much.
__device__ __forceinline__ int divide(int number, std::uint32_t reciprocal) {
  return static_cast<int>(std::uint64_t{static_cast<unsigned>(number)} * reciprocal >> 31);
}
__device__ __forceinline__ int over_split(const HopperPrefillArguments& args, int number) {
  return divide(number, args.split_reciprocal);
}

/// The slice of K of a CTA with this rank in its cluster.
__device__ __forceinline__ int slice_of_rank(const HopperPrefillArguments& args, int rank) {
  return args.multicast == 2 ? rank / 2 : rank;
}

/// Slices of K at most: CTAs of a cluster.
inline constexpr int kMostSlices = 8;

/// Which layers a kernel is for.
enum class Dequantising : std::uint8_t {
  fused,     ///< those whose weights one multiply-add makes (FusedWeights)
  stepwise,  ///< integer zeros, scales of the activations' type
  general,   ///< all: affine zeros, scales of the other type
};
/// What affine zeros are to code of a general kernel.
enum class AffineZeros : std::uint8_t { narrow, wide, either };  // affine_zero_bytes
/// Whether there is code for it: of raised codes there is nothing to fuse, and what is left of 1
/// and 2 bits is for general kernels.
constexpr bool is_compiled(const KernelConfig& config, int bits, Dequantising way) noexcept {
  const bool fuses = fuses_weights(config, bits);
  return way == Dequantising::fused      ? fuses
         : way == Dequantising::stepwise ? !fuses || bits > 2
                                         : true;
}

/// What the kernel's parts agree on.
template <int WBits, KernelConfig C>
struct HopperPrefillShape {
  using Layout = KernelLayout<WBits>;
  static constexpr bool kFewRows = !shares_x(C);
  static constexpr int kChunkK = prefill_chunk_k(C, WBits);
  static constexpr bool kRaised = multiplies_raised_codes(C, WBits);
  /// Weights that one multiply-add makes can have affine zeros, in place of codes.
  static constexpr bool kMayBeAffine = fuses_weights(C, WBits) && fuses_affine_zeros(WBits);
  static constexpr int kStageK = has_long_stages(C) ? kChunkK : 64;
  static constexpr int kStageSteps = kStageK / Layout::kStepK;
  /// Steps of a body of the loop of kRaised, where sums are of kSumSteps steps: what sums lie side
  /// by side or, where registers are short or code would be long, those of one; of 8 rows and the
  /// smallest groups two, for all of a stage make ptxas lengthen the bodies for others.
  template <int kSumSteps, bool kGeneral>
  static constexpr int kRaisedBodySteps = [] {
    if (kSumSteps == 8 && !kGeneral) return kStageSteps;
    if (C.tile_m == 8) return kSumSteps == 2 ? 4 : 8;
    const bool short_of_registers = C.warps() == 16 && (C.tile_m > 16 || kSumSteps < 4);
    return kGeneral || short_of_registers ? kSumSteps : 8;
  }();
  static constexpr int kSwizzledK = 64;  // columns of x that lie side by side: 128 bytes
  static constexpr int kStagesPerChunk = kChunkK / kStageK;
  /// From the beginning of a slot's x to the columns of a k-step.
  static constexpr int x_bytes(int step) {
    constexpr int kPartSteps = kSwizzledK / Layout::kStepK;
    return step / kPartSteps * (C.tile_m * kSwizzledK * 2) +
           step % kPartSteps * (Layout::kStepK * 2);
  }
  static constexpr int kBlocksPerChunk = kChunkK / Layout::kBlockK;
  /// A stage is a chunk, and one ring has both: fewer instructions for the consumers.
  static constexpr bool kOneRing = kStagesPerChunk == 1;
  /// Every stage brings its scales and zeros, not only those that groups begin in: consumers need
  /// not ask, and have them on their way together with the words. (A branch between the two is a
  /// tenth of the time of 192x64.)
  static constexpr bool kParametersEachStage = kOneRing && kStageK >= 128;
  /// A group of wgmma is this many steps, and so many groups are left in flight while the fragments
  /// of the next are made: where a product is short, fewer and longer groups are faster.
  static constexpr int kGroupSteps = kFewRows ? 2 : 1, kGroupsInFlight = kFewRows ? 1 : 2;
  static constexpr int kFragmentSets = 4;  // steps whose fragments are held
  static_assert(kGroupSteps * (kGroupsInFlight + 1) <= kFragmentSets);
  static constexpr int kConsumersN = C.warps_n / 4;  // warpgroups side by side along N,
  static constexpr int kPhases = C.warps_k;          // as often, each with every kPhases-th stage
  static constexpr int kConsumers = kConsumersN * kPhases;
  static constexpr int kThreads = 128 * (1 + kConsumers);
  static constexpr int kStrips = C.tile_n / Layout::kBlockN;  // of the CTA
  // Of 64 channels, per consumer; the last one can have fewer.
  static constexpr int kTiles = (kStrips + kConsumersN - 1) / kConsumersN;
  static constexpr bool kEvenStrips = kStrips % kConsumersN == 0;
  // Batch rows that a consumer writes at once.
  static constexpr int kPassRows = kFewRows ? std::min(C.tile_m, 16) : 32;
  static constexpr int kPasses = C.tile_m / kPassRows;
  /// y is written from registers, not by way of shared memory. (With 16 rows that gains nothing,
  /// with more it loses.)
  static constexpr bool kWritesSums = C.tile_m == 8;
  /// Scales and zeros come by tensor maps: fewer instructions a stage, but two maps more to be
  /// fetched first, which is worth it where stages are short.
  static constexpr bool kParameterBoxes = !kFewRows || C.tile_n <= 192;
  static constexpr bool kStoresByTma = !kFewRows;  // where a CTA has tile after tile
  static constexpr int kWeightBytes = kStrips * kBlocksPerChunk * Layout::kWordsPerBlock * 4;
  /// So many phases have units to add up and to write, in turn.
  static constexpr int kOwners = kStrips * kPasses % kPhases == 0 ? kPhases : 1;
  static_assert(C.family == KernelFamily::prefill && C.isa == Isa::sm90a);
  // Of a thread, when the warpgroups have their roles: what the CTA was launched with, dealt anew.
  static constexpr int kLaunchRegisters = 65536 / C.ctas_per_sm / kThreads / 8 * 8;
  static constexpr bool kShortOfRegisters = kRaised || !kEvenStrips;
  /// What a tile is (number, slice) is found anew after its products.
  static constexpr bool kForgetsTile = kRaised && C.tile_m > 8;
  static constexpr int kProducerRegisters = kRaised ? 64 : kShortOfRegisters ? 32 : 40;
  static constexpr int kConsumerRegisters = C.ctas_per_sm == 2        ? (kRaised ? 88 : 96)
                                            : kConsumers == 2         ? 232
                                            : kConsumers == 3         ? (kRaised ? 144 : 152)
                                            : kProducerRegisters > 32 ? 104
                                                                      : 112;
  static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <=
                (1 + kConsumers) * kLaunchRegisters);
  static_assert(C.threads() == 128 * kConsumers && kConsumers >= 2 && kConsumers <= 4);
  static_assert(kStrips > (kConsumersN - 1) * kTiles && C.tile_m % kPassRows == 0 &&
                C.tile_m <= 256);
  // Phases see but some of the stages, and raised codes ask at every one.
  static_assert((kPhases == 1 && !kRaised) || kParametersEachStage);
};

/// kGeneral: affine zeros, scales that are not of the activations' type.
template <int WBits, KernelConfig C, bool kGeneral>
struct HopperPrefillStorage {
  using Shape = HopperPrefillShape<WBits, C>;
  /// Groups that begin in a stage.
  static constexpr int kParameterRows = Shape::kStageK / kLeastGroup;
  /// A pass of y: 16-byte pieces permuted as in x.
  using YPass = std::uint16_t[Shape::kPassRows][Shape::Layout::kBlockN];
  static constexpr int kYBytes =
      Shape::kWritesSums ? 0 : Shape::kConsumers * static_cast<int>(sizeof(YPass));
  static constexpr int weight_stages(int stages) {
    constexpr int kPerChunk = Shape::kStagesPerChunk;
    return kPerChunk == 1 ? stages : (stages + kPerChunk - 1) / kPerChunk + 1;
  }
  /// What zeros take: affine ones that are fused have 16 bits.
  using StoredZero =
      std::conditional_t<Shape::kMayBeAffine && !kGeneral, std::uint16_t, ZeroCode<WBits>>;
  /// In the order of parameter_position, like the memory that they come from. Of packed
  /// statistics codes are in place of scales, bases in that of zeros, row after row.
  struct alignas(128) Parameters {
    std::uint16_t scales[kParameterRows][C.tile_n];
    union {
      ZeroCode<WBits> zeros[kParameterRows][C.tile_n];
      StoredZero stored_zeros[kParameterRows][C.tile_n];
      /// Or the same of 16 bits.
      float affine_zeros[kGeneral ? kParameterRows : 1][kGeneral ? C.tile_n : 1];
    };
  };
  /// [64 columns each][row][column]
  using X = std::uint16_t[Shape::kStageK / Shape::kSwizzledK][C.tile_m][Shape::kSwizzledK];
  using Weights = uint4[Shape::kStrips][Shape::kBlocksPerChunk][4][32];
  /// kRaised: of each row of x and each group's part in a stage, minus the sum of x times offsets
  /// and minus the sum of x.
  using XSums = float2[kParameterRows][Shape::kRaised ? C.tile_m : 1];
  static constexpr int kRoom = (228 << 10) / C.ctas_per_sm - (1 << 10) - 2048 - kYBytes;
  static constexpr int ring_bytes(int stages) {
    return stages * static_cast<int>(sizeof(X) + sizeof(Parameters) + sizeof(XSums)) +
           weight_stages(stages) * Shape::kWeightBytes;
  }
  /// Stages of x, and of the weights: as many as there is room for, C.stages at most. Where that is
  /// many, x comes behind 64 KiB of weights at most.
  static constexpr int kStages = [] {
    constexpr int kForY = Shape::kStoresByTma ? 2 * kYBytes : 0;
    int stages = C.stages;
    while (ring_bytes(stages) + kForY > kRoom) --stages;
    while (stages > 8 && stages * Shape::kWeightBytes > 64 << 10) --stages;
    return stages - stages % Shape::kPhases;  // a phase then has slots of its own
  }();
  static constexpr int kLeft = kRoom - ring_bytes(kStages);
  /// Passes that TMA writes at once, as a box: all of a strip's where there is room for all
  /// strips'.
  static constexpr int kBoxPasses = [] {
    if (Shape::kTiles * Shape::kPasses * kYBytes <= kLeft) return Shape::kPasses;
    return Shape::kPasses % 2 == 0 && 2 * 2 * kYBytes <= kLeft ? 2 : 1;
  }();
  /// Boxes on their way out, of each consumer.
  static constexpr int kBoxes =
      Shape::kStoresByTma
          ? std::min(kLeft / (kBoxPasses * kYBytes), Shape::kTiles* Shape::kPasses / kBoxPasses)
          : 0;
  static constexpr int kWeightStages = weight_stages(kStages);
  static_assert(kStages >= 2 && kWeightStages >= 2);
  using Boxes =
      std::conditional_t<kBoxes != 0, YPass[Shape::kConsumers][std::max(kBoxes, 1)][kBoxPasses],
                         uint4>;
  struct Rings {
    alignas(1024) X x[kStages];
    alignas(128) Weights weights[kWeightStages];
    Parameters parameters[kStages];  // in step with x
    alignas(16) XSums x_sums[kStages];
    alignas(kBoxes != 0 ? 1024 : 16) Boxes y_boxes;
  };
  /// The sums of a slice of K travel by pass and 64 channels: a unit.
  static constexpr int kUnits = Shape::kStrips * Shape::kPasses;
  struct Nothing {};
  using YPassEach = YPass[Shape::kConsumers];
  /// Part of y on its way out, of each consumer.
  [[no_unique_address]] alignas(1024) std::conditional_t<Shape::kWritesSums, Nothing, YPassEach> y;
  /// Fragments of a unit, four floats a thread.
  using Fragments = float4[Shape::kPassRows / 8][128];
  union {
    Rings rings;
    struct {
      // Of each unit, from the phases that do not own it.
      Fragments from_phases[std::max(kUnits * (Shape::kPhases - 1), 1)];
      // Of the units that this CTA adds up, from each slice. Not where phases' are, for other CTAs
      // write here when this one's rings have been read.
      Fragments inbox[kUnits + kMostSlices * Shape::kOwners - 1];
    } exchange;
  };
  std::uint64_t sums_arrived;  ///< in the inbox, from the cluster
  std::uint64_t x_full[kStages], x_empty[kStages];
  std::uint64_t x_summed[kStages];  ///< kRaised: the slot is full, and x_sums are there
  std::uint64_t weights_full[kWeightStages], weights_empty[kWeightStages];  // but for kOneRing

  /// Bytes that come into the inbox of slice `slice`.
  static __device__ __forceinline__ int inbox_bytes(const HopperPrefillArguments& args, int slice) {
    static_assert(kUnits % Shape::kOwners == 0);
    const int split = args.split;
    const int units =  // of each owner every split-th
        over_split(args, kUnits / Shape::kOwners - slice + split - 1) * Shape::kOwners;
    return units * (split - 1) * static_cast<int>(sizeof(float4)) * 128 * (Shape::kPassRows / 8);
  }
  __device__ __forceinline__ std::uint64_t* weights_full_of(int slot) {
    return Shape::kOneRing ? &x_full[slot] : &weights_full[slot];
  }
  __device__ __forceinline__ std::uint64_t* weights_empty_of(int slot) {
    return Shape::kOneRing ? &x_empty[slot] : &weights_empty[slot];
  }
};

/// Where a parameter of all groups and channels lies, in the order of parameter_position.
struct ParameterRows {
  const void* data;
  int quarters;        ///< bytes of four channels
  std::int64_t pitch;  ///< bytes from group to group; 0: all groups have the same
  __host__ __device__ __forceinline__ int bytes(int channels) const {
    return channels / 4 * quarters;
  }
  __device__ __forceinline__ const unsigned char* at(std::int64_t group, int channel) const {
    return static_cast<const unsigned char*>(data) + group * pitch + bytes(channel);
  }
};
/// Of packed statistics these are the codes, and zeros the bases.
template <bool kGeneral>
__host__ __device__ __forceinline__ ParameterRows rows_of_scales(const ForwardArguments& args) {
  if (kGeneral && args.statistics != nullptr) return {args.statistics, 4, args.n_padded};
  return {args.scales, 8, 2 * args.n_padded};
}
template <int WBits, KernelConfig C, bool kGeneral>
__host__ __device__ __forceinline__ ParameterRows rows_of_zeros(const HopperPrefillArguments& all) {
  const ForwardArguments& args = all.forward;
  if (kGeneral && args.statistics != nullptr) return {args.statistic_bases, 1, args.n_padded / 4};
  if (kGeneral && args.zeros == nullptr) {
    const int bytes = affine_zero_bytes<WBits>(args);
    return {args.affine_zeros, 4 * bytes, std::int64_t{bytes} * args.n_padded};
  }
  int bytes = sizeof(ZeroCode<WBits>);
  if (HopperPrefillShape<WBits, C>::kMayBeAffine && all.zeros_are_affine) bytes = 2;
  return {args.zeros, 4 * bytes, bytes * args.zeros_stride};
}

/// Where 16-byte piece `piece` (of 8) of row `row` lies in its 128 bytes: the 128-byte swizzle.
__device__ __forceinline__ int swizzled_piece(int row, int piece) {
  return piece ^ (row % 8);
}

/// function<steps>() with the k-steps whose products kRaised adds up before scales and zeros see
/// them: those of a group, or of 128 columns.
template <class Function>
__device__ __forceinline__ void with_sum_steps(const ForwardArguments& args, Function function) {
  switch (args.group_shift) {
    case 5:  // kLeastGroup
      function.template operator()<2>();
      break;
    case 6:
      function.template operator()<4>();
      break;
    default:
      function.template operator()<8>();
  }
}

/// Barriers of parts of the CTA (0 is __syncthreads).
enum NamedBarrier : int {
  // The consumers have made the rings' mbarriers, for which wait they and the producer's warps.
  kConsumersStart = 1,
  kParametersStart,  ///< the one that brings parameters
  kProducerStart,    ///< the others
  kProducerBarrier,
  kConsumersBarrier,
  kConsumerBarrier
};

/// Waits for the mbarriers of the rings, which the consumers make; also of neighbours who write
/// here. kBarrier: of the warps that wait here, with others of the producer if they do not consume.
/// (synccheck wants one place in the code to wait at a barrier.)
template <int WBits, KernelConfig C, NamedBarrier kBarrier>
__device__ __forceinline__ void start(const HopperPrefillArguments& args) {
  using Shape = HopperPrefillShape<WBits, C>;
  constexpr int kConsumers = 128 * Shape::kConsumers;
  if (!Shape::kFewRows && args.multicast > 1) {
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
    return;
  }
  if constexpr (kBarrier == kConsumersStart) {
    ptx::bar_arrive(kParametersStart, kConsumers + 32);
    ptx::bar_arrive(kProducerStart, kConsumers + 96);
    ptx::bar_sync(kConsumersStart, kConsumers);
  } else {
    ptx::bar_sync(kBarrier, kConsumers + (kBarrier == kParametersStart ? 32 : 96));
  }
}

template <int kStages, int kStep = 1>
struct RingCursor {
  int slot = 0;
  std::uint32_t phase = 0;
  __device__ __forceinline__ void advance() {
    slot += kStep;
    if (slot >= kStages) slot -= kStages, phase ^= 1u;
  }
};

/// The tiles of a CTA one after the other, and its slice of K.
template <int WBits, KernelConfig C>
class TileWalk {
 public:
  using Shape = HopperPrefillShape<WBits, C>;
  int n0, m0;                    ///< first channel and row of the tile
  int chunk_begin, chunk_count;  ///< of the slice
  int member;                    ///< of the CTAs that share x
  int leader;                    ///< rank in the cluster of the first of them
  int slice;

  __device__ __forceinline__ explicit TileWalk(const HopperPrefillArguments& args)
      : TileWalk(args, first(args)) {}
  /// At tile `number` of the cluster's: first() plus a multiple of step().
  __device__ __forceinline__ TileWalk(const HopperPrefillArguments& args, int number)
      : args_(args), tile_(number) {
    if constexpr (Shape::kFewRows) {  // which nobody shares
      slice = leader = static_cast<int>(blockIdx.x) - first(args) * args.split;
      member = 0;
    } else {
      const int rank = ptx::cluster_rank();
      slice = slice_of_rank(args, rank);
      member = args.multicast == 2 ? rank % 2 : 0;
      leader = rank - member;
    }
    chunk_begin = args.slice_chunks * slice + min(slice, args.longer_slices);
    chunk_count = args.slice_chunks + (slice < args.longer_slices ? 1 : 0);
    locate();
  }
  /// The cluster's index, and how many there are.
  static __device__ __forceinline__ int first(const HopperPrefillArguments& args) {
    // %clusterid is a division that takes longer.
    if constexpr (Shape::kFewRows) return over_split(args, static_cast<int>(blockIdx.x));
    return ptx::cluster_index();
  }
  static __device__ __forceinline__ int step() { return ptx::cluster_count(); }
  __device__ __forceinline__ bool valid() const { return tile_ < args_.tiles_n * args_.tiles_m; }
  __device__ __forceinline__ void next() {
    tile_ += step();
    locate();
  }

 private:
  static constexpr int kGroupRows = 2048;  // of x, what stays in L2 while W passes
  static constexpr int kGroupTiles = kGroupRows / C.tile_m;

  __device__ __forceinline__ void locate() {
    if constexpr (Shape::kFewRows) {  // so few that all of x stays in L2
      int column = divide(tile_, args_.tiles_m_reciprocal);
      if (column * args_.tiles_m > tile_) --column;
      m0 = (tile_ - column * args_.tiles_m) * C.tile_m;
      n0 = args_.first_channel + column * C.tile_n;
      return;
    }
    if (args_.tiles_m == 1) {  // divisions would take longer than what follows
      m0 = 0;
      n0 = args_.first_channel + (tile_ * args_.multicast + member) * C.tile_n;
      return;
    }
    const int group = tile_ / (kGroupTiles * args_.tiles_n);
    const int in_group = tile_ - group * kGroupTiles * args_.tiles_n;
    const int rows = min(args_.tiles_m - group * kGroupTiles, kGroupTiles);
    m0 = (group * kGroupTiles + in_group % rows) * C.tile_m;
    n0 = args_.first_channel + (in_group / rows * args_.multicast + member) * C.tile_n;
  }

  const HopperPrefillArguments& args_;
  int tile_;
};

}  // namespace mpq::kernels

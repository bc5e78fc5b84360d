#pragma once
// Scales and zeros of the channels that a lane's fragments touch.

#include <cstdint>

#include "arguments.hpp"
#include "dequant.cuh"
#include "mpq/layout.hpp"
#include "statistics.cuh"

namespace mpq::kernels {

/// Of one tile of 16 channels, as stored: a lane's fragments hold channels lane / 4 (h = 0) and
/// lane / 4 + 8 (h = 1), which are neighbours in memory (parameter_position).
template <int WBits>
class TileParameters {
 public:
  /// position: of the pair in a group's row of parameters; even, < n_padded.
  __device__ __forceinline__ void load(const ForwardArguments& args, int group, int position) {
    using Zero = ZeroCode<WBits>;
    const std::int64_t at = static_cast<std::int64_t>(group) * args.n_padded + position;
    if (args.statistics != nullptr) {
      scales_ = __ldg(reinterpret_cast<const std::uint16_t*>(args.statistics + at));
      const uint2 base = __ldg(args.statistic_bases + statistic_base_of(at));
      zeros_[0] = base.x, zeros_[1] = base.y;
      return;
    }
    scales_ = __ldg(reinterpret_cast<const std::uint32_t*>(args.scales + at));
    if (args.zeros != nullptr) {
      const Zero* zeros = static_cast<const Zero*>(args.zeros) +
                          static_cast<std::int64_t>(group) * args.zeros_stride + position;
      if constexpr (sizeof(Zero) == 2) {
        zeros_[0] = __ldg(reinterpret_cast<const std::uint32_t*>(zeros));
      } else {
        zeros_[0] = __ldg(reinterpret_cast<const std::uint16_t*>(zeros));
      }
    } else if (affine_zero_bytes<WBits>(args) == 2) {
      zeros_[0] = __ldg(reinterpret_cast<const std::uint32_t*>(
          static_cast<const std::uint16_t*>(args.affine_zeros) + at));
    } else {
      const float2 b =
          __ldg(reinterpret_cast<const float2*>(static_cast<const float*>(args.affine_zeros) + at));
      zeros_[0] = __float_as_uint(b.x), zeros_[1] = __float_as_uint(b.y);
    }
  }

  /// From as they are stored to as they are used; when they have arrived.
  template <DType T>
  __device__ __forceinline__ void decode(const ForwardArguments& args) {
    float2 affine;
    if (args.statistics != nullptr) {
      const auto pair = StatisticPair<T>::template of<0>(scales_, {zeros_[0], zeros_[1]});
      scales_ = pair.scale_bits();
      affine = pair.affine();
    } else if (args.zeros == nullptr && affine_zero_bytes<WBits>(args) == 2) {
      affine = to_float2<T>(bits_as<Pair<T>>(zeros_[0]));
    } else {
      return;
    }
    zeros_[0] = __float_as_uint(affine.x), zeros_[1] = __float_as_uint(affine.y);
  }

  __device__ __forceinline__ std::uint16_t scale_bits(int h) const {
    return static_cast<std::uint16_t>(scales_ >> (16 * h));
  }
  __device__ __forceinline__ float scale(const ForwardArguments& args, int h) const {
    return scale_to_float(scale_bits(h), args.scales_are_bf16);
  }
  /// What to subtract from codes.
  __device__ __forceinline__ int code_zero(const ForwardArguments& args, int h) const {
    if (args.zeros == nullptr) return 0;
    return static_cast<int>(zeros_[0] >> (kZeroBits * h) & ((1u << kZeroBits) - 1));
  }
  /// What to add to s * q, where zeros are affine.
  __device__ __forceinline__ float affine(int h) const { return __uint_as_float(zeros_[h]); }

 private:
  static constexpr int kZeroBits = 8 * static_cast<int>(sizeof(ZeroCode<WBits>));
  // Until decode(), packed statistics are a pair of codes, and their base in zeros_, and affine
  // zeros may be halves in the first of those.
  std::uint32_t scales_;
  std::uint32_t zeros_[2];  // two integers in the first, or the bits of two affine zeros
};

/// Of kTiles neighbouring tiles.
template <int WBits, DType T, int kTiles>
struct GroupParameters {
  TileParameters<WBits> tile[kTiles];

  /// Channels channel, channel + 8 of tile 0, + 16 for each tile, all < n_padded.
  __device__ __forceinline__ void load(const ForwardArguments& args, int group, int channel) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      tile[t].load(args, group, static_cast<int>(parameter_position(channel + 16 * t)));
    }
  }
  __device__ __forceinline__ void decode(const ForwardArguments& args) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) tile[t].template decode<T>(args);
  }
  __device__ __forceinline__ typename Codes<WBits, T>::Zero code_zero(const ForwardArguments& args,
                                                                      int t, int h) const {
    return Codes<WBits, T>::zero(tile[t].code_zero(args, h));
  }
  __device__ __forceinline__ float scale_as_float(const ForwardArguments& args, int t,
                                                  int h) const {
    return tile[t].scale(args, h);
  }
  /// What to add to s * q; 0 unless zeros are affine.
  __device__ __forceinline__ float affine(const ForwardArguments& args, int t, int h) const {
    return args.zeros == nullptr ? tile[t].affine(h) : 0.f;
  }
};

/// Group of a k-step of 16 columns.
__device__ __forceinline__ int group_of_step(const ForwardArguments& args, int step) {
  return static_cast<int>((static_cast<std::uint32_t>(step) * 16u) >> args.group_shift);
}

/// First k-step of a group; past any step for the group after a layer's only one.
__device__ __forceinline__ int first_step_of_group(const ForwardArguments& args, int group) {
  return static_cast<int>((static_cast<std::uint32_t>(group) << args.group_shift) / 16u);
}

/// Whether a k-step is the first of its group.
__device__ __forceinline__ bool starts_group(const ForwardArguments& args, int step) {
  return ((static_cast<std::uint32_t>(step) * 16u) & ((1u << args.group_shift) - 1u)) == 0u;
}

}  // namespace mpq::kernels

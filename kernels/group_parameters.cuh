#pragma once
// Scales and zeros of the channels that a lane's fragments touch, fetched one group ahead.

#include <cstdint>

#include "arguments.hpp"
#include "dequant.cuh"

namespace mpq::kernels {

/// For `kTiles` tiles of 16 channels: a lane's fragments hold channels lane / 4 and lane / 4 + 8.
template <int WBits, DType T, int kTiles>
struct GroupParameters {
  std::uint16_t scale[kTiles][2];
  // An integer, or the bits of an affine zero: one register for both.
  std::uint32_t zero[kTiles][2];

  /// Channels channel, channel + 8 of tile 0, + 16 for each tile, all < n_padded.
  __device__ __forceinline__ void load(const ForwardArguments& args, int group, int channel) {
    const std::int64_t row = static_cast<std::int64_t>(group) * args.n_padded + channel;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const std::int64_t at = row + 16 * t + 8 * h;
        scale[t][h] = __ldg(args.scales + at);
        zero[t][h] = args.zeros != nullptr          ? __ldg(args.zeros + at)
                     : args.affine_zeros != nullptr ? __float_as_uint(__ldg(args.affine_zeros + at))
                                                    : 1u << (WBits - 1);
      }
    }
  }

  /// What to subtract from codes.
  __device__ __forceinline__ typename Codes<WBits, T>::Zero code_zero(const ForwardArguments& args,
                                                                      int t, int h) const {
    return Codes<WBits, T>::zero(args.affine_zeros != nullptr ? 0 : static_cast<int>(zero[t][h]));
  }

  __device__ __forceinline__ float scale_as_float(const ForwardArguments& args, int t,
                                                  int h) const {
    return scale_to_float(scale[t][h], args.scales_are_bf16);
  }

  /// What to add to s * q; 0 unless zeros are affine.
  __device__ __forceinline__ float affine(const ForwardArguments& args, int t, int h) const {
    return args.affine_zeros != nullptr ? __uint_as_float(zero[t][h]) : 0.f;
  }
};

/// Group of a k-step of 16 columns.
__device__ __forceinline__ int group_of_step(const ForwardArguments& args, int step) {
  return static_cast<int>((static_cast<std::uint32_t>(step) * 16u) >> args.group_shift);
}

/// Whether a k-step is the first of its group.
__device__ __forceinline__ bool starts_group(const ForwardArguments& args, int step) {
  return ((static_cast<std::uint32_t>(step) * 16u) & ((1u << args.group_shift) - 1u)) == 0u;
}

}  // namespace mpq::kernels

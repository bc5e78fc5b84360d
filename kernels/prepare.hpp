#pragma once
// Everything slow that is done once: repacking, padding, decompression, checks; and the gather of
// x. All asynchronous on `stream`, on the current device. Shapes as in WeightsData and ColumnOrder.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "mpq/types.hpp"

namespace mpq::kernels {

/// canonical [ceil(k * bits / 32), n] -> out, KernelLayout padded to [k_padded, n_padded]. source
/// [k_padded] (or null: in order) as in ColumnOrder. Padding becomes code 0. 2 bits: where zeros
/// [kernel groups, n_padded] (null: none are) are 3, codes are complemented; a kernel group is
/// 2^group_shift columns, or all of them (31).
cudaError_t repack_codes(int bits, const std::uint32_t* canonical, std::int64_t k, std::int64_t n,
                         const std::int32_t* source, std::int64_t k_padded, std::int64_t n_padded,
                         const std::uint8_t* zeros, int group_shift, std::uint32_t* out,
                         cudaStream_t stream);

/// What goes with that: such zeros become 0 and their scales change sign. Both [count].
cudaError_t negate_complemented(std::int64_t count, std::uint16_t* scales, std::uint8_t* zeros,
                                cudaStream_t stream);

/// in [G, n] -> out [kernel_groups, n_padded] in the order of parameter_position: row r is group[r]
/// of in, or 0 where that is -1. For u16 to u16 or u8, u8 to u8, and float to float.
template <class In, class Out>
cudaError_t spread_groups(const In* in, std::int64_t n, const std::int32_t* group,
                          std::int64_t kernel_groups, std::int64_t n_padded, Out* out,
                          cudaStream_t stream);

/// What a layer's scales and affine zeros are not, as numbers: bits of a word.
inline constexpr std::uint32_t kScaleOfOtherType = 1;  ///< a scale is no number of the dtype asked
inline constexpr std::uint32_t kZeroOfOtherType = 2;   ///< a zero is no finite one
inline constexpr std::uint32_t kZeroNoInteger = 4;     ///< none is -s z with a z in 0 ... 2^bits
inline constexpr std::uint32_t kScaleTooLarge = 8;     ///< a scale is not below general_scale_limit
/// Sets those bits in *found. scales, of scale_dtype, and affine_zeros (or null) are [count].
cudaError_t find_other_numbers(int bits, const std::uint16_t* scales, DType scale_dtype,
                               const float* affine_zeros, DType dtype, std::int64_t count,
                               std::uint32_t* found, cudaStream_t stream);
/// Of scales without kScaleOfOtherType, in place.
cudaError_t convert_scales(std::uint16_t* scales, DType from, DType to, std::int64_t count,
                           cudaStream_t stream);
/// affine_zeros without kZeroNoInteger -> zeros, z of w = s (q - z).
cudaError_t find_integer_zeros(const std::uint16_t* scales, DType dtype, const float* affine_zeros,
                               std::int64_t count, std::uint16_t* zeros, cudaStream_t stream);
/// -> affine_zeros [count], -s z, exactly: zeros [count], or null where all are `middle`.
cudaError_t find_affine_zeros(const std::uint16_t* scales, DType dtype, const std::uint16_t* zeros,
                              int middle, std::int64_t count, float* affine_zeros,
                              cudaStream_t stream);
/// values -> rounded, of type dtype.
cudaError_t round_values(const float* values, DType dtype, std::int64_t count,
                         std::uint16_t* rounded, cudaStream_t stream);

/// What part of a layer's scales and zeros says about whether one multiply-add makes its weights.
struct FusedParameters {
  /// Bits of magnitudes of scales, and of affine zeros, too, that are not 0.
  std::uint32_t largest = 0, least = 0xffff;
  std::uint32_t inexact = 0;  ///< whether a scale times its zero has to be rounded to their type
};
/// How many parts there are.
inline constexpr int kFusedParts = 1024;
/// -> parts [kFusedParts]. scales [count]; zeros [count], ZeroCodes of u8 or u16, or null where
/// they are a power of two or affine; affine_zeros [count], of type dtype, or null.
template <class Zero>
cudaError_t find_fused_parameters(const std::uint16_t* scales, DType dtype, const Zero* zeros,
                                  const std::uint16_t* affine_zeros, std::int64_t count,
                                  FusedParameters* parts, cudaStream_t stream);

/// Double-quantised statistics on the device; see DoubleQuantized for shapes.
struct Statistics {
  const std::uint8_t* codes;  ///< [groups, n]
  const std::uint16_t* scale_scales;
  const std::uint16_t* scale_zeros;
  const std::uint16_t* zero_scales;  ///< null: codes hold scales only
  const std::uint16_t* zero_zeros;
  std::int64_t groups, n, dq_group_size;
  bool per_channel;
};

/// -> scales [groups, n] and, if the codes hold zeros too, affine_zeros [groups, n] (their
/// negation).
cudaError_t decompress_statistics(const Statistics& statistics, DType dtype, std::uint16_t* scales,
                                  float* affine_zeros, cudaStream_t stream);

/// The bases of statistics that stay packed, for every 32 channels: out [kernel_groups, n_padded /
/// 32], row r from group[r], or 0 where that is -1. Codes hold zeros, and dq_group_size is a
/// multiple of 32.
cudaError_t pack_statistic_bases(const Statistics& statistics, const std::int32_t* group,
                                 std::int64_t kernel_groups, std::int64_t n_padded, uint2* out,
                                 cudaStream_t stream);

/// Packed statistics, codes [rows, n_padded] in the order of parameter_position with their bases,
/// -> scales and affine_zeros of the same shape and order.
cudaError_t unpack_statistics(const std::uint8_t* codes, const uint2* bases, DType dtype,
                              std::int64_t count, std::uint16_t* scales, float* affine_zeros,
                              cudaStream_t stream);

/// Lowers *first to the index of the first value that is Inf or NaN, if that is less. dtype: what
/// 16-bit values are. count > 0.
cudaError_t first_non_finite(const std::uint16_t* values, DType dtype, std::int64_t count,
                             unsigned long long* first, cudaStream_t stream);
cudaError_t first_non_finite(const float* values, DType dtype, std::int64_t count,
                             unsigned long long* first, cudaStream_t stream);

}  // namespace mpq::kernels

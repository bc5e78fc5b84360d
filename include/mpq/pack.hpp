#pragma once
// Codes to packed words and back, and packed weights to dense floats.

#include <cstdint>
#include <span>
#include <vector>

#include "mpq/quantized_weights.hpp"

namespace mpq {

/// Packs codes [k, n] (row-major, one a byte, each < 2^bits) into the canonical words
/// [ceil(k * bits / 32), n] (see WeightsData::qweight). Unused bits of the last row are zero.
/// Throws Error(invalid_argument) for a bad width, size or code, naming it.
std::vector<std::uint32_t> pack(std::span<const std::uint8_t> codes, std::int64_t k, std::int64_t n,
                                int bits);

/// The inverse of pack: codes [k, n].
std::vector<std::uint8_t> unpack(std::span<const std::uint32_t> words, std::int64_t k,
                                 std::int64_t n, int bits);

/// The dense weight [out_features, in_features], float32. Integer and absent zeros: exact for f16
/// and bf16 scales. Affine: one rounding (s * q is exact, then + b).
std::vector<float> dequantize(const AnyQuantizedWeights& weights);

/// Packs canonical codes into the kernel layout (KernelLayout, is_stored_complemented), as
/// prepare_params does on the device. Padding is zero.
std::vector<std::uint32_t> pack_kernel_layout(const AnyQuantizedWeights& weights);

}  // namespace mpq

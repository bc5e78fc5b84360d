#pragma once
// The one canonical host form of a quantised weight matrix. Every checkpoint format is decoded into
// it and encoded from it; Linear::load takes it.

#include <cstdint>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "mpq/types.hpp"

namespace mpq {

/// Scales (and zeros) that are quantised to 8 bits themselves, as GBA checkpoints store them.
/// Every operation below is rounded to the layer's 16-bit type, as bitorch-engine does.
struct DoubleQuantized {
  enum class Kind : std::uint8_t {
    scale_and_zero,  ///< code = scale nibble (high), zero nibble (low); w = scale * q - zero
    scale,           ///< code = scale; zeros are integers and stored beside
  };
  Kind kind = Kind::scale_and_zero;
  /// Parameters are [G, N / dq_group_size]; with per_channel they are [1, N] (dq_mode 1).
  bool per_channel = false;
  std::int64_t dq_group_size = 0;           ///< channels that share parameters; divides N
  std::vector<std::uint8_t> codes;          ///< [G, N]
  std::vector<std::uint16_t> scale_scales;  ///< scale = (code - scale_zeros) * scale_scales
  std::vector<std::uint16_t> scale_zeros;
  std::vector<std::uint16_t> zero_scales;  ///< zero = (code - zero_zeros) * zero_scales
  std::vector<std::uint16_t> zero_zeros;   ///< both empty for Kind::scale
};

/// What is the same for every width. K = in_features, N = out_features, G = groups().
struct WeightsData {
  std::int64_t in_features = 0;
  std::int64_t out_features = 0;
  int group_size = -1;       ///< input features that share a scale; -1: all of them
  DType dtype = DType::f16;  ///< type of the scales; need not be that of the activations
  ZeroKind zero_kind = ZeroKind::none;

  /// [ceil(K * bits / 32), N]: code k of column n at bit bits * (k % (32 / bits)) of row
  /// k / (32 / bits), the GPTQ order. Bits past K in the last row are ignored.
  std::vector<std::uint32_t> qweight;
  std::vector<std::uint16_t> scales;  ///< [G, N], bits of dtype; empty if double_quantized
  std::vector<std::uint16_t> zeros;   ///< [G, N], in [0, 2^bits]; only ZeroKind::integer
  std::vector<float> affine_zeros;    ///< [G, N], b of w = s * q + b; only ZeroKind::affine,
                                      ///< and empty if double_quantized holds the zeros
  std::vector<std::int32_t> g_idx;    ///< [K], group of each input feature; empty: k / group_size
  std::vector<float> bias;            ///< [N] or empty
  std::optional<DoubleQuantized> double_quantized;

  /// ceil(K / group_size).
  std::int64_t groups() const noexcept {
    return group_size == -1 ? 1 : ceil_div(in_features, group_size);
  }
};

/// Weights of `WBits` bits.
template <int WBits>
requires SupportedBits<WBits>
struct QuantizedWeights : WeightsData {
  static constexpr int w_bit = WBits;
};

/// Weights of a width known at run time.
using AnyQuantizedWeights = std::variant<QuantizedWeights<1>, QuantizedWeights<2>,
                                         QuantizedWeights<4>, QuantizedWeights<8>>;

/// The width that is held.
inline int bits_of(const AnyQuantizedWeights& weights) noexcept {
  return std::visit([](const auto& w) { return w.w_bit; }, weights);
}

/// The part that is the same for every width.
inline const WeightsData& data_of(const AnyQuantizedWeights& weights) noexcept {
  return std::visit([](const auto& w) -> const WeightsData& { return w; }, weights);
}
inline WeightsData& data_of(AnyQuantizedWeights& weights) noexcept {
  return std::visit([](auto& w) -> WeightsData& { return w; }, weights);
}

/// Moves `data` into the alternative for `bits`. Throws Error(unsupported) for other widths.
AnyQuantizedWeights make_quantized_weights(int bits, WeightsData data);

/// Checks what memory safety rests on: sizes against the shapes, group_size, g_idx in [0, G), zeros
/// in [0, 2^bits], double-quantised parameters' shapes. Throws Error(invalid_weights).
void check_structure(const WeightsData& weights, int bits);

/// check_structure, and that every scale, zero and bias is finite, naming the place of the first
/// that is not. Throws Error(invalid_weights).
void check_values(const WeightsData& weights, int bits);

/// Replaces double-quantised statistics by plain scales and zeros; nothing to do without them.
void decompress(WeightsData& weights);

}  // namespace mpq

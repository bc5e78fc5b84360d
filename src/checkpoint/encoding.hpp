#pragma once
// The writing side of a format: canonical weights brought to what the format holds, and that as
// tensors and settings.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/settings_text.hpp"
#include "mpq/checkpoint.hpp"
#include "mpq/quantized_weights.hpp"

namespace mpq::detail {

struct EncodedTensor {
  std::string suffix;  ///< of its name, after the layer's
  SafetensorsType type = SafetensorsType::F32;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;
};

template <class T>
EncodedTensor encoded(std::string suffix, SafetensorsType type, std::vector<std::int64_t> shape,
                      const std::vector<T>& values) {
  EncodedTensor tensor{std::move(suffix), type, std::move(shape), {}};
  const auto bytes = std::as_bytes(std::span(values));
  tensor.bytes.assign(bytes.begin(), bytes.end());
  return tensor;
}

/// Canonical weights that a format can hold.
struct Fitted {
  WeightsData weights;
  bool exact = true;  ///< whether they stand for the same dense weight
};

/// A layer that has been written, as far as settings tell of it.
struct WrittenLayer {
  std::string name;
  int bits = 0;
  int group_size = -1;
  ZeroKind zero_kind = ZeroKind::none;
  bool symmetric = false;  ///< every zero is 2^(bits-1)
  bool act_order = false;
  bool per_channel = false;         ///< DoubleQuantized
  std::int64_t dq_group_size = -1;  ///< -1: all channels, or not double-quantised
};

/// How a format is written.
struct FormatWriter {
  /// Throws Error(unsupported) for what no nearest weights would help.
  Fitted (*fit)(WeightsData weights, int bits);
  /// The tensors of what fit gave.
  std::vector<EncodedTensor> (*encode)(const WeightsData& weights, int bits);
  /// quantization_config of config.json for all layers (there is at least one). Throws
  /// Error(unsupported) for layers that differ in what the format has only once.
  /// `dense` are layers that stay as they are.
  SettingsTree (*settings)(std::span<const WrittenLayer> layers,
                           const std::vector<std::string>& dense);
  /// A file that has the same settings again; null: none.
  const char* settings_file;
};

/// Integer zeros in [least, most]: codes are shifted where that loses nothing, and rounded to the
/// nearest where a zero is no integer or codes would leave their range.
Fitted fit_integer_zeros(WeightsData weights, int bits, int least, int most);

/// Scales and zeros in the form of symmetric GBA: plain [G, N] affine zeros that the 16-bit type
/// holds for groups of 256 and more, else double-quantised; codes are rounded anew where that
/// changes them.
Fitted fit_gba(WeightsData weights, int bits);

/// Scales in f16. Throws Error(unsupported) for one that f16 has no finite value for.
Fitted fit_f16_scales(Fitted fitted);

// Tensors that formats share.

SafetensorsType type_of(DType dtype);
/// qweight without the bits past K, which need not be zero.
std::vector<std::uint32_t> clean_codes(const WeightsData& weights, int bits);
/// g_idx, also where it is k / group_size.
std::vector<std::int32_t> full_g_idx(const WeightsData& weights);
/// Appends bias [N], if there is one, in the smallest type that holds it, the scales' first.
void append_bias(const WeightsData& weights, std::vector<EncodedTensor>& tensors);
/// `zeros` [G, N] - offset, packed along N: [G, ceil(N * bits / 32)].
EncodedTensor encoded_qzeros(const WeightsData& weights, int bits, unsigned offset);

/// The settings of most layers, for formats that tell them once and name exceptions. Compared are
/// bits, group_size and what else `same` looks at.
const WrittenLayer& usual_layer(std::span<const WrittenLayer> layers,
                                bool (*same)(const WrittenLayer&, const WrittenLayer&));

}  // namespace mpq::detail

#pragma once
// A weight matrix whose input features have different widths (GBA's channel-mix, which lies in the
// file as EXL2 does). Linear runs one width: such a layer is decoded whole, or cut into pieces.

#include <cstdint>
#include <vector>

#include "mpq/quantized_weights.hpp"

namespace mpq {

/// w[n, feature[k]] = channel_scale[feature[k]] * (s * q + b), with s and b of the group of k.
/// Input features are stored in an order of their own, in which groups are contiguous.
struct MixedWeights {
  struct Group {
    int bits = 0;            ///< 1 to 8
    std::int64_t first = 0;  ///< place k of its first input feature; it reaches to the next group
  };
  std::int64_t in_features = 0, out_features = 0;
  DType dtype = DType::f16;           ///< of the scales
  std::vector<Group> groups;          ///< [G]
  std::vector<std::uint8_t> codes;    ///< [K, N], unpacked
  std::vector<std::uint16_t> scales;  ///< [G, N]
  std::vector<float> affine_zeros;    ///< [G, N]
  std::vector<std::int32_t> feature;  ///< [K], a permutation; empty: k
  std::vector<float> channel_scale;   ///< [K] by feature, multiplies x; empty: 1
  std::vector<float> bias;            ///< [N] or empty
};

/// The part of mixed weights that has one width.
struct MixedPiece {
  std::vector<std::int32_t> features;  ///< columns of x that its input features are
  AnyQuantizedWeights weights;         ///< [N, features.size()]; the first piece has the bias
};

/// The dense weight [out_features, in_features], float32: s * q is exact, then + b, then times
/// channel_scale, if there is one.
std::vector<float> dequantize(const MixedWeights& weights);

/// Cuts by width, the widest first: y = sum over pieces of (x * channel_scale)[:, features]
/// weights^T. Throws Error(unsupported) naming a width that has no Linear.
std::vector<MixedPiece> pieces_of(const MixedWeights& weights);

/// Sizes against the shapes, widths, the permutation. Throws Error(invalid_weights).
void check_structure(const MixedWeights& weights);

}  // namespace mpq

#pragma once
// Random weights and activations, the same for the same seed on every machine and library.

#include <cstdint>
#include <vector>

#include "mpq/quantized_weights.hpp"
#include "mpq/types.hpp"

namespace mpq::test {

/// SplitMix64 (Steele, Lea, Flood 2014). The standard's distributions differ between libraries.
class Random {
 public:
  explicit Random(std::uint64_t seed) noexcept : state_(seed) {}
  std::uint64_t bits() noexcept;
  /// Uniform in [low, high].
  std::int64_t integer(std::int64_t low, std::int64_t high) noexcept;
  /// Uniform in [0, 1).
  double uniform() noexcept;
  /// Standard normal.
  double normal() noexcept;

 private:
  std::uint64_t state_;
};

struct WeightsSpec {
  int bits = 4;
  std::int64_t k = 128, n = 64;
  int group_size = 128;
  ZeroKind zero_kind = ZeroKind::integer;
  DType scale_dtype = DType::f16;
  /// Affine zeros are numbers of scale_dtype, as MLX and GBA have them.
  bool narrow_zeros = false;
  /// Input features belong to groups at random. Even seed: a permutation of the usual membership,
  /// as GPTQ makes it. Odd seed: any membership, so groups are irregular and some may be empty.
  bool act_order = false;
  bool bias = false;
  /// Not 0: scales and affine zeros are double-quantised, with parameters of random mantissas for
  /// so many channels each.
  std::int64_t dq_group_size = 0;
  /// Powers of two for scales, small integers for b and bias: with small-integer x every product
  /// and every partial sum in any order is exact in float32, so kernels must agree bit for bit.
  bool exact = false;
  std::uint64_t seed = 1;
};

/// Codes are uniform over all 2^bits, integer zeros over 0 ... 2^bits (both ends included), scales
/// 1/128 to 1/32 with random mantissas, about what checkpoints hold.
AnyQuantizedWeights random_weights(const WeightsSpec& spec);

/// [n, k], to be quantised: normal, about as large as a checkpoint's.
std::vector<float> random_weight(std::int64_t n, std::int64_t k, std::uint64_t seed);

/// [m, ld] 16-bit floats: normal, or with `exact` integers in [-4, 4].
std::vector<std::uint16_t> random_activations(std::int64_t m, std::int64_t ld, DType dtype,
                                              std::uint64_t seed, bool exact = false);

}  // namespace mpq::test

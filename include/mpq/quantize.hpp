#pragma once
// From dense weights to quantised ones.

#include <cstdint>
#include <span>
#include <vector>

#include "mpq/device.hpp"
#include "mpq/quantized_weights.hpp"

namespace mpq {

enum class QuantizeMethod : std::uint8_t {
  round_to_nearest,
  half_quadratic,  ///< zeros optimised as HQQ does (Badri and Shaji 2023), then round to nearest
};

struct QuantizeOptions {
  int bits = 4;            ///< 1, 2, 4 or 8
  int group_size = 128;    ///< -1: one group per output channel
  bool symmetric = false;  ///< ZeroKind::none (zero 2^(bits-1)); else ZeroKind::integer
  DType scale_dtype = DType::f16;
  QuantizeMethod method = QuantizeMethod::round_to_nearest;
  bool float_zeros = false;  ///< half_quadratic: ZeroKind::affine, zeros are not rounded
};

/// Rounds weight [out_features, in_features] (row-major) to the nearest code, group by group.
/// Asymmetric: the group's range (with 0 in it) is spread over all codes. Symmetric: max |w| maps
/// to the largest code magnitude 2^(bits-1) (1 bit: codes stand for -s and 0, so s is best for
/// both). Scales are rounded to scale_dtype before codes are chosen, so that codes fit the stored
/// scale. Half-quadratic: zeros minimise the sum of |w - w'|^0.7 with these scales, which outliers
/// pull less than they do squares.
///
/// device: where the work is done. Rounding to nearest gives the same bits everywhere;
/// half-quadratic zeros differ where std::pow's last bit decides between two. A CUDA device needs
/// room for the result and 256 MiB (symmetric with 1 bit: 512 MiB), or for one channel if that is
/// more.
///
/// Throws Error(invalid_argument) for bad shapes or options and for non-finite weights, naming
/// them; Error(device_unavailable) for a missing device, Error(device_failure) for one without
/// room.
AnyQuantizedWeights quantize(std::span<const float> weight, std::int64_t out_features,
                             std::int64_t in_features, const QuantizeOptions& options,
                             Device device = Device::cpu());

/// Sum of x^T x over rows x of calibration inputs: how much errors of a layer's weights matter for
/// its output.
class Hessian {
 public:
  /// Takes 8 * in_features^2 bytes.
  explicit Hessian(std::int64_t in_features);
  /// Adds rows [rows, in_features], row-major. Throws Error(invalid_argument) for a size that is no
  /// multiple of in_features and for values that are not finite.
  void add(std::span<const float> rows);
  std::int64_t in_features() const noexcept { return in_features_; }
  std::int64_t rows() const noexcept { return rows_; }
  /// [in_features, in_features], symmetric.
  std::span<const double> matrix() const noexcept { return matrix_; }

 private:
  std::int64_t in_features_, rows_ = 0;
  std::vector<double> matrix_;
};

struct GptqOptions : QuantizeOptions {
  /// Input features are quantised in the order of falling calibration energy. Groups are then of
  /// features that are neighbours in that order (WeightsData::g_idx).
  bool act_order = false;
  /// With act_order: groups stay those of the usual order, with scales from the weights as they
  /// were; no g_idx, for formats that have none.
  bool static_groups = false;
  double damping = 0.01;  ///< of the Hessian's mean diagonal, added to the diagonal; > 0
};

/// GPTQ (Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
/// Transformers", 2022): input features are rounded one after the other, and each one's error is
/// made up for by those to come. Work grows with in_features^3 and out_features * in_features^2.
/// Throws as quantize does, and Error(invalid_argument) for a Hessian of another size or without
/// rows.
AnyQuantizedWeights quantize_gptq(std::span<const float> weight, std::int64_t out_features,
                                  std::int64_t in_features, const Hessian& hessian,
                                  const GptqOptions& options);

/// sqrt(sum (w - w')^2 / sum w^2) of a quantisation w' of `weight`.
double relative_error(std::span<const float> weight, const AnyQuantizedWeights& quantized);

/// The same of the layer's output for the calibration inputs: sqrt(sum |(w - w') x|^2 / sum |w
/// x|^2).
double relative_output_error(std::span<const float> weight, const AnyQuantizedWeights& quantized,
                             const Hessian& hessian);

}  // namespace mpq

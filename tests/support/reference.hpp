#pragma once
// What forward must compute, in float64, and how far from it a right answer may be.

#include <optional>
#include <string>
#include <vector>

#include "mpq/kernel_table.hpp"
#include "mpq/matrix.hpp"
#include "mpq/quantized_weights.hpp"

namespace mpq::test {

struct Reference {
  std::int64_t rows = 0, cols = 0, in_features = 0;
  double max_x = 0;       ///< max |x|
  std::vector<double> y;  ///< [rows, cols], before the rounding to 16 bits
  std::vector<double>
      magnitude;  ///< sum_k |x_k| |w_k| (+ |bias|), what errors are measured against
};

/// y = x w^T + bias on the exact codes, scales and zeros; not on anything that mpq dequantised.
Reference reference_forward(const AnyQuantizedWeights& weights, const ConstMatrix& x_host);

/// The reference's y, rounded to 16 bits: what a kernel must give where every sum is exact.
std::vector<std::uint16_t> rounded(const Reference& reference, DType dtype);

/// Rows of x [in_features, in_features] that are zero but for a one each: y has weight by weight.
std::vector<std::uint16_t> one_hot_rows(std::int64_t in_features, DType dtype);
/// Names the first element of that y which is neither the weight, rounded once, nor, in a kernel
/// that makes general weights of the layer (kernels/general_weights.cuh), as near to it as those
/// are: within half an ulp and what else they round. narrow_zeros: affine zeros are numbers that
/// they are made of as they are, so nothing else is rounded.
std::optional<std::string> find_weight_mismatch(const AnyQuantizedWeights& weights,
                                                const std::vector<std::uint16_t>& y, DType dtype,
                                                const KernelConfig& config, bool narrow_zeros);

/// Names the first element of y [rows, cols] (16-bit, on the host) outside the bound of the
/// reference; nothing if there is none. `weights_rounded`: whether the path that made y rounds each
/// weight to y's 16-bit type, as tensor-core kernels do. NaN and infinities of the reference must
/// be met exactly; a NaN where the reference is a number is never right.
std::optional<std::string> find_mismatch(const Reference& reference, const ConstMatrix& y_host,
                                         bool weights_rounded);

/// The bound itself, of an element of a 16-bit y: for tests and programs that report an error's
/// size.
double error_bound(const Reference& reference, std::size_t element, DType y_dtype,
                   bool weights_rounded);

}  // namespace mpq::test

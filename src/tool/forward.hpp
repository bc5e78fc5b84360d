#pragma once
// One forward call from and to host memory.

#include <cstdint>
#include <string>
#include <vector>

#include "mpq/device.hpp"
#include "mpq/mixed_weights.hpp"
#include "mpq/quantized_weights.hpp"

namespace mpq::tool {

struct ForwardResult {
  std::vector<std::uint16_t> y;  ///< [rows, out_features]
  std::string kernel;            ///< what ran
};

/// y for x [rows, in_features], both of type `dtype`. Checks the weights' values.
ForwardResult forward(const AnyQuantizedWeights& weights, Device device, DType dtype,
                      const std::vector<std::uint16_t>& x, std::int64_t rows);

/// The same for mixed widths, piece by piece: x is gathered and the pieces' results, each rounded
/// to 16 bits, are added in float64 on the host.
ForwardResult forward(const MixedWeights& weights, Device device, DType dtype,
                      const std::vector<std::uint16_t>& x, std::int64_t rows);

}  // namespace mpq::tool

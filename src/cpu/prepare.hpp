#pragma once
// Weights in the form that the CPU's kernels read.

#include <cstdint>
#include <vector>

#include "cpu/kernel_set.hpp"
#include "mpq/device.hpp"
#include "mpq/quantized_weights.hpp"

namespace mpq::detail::cpu {

/// A prepared layer and the memory that it points to. Moving it keeps the pointers valid.
struct PreparedLayer {
  Layer layer;
  DeviceBuffer codes;
  std::vector<std::uint16_t> scales, zeros;
  std::vector<float> affine_zeros, bias;
  std::vector<std::int32_t> step_group, column_group;
  /// [k]: the column of x that is column i of the layer; empty: i.
  std::vector<std::int32_t> source;
};

/// The structure of `weights` must have been checked.
PreparedLayer prepare(const WeightsData& weights, int bits);

}  // namespace mpq::detail::cpu

#pragma once
// One forward call on any device, with everything around it that a caller has to do.

#include <cstdint>
#include <vector>

#include "mpq/model.hpp"
#include "mpq/types.hpp"

namespace mpq::test {

/// How x and y lie in memory.
struct RunSpec {
  std::int64_t m = 1;
  std::int64_t x_padding = 0, y_padding = 0;  ///< ldx - in_features, ldy - out_features
  std::int64_t x_offset = 0, y_offset = 0;  ///< elements before the first, for misaligned pointers
  ForwardOptions options = {};
};

/// The layer on cuda:0, prepared.
AnyLinear prepared(const AnyQuantizedWeights& weights, DType dtype,
                   const PrepareOptions& options = {});

/// Runs `linear` on x, whose first m rows of [.., ldx] are used (see random_activations), and
/// returns y [m, out_features]. y's memory is poisoned before; what lies around y must still hold
/// the poison afterwards, else this throws std::runtime_error saying where.
std::vector<std::uint16_t> run_linear(const AnyLinear& linear, const std::vector<std::uint16_t>& x,
                                      const RunSpec& spec);

/// Rows of kKernelTable that run on cuda:0 in this build, with such weights.
std::vector<int> usable_kernels(const AnyQuantizedWeights& weights);
/// Whether a row takes ForwardOptions::cluster.
bool splits_k(int kernel);

/// Whether cuda:0 is the emulated device, by its few multiprocessors: a part of the cases is enough
/// for it.
bool is_slow();

/// x [rows, cols] as a view.
inline ConstMatrix view(const std::vector<std::uint16_t>& values, DType dtype, std::int64_t rows,
                        std::int64_t cols) {
  return {values.data(), dtype, rows, cols,
          rows == 0 ? cols : static_cast<std::int64_t>(values.size()) / rows};
}

}  // namespace mpq::test

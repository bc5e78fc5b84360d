#pragma once
// In which order the kernels take a layer's input columns, and with what padding.

#include <cstdint>
#include <vector>

#include "mpq/types.hpp"

namespace mpq {

/// The order and padding of input columns in the kernel layout. Kernels know only groups of one
/// size, a power of two >= 16 or all of K. Everything else is brought to that here, once: act-order
/// columns are sorted by group (stably), groups that do not fill a multiple of the kernel's size
/// are padded with columns that multiply zero, and scales are repeated where a group spans several
/// kernel groups.
struct ColumnOrder {
  std::int64_t k = 0;              ///< columns of x, in_features
  std::int64_t k_padded = 0;       ///< columns of the kernel layout
  std::int64_t group_columns = 0;  ///< columns of a kernel group; k_padded when there is one group
  /// [k_padded]: the column of x, or -1 for padding. Empty: column i is i, padding follows.
  std::vector<std::int32_t> source;
  /// [kernel_groups()]: the checkpoint's group, or -1 for padding.
  std::vector<std::int32_t> group;

  /// Whether x must be gathered before the kernels can read it.
  bool gathers() const noexcept { return !source.empty(); }
  std::int64_t kernel_groups() const noexcept { return ceil_div(k_padded, group_columns); }
};

/// Orders columns for `bits`-wide codes: pure, host. `g_idx` is empty or [k] with values in
/// [0, ceil(k / group_size)).
ColumnOrder order_columns(int bits, std::int64_t k, int group_size,
                          const std::vector<std::int32_t>& g_idx);

}  // namespace mpq

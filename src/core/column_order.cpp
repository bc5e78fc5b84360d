#include "mpq/column_order.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <numeric>

#include "mpq/layout.hpp"

namespace mpq {
namespace {

constexpr std::int64_t kSmallestGroup = 16;  // one tensor-core step
// Smaller groups are slow (kLeastGroup); padding is not, if it is little.
constexpr std::int64_t kSmallGroup = 32;
constexpr double kMostPadding = 0.25;

// Columns of each group, in order of group and column. A counting sort rather than a radix sort on
// the device: the host holds g_idx anyway, K is at most some ten thousands, and the sizes of the
// device buffers depend on the counts.
struct SortedColumns {
  std::vector<std::int64_t> begin;    // [G + 1]
  std::vector<std::int32_t> columns;  // [K]
};

SortedColumns sort_columns(std::int64_t k, std::int64_t group_size,
                           const std::vector<std::int32_t>& g_idx) {
  const std::int64_t groups = ceil_div(k, group_size);
  SortedColumns sorted;
  sorted.begin.assign(static_cast<std::size_t>(groups) + 1, 0);
  const auto group_of = [&](std::int64_t i) {
    return g_idx.empty() ? static_cast<std::size_t>(i / group_size)
                         : static_cast<std::size_t>(g_idx[static_cast<std::size_t>(i)]);
  };
  for (std::int64_t i = 0; i < k; ++i) ++sorted.begin[group_of(i) + 1];
  std::partial_sum(sorted.begin.begin(), sorted.begin.end(), sorted.begin.begin());
  sorted.columns.resize(static_cast<std::size_t>(k));
  std::vector<std::int64_t> next(sorted.begin.begin(), sorted.begin.end() - 1);
  for (std::int64_t i = 0; i < k; ++i) {
    sorted.columns[static_cast<std::size_t>(next[group_of(i)]++)] = static_cast<std::int32_t>(i);
  }
  return sorted;
}

// The largest power of two that divides the population of every group but the last one in use,
// which padding completes; k_padded if there is only one group. At least kSmallestGroup; where
// columns move anyway, and that takes little padding, kSmallGroup.
std::int64_t kernel_group(const SortedColumns& sorted, std::int64_t k, std::int64_t k_padded) {
  std::int64_t common = 0, padding = 0;
  for (std::size_t g = 0; g + 1 < sorted.begin.size(); ++g) {
    const bool last = sorted.begin[g + 1] == k;
    if (last) break;
    const std::int64_t population = sorted.begin[g + 1] - sorted.begin[g];
    common = std::gcd(common, population);
    padding += round_up(population, kSmallGroup) - population;
  }
  if (common == 0) return k_padded;
  const std::int64_t power = common & -common;
  const bool in_place = power >= kSmallestGroup && std::ranges::is_sorted(sorted.columns);
  const bool little = static_cast<double>(padding) <= kMostPadding * static_cast<double>(k);
  return std::max(power, !in_place && little ? kSmallGroup : kSmallestGroup);
}

}  // namespace

ColumnOrder order_columns(int bits, std::int64_t k, int group_size,
                          const std::vector<std::int32_t>& g_idx) {
  const std::int64_t align = layout_align_k(bits);
  const SortedColumns sorted = sort_columns(k, group_size == -1 ? k : group_size, g_idx);

  ColumnOrder order;
  order.k = k;
  order.group_columns = kernel_group(sorted, k, round_up(k, align));
  for (std::size_t g = 0; g + 1 < sorted.begin.size(); ++g) {
    const auto begin = sorted.columns.begin() + sorted.begin[g];
    const auto end = sorted.columns.begin() + sorted.begin[g + 1];
    if (begin == end) continue;
    order.source.insert(order.source.end(), begin, end);
    const auto filled = static_cast<std::int64_t>(order.source.size());
    order.source.resize(static_cast<std::size_t>(round_up(filled, order.group_columns)), -1);
    order.group.resize(static_cast<std::size_t>(ceil_div(
                           static_cast<std::int64_t>(order.source.size()), order.group_columns)),
                       static_cast<std::int32_t>(g));
  }
  // The last group is padded to the layout's alignment only, not to a whole kernel group.
  auto used = static_cast<std::int64_t>(order.source.size());
  while (order.source[static_cast<std::size_t>(used - 1)] == -1) --used;
  order.k_padded = round_up(used, align);
  order.source.resize(static_cast<std::size_t>(order.k_padded), -1);
  order.group.resize(static_cast<std::size_t>(order.kernel_groups()), -1);

  bool in_order = used == k;
  for (std::int64_t i = 0; in_order && i < k; ++i) {
    in_order = order.source[static_cast<std::size_t>(i)] == i;
  }
  if (in_order) order.source.clear();
  return order;
}

}  // namespace mpq

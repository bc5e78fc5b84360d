// The kernel layout is a bijection, and column orders lose and repeat nothing.

#include "mpq/layout.hpp"

#include <algorithm>
#include <numeric>
#include <set>

#include "mpq/column_order.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace mpq::test {
namespace {

template <int WBits>
void check_bijection() {
  using Layout = KernelLayout<WBits>;
  constexpr std::int64_t k_padded = 2 * Layout::kAlignK, n_padded = 2 * Layout::kAlignN;
  static_assert(Layout::kBlockN * Layout::kBlockK * WBits == Layout::kWordsPerBlock * 32);
  std::set<std::pair<std::int64_t, int>> seen;
  for (std::int64_t k = 0; k < k_padded; ++k) {
    for (std::int64_t n = 0; n < n_padded; ++n) {
      const auto position = Layout::position({k, n}, k_padded);
      REQUIRE(position.word < Layout::words(k_padded, n_padded));
      REQUIRE(position.shift % WBits == 0);
      REQUIRE(position.shift + WBits <= 32);
      REQUIRE(Layout::coordinate(position, k_padded) == typename Layout::Coordinate{k, n});
      REQUIRE(seen.emplace(position.word, position.shift).second);
    }
  }
}

TEST_CASE("the kernel layout is a bijection") {
  check_bijection<1>();
  check_bijection<2>();
  check_bijection<4>();
  check_bijection<8>();
}

TEST_CASE("a lane finds operand A of mma.m16n8k16 in 16 consecutive bytes") {
  using Layout = KernelLayout<4>;
  // PTX ISA, "Matrix Fragments for mma.m16n8k16": a0, a1 row lane / 4; a2, a3 row lane / 4 + 8;
  // a4 ... a7 the same 8 columns on. Registers hold two halves each.
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 8; ++i) {
      const int row = lane / 4 + (i / 2 % 2) * 8, column = lane % 4 * 2 + i % 2 + (i / 4) * 8;
      for (int step = 0; step < Layout::kStepsPerBlock; ++step) {
        const auto position = Layout::position({16 * step + column, row}, 64);
        CHECK(position.word == lane * 4 + i / 2);
        CHECK(position.shift == 16 * (i % 2) + 4 * step);
      }
    }
  }
}

void check_order(const ColumnOrder& order, std::int64_t k, int group_size,
                 const std::vector<std::int32_t>& g_idx, int bits) {
  REQUIRE(order.k == k);
  REQUIRE(order.k_padded % layout_align_k(bits) == 0);
  const bool one_group = order.group_columns >= order.k_padded;
  if (!one_group) {
    REQUIRE(order.group_columns >= 16);
    REQUIRE((order.group_columns & (order.group_columns - 1)) == 0);
  }
  REQUIRE(static_cast<std::int64_t>(order.group.size()) == order.kernel_groups());
  std::vector<int> uses(static_cast<std::size_t>(k), 0);
  for (std::int64_t i = 0; i < order.k_padded; ++i) {
    const std::int64_t source = order.gathers() ? order.source[static_cast<std::size_t>(i)]
                                : i < k         ? i
                                                : -1;
    if (source < 0) continue;
    REQUIRE(source < k);
    ++uses[static_cast<std::size_t>(source)];
    const std::int64_t group = g_idx.empty() ? (group_size == -1 ? 0 : source / group_size)
                                             : g_idx[static_cast<std::size_t>(source)];
    REQUIRE(order.group[static_cast<std::size_t>(i / order.group_columns)] == group);
  }
  REQUIRE(std::all_of(uses.begin(), uses.end(), [](int n) { return n == 1; }));
}

TEST_CASE("column orders hold every column once, in a kernel group of its own group") {
  for (const int bits : {1, 2, 4, 8}) {
    for (const int group_size : {-1, 1, 7, 16, 32, 48, 64, 100, 128, 1000}) {
      for (const std::int64_t k : {1, 5, 16, 100, 256, 300, 1024, 1030}) {
        for (const std::uint64_t seed : {0u, 2u, 3u}) {  // in order, permuted, irregular
          const auto weights = random_weights({.bits = bits,
                                               .k = k,
                                               .n = 1,
                                               .group_size = group_size,
                                               .act_order = seed != 0,
                                               .seed = seed});
          const auto& g_idx = data_of(weights).g_idx;
          INFO("w" << bits << " group " << group_size << " K " << k << " seed " << seed);
          check_order(order_columns(bits, k, group_size, g_idx), k, group_size, g_idx, bits);
        }
      }
    }
  }
}

TEST_CASE("regular groups need no gather and little padding") {
  for (const int group_size : {-1, 16, 32, 48, 64, 128, 256}) {
    const auto order = order_columns(4, 4096, group_size, {});
    CHECK_FALSE(order.gathers());
    CHECK(order.k_padded == 4096);
  }
  CHECK(order_columns(4, 4096, 128, {}).group_columns == 128);
  CHECK(order_columns(4, 4096, 48, {}).group_columns == 16);  // 48 is no power of two
  CHECK(order_columns(4, 160, 128, {}).k_padded == 256);      // ragged: to the layout's 128
  CHECK(order_columns(1, 4096, 100, {}).gathers());
  CHECK(order_columns(1, 4096, 100, {}).group_columns == 16);  // to 112; 128 were a quarter more
  CHECK(order_columns(1, 4096, 120, {}).group_columns == 32);
  // Act-order as GPTQ makes it keeps whole groups.
  std::vector<std::int32_t> g_idx(4096);
  for (std::size_t i = 0; i < g_idx.size(); ++i) g_idx[i] = static_cast<std::int32_t>(i % 32);
  const auto order = order_columns(4, 4096, 128, g_idx);
  CHECK(order.gathers());
  CHECK(order.group_columns == 128);
  CHECK(order.k_padded == 4096);
  // A part of such a layer, as tensor parallelism cuts it, has some of each group's columns.
  std::vector<std::int32_t> part;
  for (std::int32_t i = 0; i < 2048; ++i) part.push_back(i * i % 4093 % 32);
  const auto uneven = order_columns(4, 2048, 64, part);
  CHECK(uneven.group_columns == 32);
  CHECK(uneven.k_padded <= 2048 * 5 / 4 + 128);
}

}  // namespace
}  // namespace mpq::test

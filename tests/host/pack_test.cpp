// Codes to words and back, into the kernel layout, and to dense weights.

#include "mpq/pack.hpp"

#include "mpq/column_order.hpp"
#include "mpq/layout.hpp"
#include "support/catch.hpp"
#include "support/expect_error.hpp"
#include "support/random.hpp"

namespace mpq::test {
namespace {

std::vector<std::uint8_t> random_codes(std::int64_t k, std::int64_t n, int bits) {
  Random random(static_cast<std::uint64_t>(k * 1000 + n * 10 + bits));
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(k * n));
  for (auto& code : codes) code = static_cast<std::uint8_t>(random.integer(0, (1 << bits) - 1));
  return codes;
}

TEST_CASE("unpack gives back what was packed, in the documented order") {
  const auto bits = GENERATE(1, 2, 4, 8);
  for (const auto& [k, n] : {std::pair{1, 1}, {7, 3}, {32, 5}, {33, 17}, {100, 64}, {257, 2}}) {
    INFO("bits " << bits << " k " << k << " n " << n);
    const auto codes = random_codes(k, n, bits);
    const auto words = pack(codes, k, n, bits);
    REQUIRE(words.size() == static_cast<std::size_t>(ceil_div(k * bits, 32) * n));
    CHECK(unpack(words, k, n, bits) == codes);
    int wrong = 0;
    const int per_word = 32 / bits;
    for (int column = 0; column < k; ++column) {
      for (int channel = 0; channel < n; ++channel) {
        const auto word = words[static_cast<std::size_t>(column / per_word * n + channel)];
        wrong += ((word >> (bits * (column % per_word))) & ((1u << bits) - 1)) !=
                 codes[static_cast<std::size_t>(column * n + channel)];
      }
    }
    CHECK(wrong == 0);
    if (k * bits % 32 != 0) CHECK(words.back() >> (k * bits % 32) == 0);
  }
  CHECK(pack({}, 0, 4, bits).empty());
  CHECK(unpack({}, 4, 0, bits).empty());
}

TEST_CASE("pack and unpack name what they refuse") {
  const std::vector<std::uint8_t> codes{0, 3, 4, 1};
  const auto invalid = ErrorCode::invalid_argument;
  CHECK(
      refuses([&] { pack(codes, 2, 2, 2); }, invalid, "column 1", "channel 0", "4", "less than 4"));
  CHECK(refuses([&] { pack(codes, 2, 3, 4); }, invalid, "4 codes", "expected 6"));
  CHECK(refuses([&] { pack(codes, 2, 2, 3); }, invalid, "bits is 3"));
  CHECK(refuses([&] { pack(codes, -2, -2, 4); }, invalid, "-2"));
  CHECK(refuses([&] { unpack(std::vector<std::uint32_t>(3), 9, 2, 4); }, invalid, "3 words",
                "expected 4"));
  CHECK(refuses([&] { unpack({}, 1, 1, 0); }, invalid, "bits is 0"));
}

template <int WBits>
void check_kernel_layout(std::int64_t k, std::int64_t n, int group_size, bool act_order) {
  using Layout = KernelLayout<WBits>;
  const auto weights = random_weights(
      {.bits = WBits, .k = k, .n = n, .group_size = group_size, .act_order = act_order, .seed = 5});
  const auto& data = data_of(weights);
  const auto codes = unpack(data.qweight, k, n, WBits);
  const ColumnOrder order = order_columns(WBits, k, group_size, data.g_idx);
  const std::int64_t n_padded = round_up(n, Layout::kAlignN);

  // One code at a time, by the bijection.
  std::vector<std::uint32_t> expected(
      static_cast<std::size_t>(Layout::words(order.k_padded, n_padded)));
  for (std::int64_t i = 0; i < order.k_padded; ++i) {
    const std::int64_t source = order.gathers() ? order.source[static_cast<std::size_t>(i)] : i;
    const std::int64_t column = source < k ? source : -1;
    const std::int64_t group = order.group[static_cast<std::size_t>(i / order.group_columns)];
    for (std::int64_t c = 0; c < n; ++c) {
      std::uint32_t code = column < 0 ? 0 : codes[static_cast<std::size_t>(column * n + c)];
      const bool complemented =
          WBits == 2 && group >= 0 && data.zeros[static_cast<std::size_t>(group * n + c)] == 3;
      if (complemented) code = 3 - code;
      const auto [word, shift] = Layout::position({i, c}, order.k_padded);
      expected[static_cast<std::size_t>(word)] |= code << shift;
    }
  }
  INFO("bits " << WBits << " k " << k << " n " << n << " group " << group_size << " act-order "
               << act_order);
  CHECK(pack_kernel_layout(weights) == expected);
}

TEST_CASE("pack_kernel_layout puts every code at its position") {
  const auto check = []<int WBits>() {
    check_kernel_layout<WBits>(512, 128, 128, false);
    check_kernel_layout<WBits>(300, 70, 100, false);
    check_kernel_layout<WBits>(300, 70, 7, false);
    check_kernel_layout<WBits>(256, 65, 32, true);
    check_kernel_layout<WBits>(1, 1, -1, false);
  };
  check.operator()<1>();
  check.operator()<2>();
  check.operator()<4>();
  check.operator()<8>();
}

TEST_CASE("dequantize follows the formula of each kind of zero") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto kind = GENERATE(ZeroKind::none, ZeroKind::integer, ZeroKind::affine);
  const auto dtype = GENERATE(DType::f16, DType::bf16);
  for (const int group_size : {-1, 1, 7, 32, 128}) {
    for (const bool act_order : {false, true}) {
      const std::int64_t k = 150, n = 37;
      const auto weights = random_weights({.bits = bits,
                                           .k = k,
                                           .n = n,
                                           .group_size = group_size,
                                           .zero_kind = kind,
                                           .scale_dtype = dtype,
                                           .act_order = act_order,
                                           .seed = 3});
      const auto& data = data_of(weights);
      const auto codes = unpack(data.qweight, k, n, bits);
      const auto dense = dequantize(weights);
      REQUIRE(dense.size() == static_cast<std::size_t>(k * n));
      int wrong = 0;
      for (std::int64_t i = 0; i < k; ++i) {
        const std::int64_t g = act_order          ? data.g_idx[static_cast<std::size_t>(i)]
                               : group_size == -1 ? 0
                                                  : i / group_size;
        for (std::int64_t c = 0; c < n; ++c) {
          const auto at = static_cast<std::size_t>(g * n + c);
          const double s = to_float(data.scales[at], dtype);
          const double q = codes[static_cast<std::size_t>(i * n + c)];
          const double expected = kind == ZeroKind::none      ? s * (q - (1 << (bits - 1)))
                                  : kind == ZeroKind::integer ? s * (q - data.zeros[at])
                                                              : s * q + data.affine_zeros[at];
          wrong += dense[static_cast<std::size_t>(c * k + i)] != static_cast<float>(expected);
        }
      }
      INFO("bits " << bits << " " << to_string(kind) << " group " << group_size);
      CHECK(wrong == 0);
    }
  }
}

}  // namespace
}  // namespace mpq::test

// Every width, type, kind of zero, group size, order and batch, on awkward shapes, against float64.

#include <fmt/format.h>

#include <array>
#include <bit>
#include <string>
#include <vector>

#include "mpq/kernels/fused_weights.hpp"
#include "mpq/types.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/reference.hpp"
#include "support/run_linear.hpp"

namespace mpq::test {
namespace {

constexpr std::array<std::int64_t, 12> kBatches{0, 1, 2, 7, 8, 9, 16, 17, 33, 64, 100, 257};
constexpr std::array kGroupSizes{-1, 1, 7, 32, 64, 100, 128};
constexpr std::array<std::int64_t, 9> kAwkwardK{1, 7, 33, 100, 192, 257, 320, 512, 700};
constexpr std::array<std::int64_t, 8> kAwkwardN{1, 5, 16, 63, 65, 100, 129, 200};

// All batches, by the planned kernel, and every kernel on some of them.
void check_layer(const AnyQuantizedWeights& weights, DType dtype, std::uint64_t seed) {
  const WeightsData& data = data_of(weights);
  AnyLinear linear(weights, Device::cuda(), dtype);
  linear.check_parameters();
  linear.prepare_params();
  const auto x = random_activations(kBatches.back(), data.in_features, dtype, seed);
  const ConstMatrix x_view = view(x, dtype, kBatches.back(), data.in_features);
  const Reference all = reference_forward(weights, x_view);

  const auto check = [&](std::int64_t m, int kernel, int cluster = -1) {
    // All ways to split N and K, too.
    const int warps_n = cluster == -1 ? -1 : 1 << (seed + static_cast<std::uint64_t>(cluster)) % 4;
    RunSpec spec{.m = m, .options = {.kernel = kernel, .cluster = cluster, .warps_n = warps_n}};
    // Memory alternates between 16-byte aligned rows and rows with nothing aligned but the
    // elements.
    if ((seed + static_cast<std::uint64_t>(m)) % 2 == 0) {
      spec.x_padding = 3, spec.y_padding = 5, spec.x_offset = 1, spec.y_offset = 3;
    } else {
      spec.x_padding = round_up(data.in_features, 8) - data.in_features;
      spec.y_padding = round_up(data.out_features, 8) - data.out_features;
    }
    const auto y = run_linear(linear, x, spec);
    Reference reference = all;
    reference.rows = m;
    const auto mismatch =
        find_mismatch(reference, view(y, dtype, m, data.out_features), /*weights_rounded=*/true);
    if (mismatch) {
      FAIL_CHECK("m " << m << " kernel " << kernel << " cluster " << cluster << ": " << *mismatch);
    }
  };
  for (const std::int64_t m : kBatches) check(m, -1);
  for (const int kernel : usable_kernels(weights)) {
    check(1, kernel);
    check(33, kernel);
    if (!splits_k(kernel)) continue;
    for (const int cluster : {1, 2, 4, 8}) check(7, kernel, cluster);
  }
}

TEST_CASE("forward is right for every kind of layer") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto dtype = GENERATE(DType::f16, DType::bf16);
  std::uint64_t seed = static_cast<std::uint64_t>(bits);
  for (const auto zeros : {ZeroKind::none, ZeroKind::integer, ZeroKind::affine}) {
    for (const int group_size : kGroupSizes) {
      for (const bool act_order : {false, true}) {
        ++seed;
        const WeightsSpec spec{
            .bits = bits,
            .k = kAwkwardK[seed * 7 % kAwkwardK.size()],
            .n = kAwkwardN[seed * 5 % kAwkwardN.size()],
            .group_size = group_size,
            .zero_kind = zeros,
            .scale_dtype = seed % 3 == 0 ? DType::bf16 : DType::f16,
            .narrow_zeros = seed / 2 % 2 == 0,
            .act_order = act_order,
            .bias = seed % 2 == 0,
            .seed = seed,
        };
        INFO(fmt::format("w{} {} zeros {} group {} act-order {} K {} N {} scales {}", bits,
                         to_string(dtype), to_string(zeros), group_size, act_order, spec.k, spec.n,
                         to_string(spec.scale_dtype)));
        check_layer(random_weights(spec), dtype, seed);
      }
    }
  }
}

// Small enough for compute-sanitizer, and for the emulated device: mpq_device_tests "[small]".
TEST_CASE("every kernel is right on a small ragged layer", "[small]") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto dtype = GENERATE(DType::f16, DType::bf16);
  int layer = dtype == DType::f16 ? 0 : 1;
  for (const auto zeros : {ZeroKind::integer, ZeroKind::affine}) {
    for (const bool act_order : {false, true}) {
      if (is_slow() && act_order && zeros == ZeroKind::integer) continue;
      ++layer;
      const bool narrow = act_order && zeros == ZeroKind::affine;
      const auto weights = random_weights({.bits = bits,
                                           .k = 300,
                                           .n = 70,
                                           .group_size = 128,
                                           .zero_kind = zeros,
                                           .scale_dtype = narrow ? dtype : DType::f16,
                                           .narrow_zeros = narrow,
                                           .act_order = act_order,
                                           .bias = true,
                                           .seed = 4});
      AnyLinear linear(weights, Device::cuda(), dtype);
      linear.check_parameters();
      linear.prepare_params();
      const auto x = random_activations(9, 300, dtype, 5);
      const Reference reference = reference_forward(weights, view(x, dtype, 9, 300));
      for (const int kernel : usable_kernels(weights)) {
        for (const std::int64_t padding : {0, 1, 4}) {
          if (is_slow() && (kernel + layer + padding) % 3 != 0) continue;
          // Of the K-splitting kernels one after the other with every cluster.
          const bool decodes =
              kKernelTable[static_cast<std::size_t>(kernel)].family == KernelFamily::decode;
          const int cluster = !splits_k(kernel) ? -1
                              : padding == 0    ? 2
                              : padding == 4    ? 8
                              : decodes         ? 1
                                                : 3;
          const auto y =
              run_linear(linear, x,
                         {.m = 9,
                          .x_padding = padding,
                          .y_padding = padding,
                          .options = {.kernel = kernel,
                                      .cluster = cluster,
                                      .warps_n = cluster == -1 ? -1 : 1 << (padding % 3)}});
          const auto mismatch = find_mismatch(reference, view(y, dtype, 9, 70), true);
          if (mismatch) FAIL_CHECK("w" << bits << " kernel " << kernel << ": " << *mismatch);
        }
      }
    }
  }
}

// Where one multiply-add makes a weight, as long as scales are not too large or too far apart, and
// their products with zeros are exact.
TEST_CASE("all scales and zeros are right", "[small]") {
  enum Case { largest_scales, lowered_scales, scales_far_apart, all_zeros, cases };
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto dtype = GENERATE(DType::f16, DType::bf16);
  const int which = GENERATE(range(0, static_cast<int>(cases)));
  constexpr std::int64_t kK = 300, kN = 70, kRows = 3;
  auto weights = random_weights(
      {.bits = bits, .k = kK, .n = kN, .group_size = 32, .scale_dtype = dtype, .seed = 8});
  WeightsData& data = data_of(weights);
  const auto limit = kernels::fused_scale_limit(bits, dtype);
  for (std::size_t i = 0; i < data.scales.size(); ++i) {
    const auto zero = static_cast<unsigned>(i) % ((1u << bits) + 1);
    data.zeros[i] = static_cast<std::uint16_t>(which == all_zeros ? zero : std::bit_floor(zero));
    const auto magnitude = i % 7 == 0 || data.scales[i] >= limit ? limit - 1u : data.scales[i];
    data.scales[i] = static_cast<std::uint16_t>(magnitude | (i % 3 == 0 ? 0x8000u : 0u));
  }
  if (which == lowered_scales || which == scales_far_apart) data.scales[5 * kN + 66] = limit;
  if (which == scales_far_apart) data.scales[3 * kN + 2] = 1;  // subnormal
  AnyLinear linear(weights, Device::cuda(), dtype);
  linear.prepare_params();
  const auto x = random_activations(kRows, kK, dtype, 9);
  const Reference reference = reference_forward(weights, view(x, dtype, kRows, kK));
  for (const int kernel : usable_kernels(weights)) {
    if (!fuses_weights(kKernelTable[static_cast<std::size_t>(kernel)], bits)) continue;
    if (is_slow() && kernel % cases != which) continue;
    const auto y = run_linear(linear, x, {.m = kRows, .options = {.kernel = kernel}});
    const auto mismatch = find_mismatch(reference, view(y, dtype, kRows, kN), true);
    if (mismatch) FAIL_CHECK("w" << bits << " kernel " << kernel << ": " << *mismatch);
  }
}

// Walks over several tiles where there are few multiprocessors, as the emulated device has.
TEST_CASE("columns in another order are gathered for few rows and for many", "[small]") {
  constexpr std::int64_t kMost = 600, kColumns = 1203;
  const auto weights = random_weights(
      {.bits = 4, .k = kColumns, .n = 16, .group_size = 128, .act_order = true, .seed = 4});
  AnyLinear linear(weights, Device::cuda(), DType::f16);
  linear.prepare_params();
  const auto x = random_activations(kMost, kColumns, DType::f16, 5);
  Reference reference = reference_forward(weights, view(x, DType::f16, kMost, kColumns));
  for (const std::int64_t m : {std::int64_t{1}, std::int64_t{3}, std::int64_t{160}, kMost}) {
    for (const std::int64_t padding : {0, 5}) {  // rows apart by an odd number, and by 16 bytes
      const auto y = run_linear(linear, x, {.m = m, .x_padding = padding});
      reference.rows = m;
      const auto mismatch = find_mismatch(reference, view(y, DType::f16, m, 16), true);
      if (mismatch) FAIL_CHECK("m " << m << " padding " << padding << ": " << *mismatch);
    }
  }
}

TEST_CASE("all kernels agree on a small layer of many channels", "[small]") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto which = GENERATE(range(0, 4));
  const int group_size = std::array{16, 32, 64, -1}[static_cast<std::size_t>(which)];
  if (is_slow() && (bits == 1 || bits == 4) != (which % 2 == 0)) return;
  constexpr std::int64_t kRows = 40, kK = 300, kN = 460;  // two tiles of the widest
  const auto weights = random_weights({.bits = bits,
                                       .k = kK,
                                       .n = kN,
                                       .group_size = group_size,
                                       .bias = true,
                                       .exact = true,
                                       .seed = 21});
  AnyLinear linear(weights, Device::cuda(), DType::f16);
  linear.prepare_params();
  const auto x = random_activations(kRows, kK, DType::f16, 22, /*exact=*/true);
  const auto expected =
      rounded(reference_forward(weights, view(x, DType::f16, kRows, kK)), DType::f16);
  for (const int kernel : usable_kernels(weights)) {
    if (is_slow() && (kernel + which / 2) % 2 != 0) continue;
    INFO(fmt::format("w{} group {} {}", bits, group_size,
                     to_string(kKernelTable[static_cast<std::size_t>(kernel)])));
    CHECK(run_linear(linear, x, {.m = kRows, .x_padding = 4, .options = {.kernel = kernel}}) ==
          expected);
  }
}

TEST_CASE("one and two rows are right whatever their groups and zeros", "[small]") {
  const auto bits = GENERATE(1, 2, 4, 8);
  struct Kind {
    ZeroKind zeros;
    bool narrow;  // affine zeros
    DType dtype;  // of x; scales are of float16
  };
  const auto [zeros, narrow, dtype] = GENERATE(
      Kind{ZeroKind::integer, false, DType::f16}, Kind{ZeroKind::affine, false, DType::f16},
      Kind{ZeroKind::affine, true, DType::f16}, Kind{ZeroKind::integer, false, DType::bf16});
  if (narrow && !fuses_affine_zeros(bits)) return;
  const auto group_size = GENERATE(32, 64, 128);
  constexpr std::int64_t kK = 1500, kN = 330;  // several units a warp, several columns
  const auto weights = random_weights({.bits = bits,
                                       .k = kK,
                                       .n = kN,
                                       .group_size = group_size,
                                       .zero_kind = zeros,
                                       .narrow_zeros = narrow,
                                       .seed = 31});
  AnyLinear linear(weights, Device::cuda(), dtype);
  linear.prepare_params();
  const auto x = random_activations(2, kK, dtype, 32);
  const Reference all = reference_forward(weights, view(x, dtype, 2, kK));
  for (const std::int64_t m : {1, 2}) {
    for (const int warps_n : {1, 8}) {
      for (const int cluster : {1, 4}) {
        if (!splits_k(0) && cluster > 1) continue;
        if (is_slow() && (warps_n == 1) != (cluster == 4)) continue;
        const auto y = run_linear(
            linear, x, {.m = m, .options = {.kernel = 0, .cluster = cluster, .warps_n = warps_n}});
        Reference reference = all;
        reference.rows = m;
        const auto mismatch = find_mismatch(reference, view(y, dtype, m, kN), false);
        INFO(fmt::format("w{} {} narrow {} group {} m {} warps_n {} cluster {}", bits,
                         to_string(dtype), narrow, group_size, m, warps_n, cluster));
        if (mismatch) FAIL_CHECK(*mismatch);
      }
    }
  }
}

TEST_CASE("forward is right where x does not fit shared memory") {
  const auto bits = GENERATE(1, 4, 8);
  const auto zeros = GENERATE(ZeroKind::integer, ZeroKind::affine);
  const auto weights =
      random_weights({.bits = bits, .k = 80000, .n = 70, .zero_kind = zeros, .seed = 6});
  AnyLinear linear(weights, Device::cuda(), DType::f16);
  linear.prepare_params();
  const auto x = random_activations(40, 80000, DType::f16, 7);
  const Reference all = reference_forward(weights, view(x, DType::f16, 40, 80000));
  for (const int kernel : usable_kernels(weights)) {
    const bool fixed_point = multiplies_fixed_point(kKernelTable[static_cast<std::size_t>(kernel)]);
    for (const std::int64_t m : {1, 40}) {
      // Two rows in selections would not fit the shared memory of eight multiprocessors.
      if (fixed_point && bits == 1 && m > 1) continue;
      Reference reference = all;
      reference.rows = m;
      const auto y = run_linear(linear, x, {.m = m, .options = {.kernel = kernel}});
      const auto mismatch = find_mismatch(reference, view(y, DType::f16, m, 70), true);
      if (mismatch) FAIL_CHECK("w" << bits << " m " << m << " kernel " << kernel << *mismatch);
    }
  }
}

TEST_CASE("every cluster of the Hopper prefill kernels is right and gives the same bits") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto group_size = GENERATE(32, 128, -1);
  const auto zeros = GENERATE(ZeroKind::integer, ZeroKind::affine);
  if (!runs_sm90a_code(traits_of(Device::cuda()))) return;
  constexpr std::int64_t kRows = 300, kK = 2100, kN = 600;
  const auto weights = random_weights({.bits = bits,
                                       .k = kK,
                                       .n = kN,
                                       .group_size = group_size,
                                       .zero_kind = zeros,
                                       .bias = true,
                                       .exact = true,
                                       .seed = 12});
  AnyLinear linear(weights, Device::cuda(), DType::f16);
  linear.prepare_params();
  const auto x = random_activations(kRows, kK, DType::f16, 13, /*exact=*/true);
  const auto expected =
      rounded(reference_forward(weights, view(x, DType::f16, kRows, kK)), DType::f16);
  for (int kernel = 0; kernel < kKernelCount; ++kernel) {
    const KernelConfig& config = kKernelTable[static_cast<std::size_t>(kernel)];
    if (config.isa != Isa::sm90a || !is_compiled(config, bits)) continue;
    for (const int multicast : {1, 2}) {
      if (multicast > 1 && !shares_x(config)) continue;
      for (const int split : {1, 2, 3, 4}) {
        for (const std::int64_t padding : {4, 1}) {  // by TMA and not: 2104 and 2101 halves a row
          INFO(fmt::format("w{} group {} {} multicast {} split {} padding {}", bits, group_size,
                           to_string(config), multicast, split, padding));
          const RunSpec spec{
              .m = kRows,
              .x_padding = padding,
              .y_padding = padding,
              .options = {.kernel = kernel, .cluster = split, .multicast = multicast}};
          CHECK(run_linear(linear, x, spec) == expected);
        }
      }
    }
  }
}

// More tiles than multiprocessors, so that clusters walk: rings and phases go on from tile to tile.
TEST_CASE("Hopper prefill kernels are right over several tiles a CTA") {
  const auto bits = GENERATE(1, 2, 4, 8);
  if (!runs_sm90a_code(traits_of(Device::cuda()))) return;
  constexpr std::int64_t kRows = 2500, kK = 700, kN = 3000;
  const auto weights = random_weights(
      {.bits = bits, .k = kK, .n = kN, .group_size = 64, .bias = true, .exact = true, .seed = 14});
  AnyLinear linear(weights, Device::cuda(), DType::bf16);
  linear.prepare_params();
  const auto x = random_activations(kRows, kK, DType::bf16, 15, /*exact=*/true);
  std::vector<std::uint16_t> expected;
  for (int kernel = 0; kernel < kKernelCount; ++kernel) {
    const KernelConfig& config = kKernelTable[static_cast<std::size_t>(kernel)];
    if (config.family != KernelFamily::prefill || !is_compiled(config, bits)) continue;
    for (const int multicast : {1, 2}) {
      INFO(fmt::format("w{} {} multicast {}", bits, to_string(config), multicast));
      const auto y = run_linear(
          linear, x,
          {.m = kRows, .x_padding = 4, .options = {.kernel = kernel, .multicast = multicast}});
      // Exact sums: the sm80 kernels, first in the table, say what is right.
      if (expected.empty()) expected = y;
      CHECK(y == expected);
    }
  }
}

// More tiles than the device takes at once, by a few: they are a launch of their own.
TEST_CASE("a layer in two launches has the bits of one launch") {
  const DeviceTraits device = traits_of(Device::cuda());
  if (!runs_sm90a_code(device)) return;
  // The fewer the rows the more channels are a wave.
  const auto [m, k, waves] =
      GENERATE(std::array<std::int64_t, 3>{500, 2048, 0}, std::array<std::int64_t, 3>{90, 1024, 1},
               std::array<std::int64_t, 3>{60, 1536, 1});
  std::int64_t n = waves * 256 * device.sm_count + 5;  // the last strip is not full
  const std::int64_t most = n + 20000;
  const auto launches_twice = [&] {
    const Problem problem{.m = m,
                          .n = n,
                          .k = k,
                          .n_padded = round_up(n, layout_align_n(4)),
                          .k_padded = round_up(k, layout_align_k(4)),
                          .group_columns = 64};
    return plan(problem, device).tail.kernel != -1;
  };
  while (n < most && !launches_twice()) n += 64;
  const auto weights = random_weights(
      {.bits = 4, .k = k, .n = n, .group_size = 64, .bias = true, .exact = true, .seed = 14});
  AnyLinear linear(weights, Device::cuda(), DType::f16);
  linear.prepare_params();
  INFO("N " << n << ": " << linear.describe(m));
  REQUIRE(linear.describe(m).find("from channel") != std::string::npos);
  const auto x = random_activations(m, k, DType::f16, 15, /*exact=*/true);
  const auto expected = run_linear(linear, x, {.m = m, .options = {.one_launch = true}});
  for (const std::int64_t padding : {0, 1, 4}) {
    for (const bool programmatic : {false, true}) {
      CHECK(run_linear(linear, x,
                       {.m = m,
                        .x_padding = padding,
                        .y_padding = padding,
                        .options = {.programmatic = programmatic}}) == expected);
    }
  }
}

TEST_CASE("forward is right on a layer of real size") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto dtype = GENERATE(DType::f16, DType::bf16);
  const WeightsSpec spec{.bits = bits, .k = 2048, .n = 1024, .scale_dtype = dtype, .seed = 3};
  INFO("w" << bits << " " << to_string(dtype));
  check_layer(random_weights(spec), dtype, 11);
}

}  // namespace
}  // namespace mpq::test

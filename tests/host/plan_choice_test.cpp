// Which kernel is chosen for what.

#include "mpq/plan.hpp"
#include "problems.hpp"
#include "support/catch.hpp"
#include "support/expect_error.hpp"

namespace mpq::test {
namespace {

TEST_CASE("few rows are decoded, reading the weights once, and many are prefilled") {
  for (const int bits : {1, 2, 4, 8}) {
    const Plan one = plan(of_bits(bits, 1, 8192, 8192), kHopper);
    CHECK(one.config().family == KernelFamily::decode);
    CHECK(one.grid_m == 1);
    // From there to 32 rows the estimates decide: codes of few bits are multiplied as they are.
    const Plan eight = plan(of_bits(bits, 8, 28672, 4096), kHopper);
    CHECK(eight.config().family == KernelFamily::prefill);
    CHECK(eight.config().tile_m == (bits < 8 ? 8 : 16));
    CHECK(eight.grid_m == 1);
  }
  CHECK(plan(of_bits(1, 2, 28672, 4096), kHopper).config().family == KernelFamily::decode);
  CHECK(plan(of_bits(1, 3, 28672, 4096), kHopper).config().family == KernelFamily::prefill);
  CHECK(plan(of_bits(4, 3, 8192, 8192), kHopper).config().family == KernelFamily::prefill);
  CHECK(plan(of_bits(4, 2, 6144, 4096), kHopper).config().family == KernelFamily::decode);
  CHECK(plan(of_bits(4, 2, 57344, 8192), kHopper).config().family == KernelFamily::decode);
  CHECK(plan(of_bits(8, 4, 4096, 4096), kHopper).config().family == KernelFamily::decode);
  CHECK(plan(problem(32, 4096, 4096), kHopper).config().family == KernelFamily::prefill);
  CHECK(plan(problem(32, 28672, 4096), kHopper).config().family == KernelFamily::prefill);
  const Plan large = plan(problem(4096), kHopper);
  CHECK(large.config().family == KernelFamily::prefill);
  CHECK(large.config().isa == Isa::sm90a);
  CHECK(large.config().tile_n * large.config().tile_m == 128 * 256);
  CHECK(plan(problem(64), kHopper).config().tile_m == 64);
  const Plan ampere = plan(problem(4096), {.compute_capability = 80, .sm_count = 108});
  CHECK(ampere.config().isa == Isa::sm80);
  CHECK(ampere.config().tile_m == 128);
}

TEST_CASE("small groups and affine zeros are known to cost more") {
  const auto of = [](int bits, std::int64_t m, std::int64_t group, ZeroKind zeros,
                     std::int64_t n = 8192, std::int64_t k = 8192) {
    Problem other = of_bits(bits, m, n, k);
    other.group_columns = group;
    other.zeros = zeros;
    return plan(other, kHopper);
  };
  // Two rows of two groups in a block are two passes in small layers, else tiles of eight rows; not
  // 16-bit products.
  CHECK(of(4, 2, 32, ZeroKind::integer, 4096, 4096).grid_m == 2);
  CHECK(of(4, 2, 32, ZeroKind::integer).config().isa == Isa::sm90a);
  CHECK(of(4, 2, 64, ZeroKind::integer).config().tile_m == 2);
  // Raised codes end their sums with a group.
  CHECK(multiplies_raised_codes(of(4, 16, 64, ZeroKind::integer).config(), 4));
  CHECK_FALSE(multiplies_raised_codes(of(4, 16, 32, ZeroKind::integer).config(), 4));
  CHECK(multiplies_raised_codes(of(4, 16, 128, ZeroKind::affine).config(), 4));
  // Decode kernels of 16 rows and more are not considered.
  CHECK(of(8, 16, 32, ZeroKind::affine, 4096, 4096).config().family == KernelFamily::prefill);
}

TEST_CASE("affine zeros that are fused cost larger batches no more than a power of two") {
  for (const int bits : {2, 4, 8}) {
    for (const std::int64_t m : {64, 96, 128, 256}) {
      Problem fused = of_bits(bits, m, 8192, 8192);
      fused.fuses = true;
      const Plan integers = plan(fused, kHopper);
      fused.zeros = ZeroKind::affine;
      const Plan affine = plan(fused, kHopper);
      CHECK(affine.kernel == integers.kernel);
      CHECK(affine.cluster == integers.cluster);
    }
  }
}

TEST_CASE("statistics stay packed where that was measured to be faster") {
  const auto packed = [](int bits, std::int64_t m, std::int64_t group, std::int64_t n) {
    Problem statistics = of_bits(bits, m, n);
    statistics.group_columns = group;
    return keeps_statistics_packed(statistics, kHopper);
  };
  CHECK(packed(4, 1, 32, 1024));
  CHECK(packed(4, 1, 64, 8192));
  CHECK(packed(8, 2, 32, 1024));
  CHECK_FALSE(packed(8, 4, 32, 1024));
  CHECK_FALSE(packed(4, 1, 64, 1024));
  CHECK_FALSE(packed(4, 1, 128, 8192));
  CHECK_FALSE(packed(4, 2, 32, 8192));
  CHECK_FALSE(packed(8, 1, 64, 8192));
  CHECK_FALSE(packed(8, 9, 32, 8192));
  CHECK_FALSE(packed(2, 1, 32, 8192));
}

TEST_CASE("seven strips a CTA fill the device where powers of two of them do not") {
  const auto tile_n = [](int bits, std::int64_t m, std::int64_t n, std::int64_t k) {
    return plan(of_bits(bits, m, n, k), kHopper).config().tile_n;
  };
  for (const int bits : {1, 2, 4}) {
    CHECK(tile_n(bits, 8, 57344, 8192) == 448);
    CHECK(tile_n(bits, 16, 57344, 8192) == 448);
    CHECK(tile_n(bits, 16, 8192, 8192) != 448);
  }
  CHECK(tile_n(2, 8, 28672, 4096) == 448);
  CHECK(tile_n(8, 8, 57344, 8192) != 448);  // is not compiled
}

TEST_CASE("one row, and two where that is faster, are fixed-point numbers where they fit") {
  const auto rows = [](const Problem& problem, const DeviceTraits& device = kHopper) {
    const Plan chosen = plan(problem, device);
    CHECK(chosen.chunks == 1);
    return chosen.config().tile_m;
  };
  CHECK(rows(problem(1)) == 2);
  CHECK(rows(problem(2)) == 2);
  CHECK(rows(problem(3)) == 8);
  // Of 8 bits not in the largest layers, in small groups or on other devices.
  Problem wide = of_bits(8, 1, 4096, 4096);
  CHECK(rows(wide) == 2);
  CHECK(rows(wide, {.compute_capability = 80, .sm_count = 108}) == 8);
  wide.group_columns = 64;
  CHECK(rows(wide) == 8);
  CHECK(rows(of_bits(8, 1, 8192, 28672)) == 8);
  Problem narrow = problem(2);
  narrow.bits = 2;
  CHECK(rows(narrow, {.compute_capability = 80, .sm_count = 108}) == 2);
  CHECK(rows(narrow) == 2);
  narrow.m = 3;
  CHECK(rows(narrow) == 8);  // raised codes
  // Two groups in a block of 128 columns leave room for one row.
  narrow.m = 2;
  narrow.group_columns = 64;
  CHECK(rows(narrow) == 8);
  CHECK(plan(narrow, kHopper, {.kernel = 0}).grid_m == 2);
  // So do planes; two rows of 1 bit are selections, in groups of 128 columns and more.
  narrow = of_bits(1, 2);
  narrow.group_columns = 64;
  CHECK(rows(narrow) == 8);
  CHECK(plan(narrow, kHopper, {.kernel = 0}).grid_m == 2);
  narrow.group_columns = 128;
  CHECK(rows(narrow) == 2);
  CHECK(plan(narrow, kHopper, {.kernel = 0}).grid_m == 1);
  CHECK(plan(narrow, kHopper, {.programmatic = true}).config().tile_m == 2);
  // Without clusters x of 8192 columns, in twice as many bytes as digits are, does not fit.
  CHECK(rows(narrow, {.compute_capability = 80, .sm_count = 108}) == 8);
  CHECK(rows(of_bits(1, 2, 4096, 4096), {.compute_capability = 80, .sm_count = 108}) == 2);
  narrow.m = 1;
  CHECK(rows(narrow) == 2);
  CHECK(plan(narrow, kHopper, {.kernel = 0}).grid_m == 1);
  CHECK(rows(narrow, {.compute_capability = 80, .sm_count = 108}) == 2);
  CHECK(rows(narrow, {.compute_capability = 120, .sm_count = 170}) == 8);
  narrow.m = 3;
  CHECK(rows(narrow) == 8);
  CHECK(plan(narrow, kHopper, {.kernel = 0}).grid_m == 2);
  // In small layers of 2 bits two tiles side by side are ahead of other products.
  const Problem layer = of_bits(2, 3, 2048, 2048);
  CHECK(rows(layer) == 2);
  CHECK(plan(layer, kHopper).grid_m == 2);
  CHECK(plan(layer, kHopper, {.programmatic = true}).config().tile_m == 8);
  CHECK(rows(of_bits(2, 3, 4096, 4096)) == 8);

  const DeviceTraits small{
      .compute_capability = 89, .sm_count = 128, .shared_bytes_per_block = 99 << 10};
  CHECK(rows(problem(1, 4096, 4096), small) == 2);
  CHECK(plan(problem(1, 4096, 28672), small).config().tile_m == 8);
  CHECK(refuses([&] { plan(problem(1, 4096, 28672), small, {.kernel = 0}); },
                ErrorCode::unsupported, "28672 columns"));
}

TEST_CASE("Hopper's instructions are used on Hopper only, and only if they were compiled") {
  for (const DeviceTraits& device :
       {DeviceTraits{.compute_capability = 89}, DeviceTraits{.compute_capability = 100},
        DeviceTraits{.compute_capability = 90, .sm90a_code = false}}) {
    for (const std::int64_t m : {1, 64, 256, 4096}) {
      CHECK(plan(problem(m), device).config().isa == Isa::sm80);
    }
    for (int kernel = 0; kernel < kKernelCount; ++kernel) {
      const KernelConfig& config = kKernelTable[static_cast<std::size_t>(kernel)];
      if (!is_compiled(config, problem(64).bits)) continue;
      const bool sm80 = config.isa == Isa::sm80;
      CHECK(sm80 != refuses([&] { plan(problem(64), device, {.kernel = kernel}); },
                            ErrorCode::unsupported, "sm90a"));
    }
  }
}

TEST_CASE("decode kernels of many rows and few bits are not for Hopper") {
  const DeviceTraits ampere{.compute_capability = 80, .sm_count = 108};
  for (const int bits : {1, 2, 4, 8}) {
    for (int kernel = 0; kernel < kKernelCount; ++kernel) {
      const KernelConfig& config = kKernelTable[static_cast<std::size_t>(kernel)];
      if (config.family != KernelFamily::decode) continue;
      const Problem layer = of_bits(bits, 20, 4096, 4096);
      CHECK(plan(layer, ampere, {.kernel = kernel}).kernel == kernel);
      CHECK((config.tile_m > 8 && bits < 8) ==
            refuses([&] { plan(layer, kHopper, {.kernel = kernel}); }, ErrorCode::unsupported,
                    "a compute capability other than 90", "the device has compute capability 90"));
    }
    CHECK(plan(of_bits(bits, 20, 4096, 4096), ampere).config().tile_m == 32);
  }
}

TEST_CASE("groups that most kernels do not take are for the others") {
  Problem small = problem(4096);
  small.group_columns = kLeastGroup / 2;
  for (const DeviceTraits& device : {kHopper, DeviceTraits{.compute_capability = 80}}) {
    for (const std::int64_t m : {1, 3, 9, 32, 64, 4096}) {
      small.m = m;
      const Plan chosen = plan(small, device);
      CHECK(takes_groups(chosen.config(), small.group_columns));
      CHECK(chosen.config().isa == Isa::sm80);
      CHECK((chosen.config().family == KernelFamily::decode) == (m <= 32));
    }
  }
  for (int kernel = 0; kernel < kKernelCount; ++kernel) {
    const KernelConfig& config = kKernelTable[static_cast<std::size_t>(kernel)];
    if (!is_available(config, small.bits, kHopper)) continue;
    CHECK(takes_groups(config, 16) != refuses([&] { plan(small, kHopper, {.kernel = kernel}); },
                                              ErrorCode::unsupported,
                                              "groups of 32 columns and more, the layer has 16"));
  }
}

TEST_CASE("scales too large for Hopper's prefill kernels are for the others") {
  for (const std::int64_t m : {1, 8, 40, 1000}) {
    Problem large = problem(m);
    large.scales_are_large = true;
    CHECK(plan(large, kHopper).config().isa == Isa::sm80);
    for (int kernel = 0; kernel < kKernelCount; ++kernel) {
      const KernelConfig& config = kKernelTable[static_cast<std::size_t>(kernel)];
      if (config.isa != Isa::sm90a || !is_compiled(config, large.bits)) continue;
      CHECK(refuses([&] { plan(large, kHopper, {.kernel = kernel}); }, ErrorCode::unsupported,
                    "2^7"));
    }
  }
}

TEST_CASE("kernels that a width has no use for are refused") {
  for (int kernel = 0; kernel < kKernelCount; ++kernel) {
    const KernelConfig& config = kKernelTable[static_cast<std::size_t>(kernel)];
    for (const int bits : {1, 2, 4, 8}) {
      CHECK(is_compiled(config, bits) !=
            refuses([&] { plan(of_bits(bits, 8), kHopper, {.kernel = kernel}); },
                    ErrorCode::unsupported, "is not for " + std::to_string(bits) + " bits"));
    }
  }
}

}  // namespace
}  // namespace mpq::test

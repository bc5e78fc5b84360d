// Planning is pure: every decision here is checked with no GPU.

#include "mpq/plan.hpp"

#include "core/remembered_plan.hpp"
#include "support/catch.hpp"
#include "support/expect_error.hpp"

namespace mpq::test {
namespace {

constexpr DeviceTraits kHopper{.compute_capability = 90, .sm_count = 132};

Problem problem(std::int64_t m, std::int64_t n = 8192, std::int64_t k = 8192) {
  return {
      .bits = 4, .m = m, .n = n, .k = k, .n_padded = round_up(n, 64), .k_padded = round_up(k, 128)};
}

Problem of_bits(int bits, std::int64_t m, std::int64_t n = 8192, std::int64_t k = 8192) {
  Problem layer = problem(m, n, k);
  layer.bits = bits;
  return layer;
}

TEST_CASE("the plan covers every row and channel") {
  for (const std::int64_t m : {1, 7, 8, 9, 16, 17, 32, 33, 64, 100, 257, 4096, 100000}) {
    for (const std::int64_t n : {1, 63, 64, 65, 4096, 57344}) {
      for (int kernel = -1; kernel < kKernelCount; ++kernel) {
        if (kernel != -1 && !is_available(kKernelTable[static_cast<std::size_t>(kernel)],
                                          problem(m, n).bits, kHopper)) {
          continue;
        }
        const Plan chosen = plan(problem(m, n), kHopper, {.kernel = kernel});
        // The decode kernels walk over channels, whatever the grid.
        const bool walks = chosen.config().family == KernelFamily::decode;
        const bool whole = chosen.tail.kernel == -1;
        const std::int64_t channels = std::int64_t{chosen.grid_n} * chosen.config().tile_n;
        CHECK((walks || channels >= (whole ? n : chosen.tail.first_channel)));
        if (!whole) {
          const PlanTail& tail = chosen.tail;
          CHECK(channels == tail.first_channel);
          CHECK(tail.first_channel + std::int64_t{tail.grid_n} * tail.config().tile_n >= n);
          CHECK(std::int64_t{tail.grid_m} * tail.config().tile_m >= m);
        }
        CHECK(static_cast<std::int64_t>(chosen.grid_m) * chosen.config().tile_m >= m);
        if (kernel != -1) CHECK(chosen.kernel == kernel);
      }
    }
  }
}

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

TEST_CASE("tiles that are a few more than fit at once are a launch of their own") {
  const Problem odd = problem(512, 10240, 8192);
  const Plan chosen = plan(odd, kHopper);
  REQUIRE(chosen.tail.kernel != -1);
  CHECK(chosen.tail.first_channel == 66 * 128);  // two tiles of 256 rows each: 132
  CHECK(to_string(chosen).find("from channel 8448 on prefill sm90a") != std::string::npos);
  CHECK(plan(odd, kHopper, {.one_launch = true}).tail.kernel == -1);
  CHECK(plan(odd, kHopper, {.kernel = chosen.kernel}).tail.kernel == -1);
  CHECK(plan(problem(128, 10240, 8192), kHopper).tail.kernel == -1);
  CHECK(plan(problem(512, 8192, 8192), kHopper).tail.kernel == -1);  // 128 tiles
  CHECK(plan(problem(128, 57344, 8192), kHopper).tail.first_channel == 132 * 256);
  CHECK(plan(problem(96, 57344, 8192), kHopper).tail.kernel == -1);
  CHECK(plan(problem(64, 57344, 8192), kHopper).tail.first_channel == 132 * 256);
  CHECK(plan(problem(64, 28672, 4096), kHopper).tail.kernel == -1);  // 112 tiles
  const auto invariant = [](std::int64_t m) {
    return plan(problem(m, 57344, 8192), kHopper, {.batch_invariant = true});
  };
  CHECK(invariant(1).tail.kernel != -1);
  CHECK(invariant(1) == invariant(64));
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

TEST_CASE("in a chain a CTA has its multiprocessor for itself where there are enough") {
  const auto alone = [](const Problem& problem, bool programmatic) {
    const Plan chosen = plan(problem, kHopper, {.programmatic = programmatic});
    const bool decode = chosen.config().family == KernelFamily::decode;
    const int ctas = decode ? static_cast<int>(chosen.grid_n) : chosen.clusters * chosen.cluster;
    CHECK(ctas <= kHopper.sm_count);
    return chosen.shared_bytes > pair_shared_bytes(kHopper);
  };
  CHECK(alone(problem(1, 4096, 14336), true));
  CHECK_FALSE(alone(problem(1, 4096, 14336), false));
  CHECK(alone(of_bits(8, 64, 8192, 2048), true));
  CHECK(plan(problem(1, 57344, 8192), kHopper, {.programmatic = true}).shared_bytes <=
        pair_shared_bytes(kHopper));  // more CTAs than multiprocessors
}

TEST_CASE("nobody has a multiprocessor for itself where that would take a second wave") {
  for (const int bits : {1, 2, 4, 8}) {
    for (const std::int64_t m : {1, 2, 8, 16}) {
      for (const std::int64_t n : {1024, 2048, 4096, 7168, 10240}) {
        for (const int cluster : {-1, 4, 8}) {
          const Plan chosen =
              plan(of_bits(bits, m, n), kHopper, {.programmatic = true, .cluster = cluster});
          if (chosen.shared_bytes <= pair_shared_bytes(kHopper)) continue;
          const bool decode = chosen.config().family == KernelFamily::decode;
          const int clusters =
              decode ? static_cast<int>(chosen.grid_n) / chosen.cluster : chosen.clusters;
          INFO(bits << " bits, " << m << " rows, " << n << " channels: " << to_string(chosen));
          CHECK((chosen.cluster == 1 ||
                 clusters <=
                     kHopper.resident_clusters[static_cast<std::size_t>(chosen.cluster) - 2]));
        }
      }
    }
  }
}

TEST_CASE("a plan that is remembered is the plan") {
  // More problems than a thread remembers, twice.
  for (int round = 0; round < 2; ++round) {
    for (const int bits : {1, 2, 4, 8}) {
      for (std::int64_t m = 0; m < 70; m += 3) {
        for (const bool programmatic : {false, true}) {
          const Problem asked = of_bits(bits, m, 4096, 4096);
          const ForwardOptions options{.programmatic = programmatic};
          CHECK(detail::remembered_plan(asked, Device::cuda(0), kHopper, options) ==
                plan(asked, kHopper, options));
        }
      }
    }
  }
  const Problem one = problem(1, 4096, 4096);
  const DeviceTraits other{.compute_capability = 80, .sm_count = 108};
  CHECK(detail::remembered_plan(one, Device::cuda(0), kHopper, {}) == plan(one, kHopper));
  CHECK(detail::remembered_plan(one, Device::cuda(1), other, {}) == plan(one, other));
  CHECK(refuses(
      [&] { detail::remembered_plan(one, Device::cuda(0), kHopper, {.kernel = kKernelCount}); },
      ErrorCode::invalid_argument, std::to_string(kKernelCount)));
  CHECK(detail::remembered_plan(one, Device::cuda(0), kHopper, {.kernel = 1}).kernel == 1);
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

TEST_CASE("clusters and programmatic launch need Hopper's machine code") {
  DeviceTraits ampere = kHopper;
  ampere.compute_capability = 80;
  ampere.shared_bytes_per_block = 99 << 10;
  DeviceTraits without_code = kHopper;
  without_code.sm90a_code = false;
  for (const std::int64_t m : {1, 8, 20, 64, 500}) {
    CHECK(plan(problem(m), ampere).cluster == 1);
    CHECK(plan(problem(m), ampere).shared_bytes <= ampere.shared_bytes_per_block);
    CHECK(plan(problem(m), without_code).cluster == 1);
  }
  CHECK(refuses([&] { plan(problem(1), ampere, {.cluster = 2}); }, ErrorCode::unsupported, "80"));
  CHECK(plan(problem(1), kHopper, {.programmatic = true}).programmatic);
  CHECK_FALSE(plan(problem(1), ampere, {.programmatic = true}).programmatic);
  CHECK_FALSE(plan(problem(1), without_code, {.programmatic = true}).programmatic);
}

TEST_CASE("a cluster's slices cover K once, and fit shared memory") {
  for (const int units : {1, 2, 7, 8, 64, 65, 224, 1000}) {
    for (const int cluster : {1, 2, 4, 8}) {
      for (const int chunks : {1, 3}) {
        int next = 0;
        for (int chunk = 0; chunk < chunks; ++chunk) {
          for (int rank = 0; rank < cluster; ++rank) {
            const auto split = KSplit::of(units, 4, chunks, cluster, rank);
            CHECK(split.part_begin(chunk, 4) - split.part_begin(chunk, 0) <= split.slice());
            for (int warp = 0; warp < 4; ++warp) {
              CHECK(split.part_begin(chunk, warp) == next);
              next = split.part_begin(chunk, warp + 1);
              CHECK(next - split.part_begin(chunk, warp) <= split.part);
            }
          }
        }
        CHECK(next == units);
      }
    }
  }
  CHECK(refuses([] { plan(problem(1), kHopper, {.warps_n = 16}); }, ErrorCode::invalid_argument,
                "16"));
  for (const std::int64_t k : {64, 4096, 28672, 1 << 20}) {
    for (const std::int64_t m : {1, 16, 32, 64}) {
      for (const auto zeros : {ZeroKind::integer, ZeroKind::affine}) {
        Problem wide = problem(m, 4096, k);
        wide.zeros = zeros;
        wide.group_columns = 16;
        for (const int cluster : {-1, 1, 8}) {
          const Plan chosen = plan(wide, kHopper, {.cluster = cluster});
          CHECK(chosen.shared_bytes <= kHopper.shared_bytes_per_block);
          if (chosen.config().family != KernelFamily::decode) continue;  // else grid_n is tiles
          CHECK(chosen.grid_n % static_cast<unsigned>(chosen.cluster) == 0);
        }
      }
    }
  }
}

TEST_CASE("a batch-invariant plan cuts K alike for all batches") {
  const Plan first = plan(problem(1), kHopper, {.batch_invariant = true});
  for (const std::int64_t m : {2, 8, 9, 31, 33, 64}) {
    Plan other = plan(problem(m), kHopper, {.batch_invariant = true});
    other.grid_m = first.grid_m;
    CHECK(other == first);
  }
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

TEST_CASE("clusters cover the tiles, and no slice of K is empty") {
  for (int kernel = 0; kernel < kKernelCount; ++kernel) {
    const KernelConfig& config = kKernelTable[static_cast<std::size_t>(kernel)];
    if (config.isa != Isa::sm90a || !is_compiled(config, problem(1).bits)) continue;
    for (const std::int64_t m : {1, 64, 200, 5000}) {
      for (const std::int64_t k : {128, 384, 8192}) {
        for (const int multicast : {-1, 1, 2}) {
          for (const int split : {-1, 1, 2, 3, 4}) {
            const std::int64_t chunks = ceil_div(k, prefill_chunk_k(config, problem(m).bits));
            const Plan p = plan(problem(m, 1000, k), kHopper,
                                {.kernel = kernel, .cluster = split, .multicast = multicast});
            CHECK(p.grid_n % static_cast<unsigned>(p.multicast) == 0);
            const int slices = p.cluster / p.multicast;
            CHECK(slices <= chunks);
            CHECK(p.cluster <= 8);
            CHECK(p.clusters >= 1);
            const bool alone = p.shared_bytes > pair_shared_bytes(kHopper);
            if (alone) CHECK((config.ctas_per_sm == 2 && p.clusters * p.cluster <= 132));
            if (config.ctas_per_sm == 2 && p.clusters == 1) CHECK(alone);
            CHECK(static_cast<unsigned>(p.clusters * p.multicast) <= p.grid_n * p.grid_m);
            if (multicast != -1) CHECK(p.multicast == (shares_x(config) ? multicast : 1));
            if (split != -1) CHECK(slices == std::min<std::int64_t>(split, chunks));
          }
        }
      }
    }
  }
  CHECK(refuses([] { plan(problem(64), kHopper, {.multicast = 3}); }, ErrorCode::invalid_argument,
                "multicast is 3"));
  CHECK(refuses([] { plan(problem(64), kHopper, {.cluster = 8, .multicast = 2}); },
                ErrorCode::invalid_argument, "2 x cluster 8"));
}

TEST_CASE("plans and kernels print themselves") {
  CHECK(to_string(plan(problem(0), kHopper)) == "nothing to do");
  CHECK(to_string(plan(problem(1), kHopper)).starts_with("decode sm80 64x2 warps 1x1x8"));
  CHECK(to_string(plan(problem(1), kHopper, {.cluster = 4})).ends_with("cluster 4"));
  Problem gathered = problem(1);
  gathered.gathers = true;
  CHECK(to_string(plan(gathered, kHopper)).ends_with("x gathered"));
}

TEST_CASE("what cannot be planned is refused with the value and the limit") {
  CHECK(refuses([] { plan(problem(1), kHopper, {.kernel = kKernelCount}); },
                ErrorCode::invalid_argument, std::to_string(kKernelCount)));
  CHECK(refuses([] { plan(problem(1), kHopper, {.kernel = -2}); }, ErrorCode::invalid_argument,
                "-2"));
  CHECK(
      refuses([] { plan(problem(1), {.compute_capability = 75}); }, ErrorCode::unsupported, "75"));
  CHECK(
      refuses([] { plan(problem(1), kHopper, {.cluster = 3}); }, ErrorCode::invalid_argument, "3"));
  CHECK(refuses([] { plan(problem(64), kHopper, {.cluster = 9}); }, ErrorCode::invalid_argument,
                "9"));
  CHECK(refuses([] { plan(problem(70000 * 8), kHopper, {.kernel = 0}); }, ErrorCode::unsupported,
                "560000"));
}

TEST_CASE("the workspace holds the gathered x and nothing else") {
  CHECK(workspace_bytes(problem(1), 100) == 0);
  Problem gathered = problem(1, 64, 100);
  gathered.gathers = true;
  CHECK(workspace_bytes(gathered, 0) == 0);
  CHECK(workspace_bytes(gathered, 3) == 768);  // 3 * 128 columns * 2 bytes
  CHECK(workspace_bytes(gathered, 4) == 1024);
}

}  // namespace
}  // namespace mpq::test

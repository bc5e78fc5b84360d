// Planning is pure: every decision is checked with no GPU. Here: how a plan covers the work, and
// what it refuses; which kernel is chosen is plan_choice_test.cpp's.

#include "mpq/plan.hpp"

#include "core/remembered_plan.hpp"
#include "problems.hpp"
#include "support/catch.hpp"
#include "support/expect_error.hpp"

namespace mpq::test {
namespace {

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

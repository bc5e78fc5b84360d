#include "core/plan_prefill.hpp"

#include <algorithm>
#include <cstdint>

#include "core/early_start.hpp"
#include "core/format.hpp"
#include "mpq/error.hpp"
#include "mpq/layout.hpp"

namespace mpq::detail {
namespace {

// Rows up to which tiles of 160 and 192 rows are considered: with more they fill nothing up, and
// are slower than the largest (8 bits, 8192 x 8192, 2048 rows: 463 and 457 us against 415).
constexpr std::int64_t kOddTileRows = 1024;

// Whether a kernel is one of those to choose from.
bool is_candidate(const KernelConfig& config, const Problem& problem) {
  if (config.isa != Isa::sm90a || !is_compiled(config, problem.bits)) return false;
  if (config.tile_m > 128 && config.tile_m < 256 && problem.m > kOddTileRows) return false;
  return config.tile_m < 4 * std::max<std::int64_t>(problem.m, 8);  // else mostly empty
}

// The cheapest cluster for a row, as far as the options leave it open.
Candidate best_cluster(const KernelConfig& config, const Problem& problem,
                       const DeviceTraits& device, const ForwardOptions& options) {
  const std::int64_t chunks = ceil_div(problem.k_padded, prefill_chunk_k(config, problem.bits));
  Candidate best;
  for (int multicast = 1; multicast <= 2; ++multicast) {
    if (!shares_x(config) ? multicast != 1
                          : options.multicast != -1 && multicast != options.multicast) {
      continue;
    }
    for (int split = 1; split * multicast <= kMostClusterCtas && split <= chunks; ++split) {
      if (options.cluster != -1 && split != std::min<std::int64_t>(options.cluster, chunks)) {
        continue;
      }
      // Of their own accord only these: three slices are slower than they are estimated to be.
      if (options.cluster == -1 && shares_x(config) && split != 1 && split != 2 && split != 4) {
        continue;
      }
      const ClusterShape cluster{multicast, split};
      const bool chained = begins_early(problem, device, options);
      double cycles = estimate_prefill(config, cluster, problem, device, chained);
      if (chained) {
        const std::int64_t ctas =
            cluster.ctas() * std::min(cluster_tiles(config, problem, multicast),
                                      resident_clusters(device, cluster, config.ctas_per_sm));
        cycles += estimate_in_chain(config, cluster.ctas(), ctas, device, cycles);
      }
      if (cycles < best.cycles) best = {cluster, cycles};
    }
  }
  return best;
}

// Tiles and clusters of an sm90a prefill kernel. LaunchPlan: Plan or PlanTail.
template <class LaunchPlan>
void place_tiles(const Problem& problem, const DeviceTraits& device, const ClusterShape& cluster,
                 LaunchPlan& plan) {
  const KernelConfig& config = plan.config();
  const std::int64_t tiles = cluster_tiles(config, problem, cluster.multicast);
  if (tiles > std::numeric_limits<std::int32_t>::max()) {
    throw Error(ErrorCode::unsupported,
                detail::format("plan: {} x {} outputs are more tiles of {} than 32 bits count",
                               problem.m, problem.n, to_string(config)));
  }
  // Slices of K have nothing to overlap with the next tile: the hardware hands out their tiles.
  const std::int64_t walkers =
      cluster.split == 1 && config.warps_k == 1
          ? std::min(tiles, resident_clusters(device, cluster, config.ctas_per_sm))
          : tiles;
  plan.cluster = cluster.ctas();
  plan.multicast = cluster.multicast;
  plan.clusters = static_cast<int>(walkers);
  plan.grid_m = static_cast<unsigned>(ceil_div(problem.m, config.tile_m));
  plan.grid_n = static_cast<unsigned>(tiles / plan.grid_m * cluster.multicast);
  if constexpr (requires { plan.shared_bytes; }) {
    const bool apart = config.ctas_per_sm == 2 && walkers <= resident_clusters(device, cluster);
    plan.shared_bytes = apart ? static_cast<int>(alone_shared_bytes(device)) : 0;
  }
}

// So many of a problem's channels; only its extents count.
Problem with_channels(Problem problem, std::int64_t channels) {
  problem.n_padded = channels;
  return problem;
}

// Whether a kernel can take full waves of tiles, so that another one takes the channels that would
// begin a wave without filling it. With many rows only the largest was ever ahead of one launch.
bool takes_full_waves(const KernelConfig& config, const Problem& problem) {
  constexpr std::int64_t kManyRows = 512;
  if (!is_candidate(config, problem)) return false;
  return config.ctas_per_sm == 1 && config.warps_k == 1 &&
         (problem.m <= kManyRows || config.tile_m == 256);
}

// Cuts off the channels whose tiles would begin a wave without filling it, if that is faster: full
// waves of a large tile, and for the other channels what is best for them.
void cut_tail(const Problem& problem, const DeviceTraits& device, double cycles, Plan& plan) {
  // Cycles; of the whole, by which estimates of many rows may be wrong.
  constexpr double kSecondLaunch = 6500, kLeastGain = 1.022, kLeastGainOfFewRows = 1.01;
  constexpr std::int64_t kFewRows = 64;
  const std::int64_t resident = resident_clusters(device, {});
  double best = cycles / (problem.m <= kFewRows ? kLeastGainOfFewRows : kLeastGain);
  for (int row = 0; row < kKernelCount; ++row) {
    const KernelConfig& config = kKernelTable[static_cast<std::size_t>(row)];
    if (!takes_full_waves(config, problem)) continue;
    const std::int64_t tiles = cluster_tiles(config, problem, 1) / resident * resident;
    const std::int64_t channels = tiles / ceil_div(problem.m, config.tile_m) * config.tile_n;
    if (channels == 0 || channels >= problem.n_padded) continue;
    const Problem head = with_channels(problem, channels),
                  rest = with_channels(problem, problem.n_padded - channels);
    const double head_cycles = estimate_prefill(config, {}, head, device) + kSecondLaunch;
    if (head_cycles + least_cycles(rest, device) >= best) continue;
    const Prefill fastest = choose_prefill(rest, device, {});
    if (head_cycles + fastest.cycles >= best) continue;
    best = head_cycles + fastest.cycles;
    plan.kernel = row;
    place_tiles(head, device, {}, plan);
    plan.tail.kernel = fastest.kernel;
    plan.tail.first_channel = channels;
    place_tiles(rest, device, fastest.cluster, plan.tail);
  }
}

}  // namespace

Prefill choose_prefill(const Problem& problem, const DeviceTraits& device,
                       const ForwardOptions& options) {
  Prefill best;
  for (int i = 0; i < kKernelCount; ++i) {
    const KernelConfig& config = kKernelTable[static_cast<std::size_t>(i)];
    if (!is_candidate(config, problem)) continue;
    const Candidate candidate = best_cluster(config, problem, device, options);
    if (candidate.cycles < best.cycles) best = {candidate, i};
  }
  return best;
}

void plan_clusters(const Problem& problem, const DeviceTraits& device,
                   const ForwardOptions& options, Plan& plan) {
  const Candidate candidate = best_cluster(plan.config(), problem, device, options);
  place_tiles(problem, device, candidate.cluster, plan);
  const bool free = options.kernel == -1 && options.cluster == -1 && options.multicast == -1;
  if (free && !options.one_launch) cut_tail(problem, device, candidate.cycles, plan);
}

}  // namespace mpq::detail

#include "mpq/plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "mpq/error.hpp"
#include "mpq/layout.hpp"
#include "mpq/workspace.hpp"

namespace mpq {
namespace {

constexpr std::int64_t kMaxGridM = 65535;  // CUDA's limit on a grid's second dimension

std::int64_t ctas(const KernelConfig& config, const Problem& problem) {
  return ceil_div(problem.n_padded, config.tile_n) * ceil_div(problem.m, config.tile_m);
}

// ---- the sm90a prefill kernels ----

constexpr int kMostClusterCtas = 8;  // what every device allows

struct ClusterShape {
  int multicast = 1, split = 1;
  int ctas() const { return multicast * split; }
};

// Clusters that are resident at once. Clusters live inside a GPC; 16 of its multiprocessors are
// certain on the parts there are, pairs fit wherever two are free.
std::int64_t resident_clusters(const DeviceTraits& device, const ClusterShape& cluster) {
  constexpr int kGpcSms = 16;
  const int ctas = cluster.ctas();
  const std::int64_t fitting =
      ctas <= 2 ? device.sm_count / ctas : device.sm_count / kGpcSms * (kGpcSms / ctas);
  return std::max<std::int64_t>(fitting, 1);
}

std::int64_t cluster_tiles(const KernelConfig& config, const Problem& problem, int multicast) {
  return ceil_div(problem.n_padded, config.tile_n * multicast) * ceil_div(problem.m, config.tile_m);
}

// Cycles that a launch takes, from how fast an H200's parts are; good for comparing.
double estimate_cycles(const KernelConfig& config, const ClusterShape& cluster,
                       const Problem& problem, const DeviceTraits& device) {
  constexpr double kMultiplyAddsPerCycle = 2048;  // of an SM's tensor cores
  constexpr double kL2BytesPerCycle = 28;         // of an SM, when all read
  constexpr double kMostL2BytesPerCycle = 56;     // when few do
  constexpr double kDramBytesPerCycle = 2500;     // of the device
  constexpr double kNeighbourBytesPerCycle = 14;  // of an SM, out of a cluster's shared memory
  constexpr double kSharedBytesPerCycle = 128;
  constexpr double kFill = 1500, kEpiloguePer4096 = 160, kClusterBarriers = 600;
  constexpr int kStageK = 64, kIssuersPerSm = 4;

  const double tile = static_cast<double>(config.tile_n) * config.tile_m;
  const auto tiles = static_cast<double>(cluster_tiles(config, problem, cluster.multicast));
  const auto resident = static_cast<double>(resident_clusters(device, cluster));
  const double waves = std::ceil(tiles / resident);
  const auto chunk_k = layout_align_k(problem.bits);
  const auto stages = static_cast<double>(ceil_div(problem.k_padded / chunk_k, cluster.split) *
                                          (chunk_k / kStageK));

  // A stage.
  const double tensor = tile * kStageK / kMultiplyAddsPerCycle;
  const double instructions_per_pair = problem.bits < 8 ? 4 : problem.dtype == DType::f16 ? 4 : 9;
  const double dequantise =
      config.tile_n * kStageK / 2 * instructions_per_pair / (32.0 * kIssuersPerSm);
  const double x_bytes = 2.0 * config.tile_m * kStageK / cluster.multicast;
  const double weight_bytes = config.tile_n * kStageK * problem.bits / 8.0;
  const double busy = std::min(1.0, tiles / resident);
  const double l2_rate = std::min(kL2BytesPerCycle / busy, kMostL2BytesPerCycle);
  const double l2 = (x_bytes + weight_bytes) / l2_rate;
  // What is hidden still costs a little, by conflicts and by power: without this small tiles win.
  constexpr double kHidden = 0.15;
  const double longest = std::max({tensor, dequantise, l2});
  const double stage = longest + kHidden * (tensor + dequantise + l2 - longest);

  const double epilogue = kEpiloguePer4096 * tile / 4096;
  double cycles = kFill + waves * stages * stage;
  if (cluster.split == 1) {
    cycles += epilogue;  // the others hide behind the next tile
  } else {
    const double moved = 4 * tile;
    cycles += waves * (epilogue / cluster.split + kClusterBarriers + moved / kSharedBytesPerCycle +
                       moved * (cluster.split - 1) / cluster.split / kNeighbourBytesPerCycle);
  }
  const double weights = static_cast<double>(problem.n_padded) *
                         static_cast<double>(problem.k_padded) * problem.bits / 8;
  return std::max(cycles, kFill + epilogue + weights / kDramBytesPerCycle);
}

// The cheapest cluster for a row, as far as the options leave it open.
struct Candidate {
  ClusterShape cluster;
  double cycles = std::numeric_limits<double>::infinity();
};

Candidate best_cluster(const KernelConfig& config, const Problem& problem,
                       const DeviceTraits& device, const ForwardOptions& options) {
  const std::int64_t chunks = problem.k_padded / layout_align_k(problem.bits);
  Candidate best;
  for (int multicast = 1; multicast <= 2; ++multicast) {
    if (options.multicast != -1 && multicast != options.multicast) continue;
    for (int split = 1; split * multicast <= kMostClusterCtas && split <= chunks; ++split) {
      if (options.split != -1 && split != std::min<std::int64_t>(options.split, chunks)) continue;
      const ClusterShape cluster{multicast, split};
      const double cycles = estimate_cycles(config, cluster, problem, device);
      if (cycles < best.cycles) best = {cluster, cycles};
    }
  }
  return best;
}

// ---- the choice ----

// Decode: the smallest tile that takes all rows, so that weights are read once. Beyond decode, on
// Hopper what the estimate says, elsewhere the largest prefill tile that still occupies most of the
// device; the smallest if none does.
int choose(const Problem& problem, const DeviceTraits& device, const ForwardOptions& options) {
  int chosen = -1;
  double cycles = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kKernelCount; ++i) {
    const KernelConfig& config = kKernelTable[static_cast<std::size_t>(i)];
    if (!runs_on(config, device)) continue;
    if (config.family == KernelFamily::decode) {
      if (problem.m <= config.tile_m) return i;
    } else if (config.isa == Isa::sm90a) {
      const Candidate candidate = best_cluster(config, problem, device, options);
      if (candidate.cycles < cycles) chosen = i, cycles = candidate.cycles;
    } else if (chosen == -1 || ctas(config, problem) * 4 >= device.sm_count * std::int64_t{3}) {
      chosen = i;
    }
  }
  return chosen;
}

void check_options(const ForwardOptions& options) {
  if (options.kernel < -1 || options.kernel >= kKernelCount) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("plan: kernel is {}, the table has rows 0 to {}", options.kernel,
                            kKernelCount - 1));
  }
  const auto in_range = [](int value, int most) {
    return value == -1 || (value >= 1 && value <= most);
  };
  if (!in_range(options.multicast, 2) || !in_range(options.split, kMostClusterCtas) ||
      options.multicast * options.split > kMostClusterCtas) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("plan: multicast {} x split {}, must be 1 or 2 and 1 to 8, 8 in all",
                            options.multicast, options.split));
  }
}

}  // namespace

Plan plan(const Problem& problem, const DeviceTraits& device, const ForwardOptions& options) {
  check_options(options);
  Plan result;
  if (problem.m == 0) return result;
  result.kernel = options.kernel != -1 ? options.kernel : choose(problem, device, options);
  if (result.kernel == -1) {
    throw Error(ErrorCode::unsupported,
                fmt::format("plan: every kernel needs compute capability 80 or higher, the device "
                            "has {}",
                            device.compute_capability));
  }
  const KernelConfig& config = result.config();
  if (!runs_on(config, device)) {
    throw Error(
        ErrorCode::unsupported,
        fmt::format("plan: {} needs compute capability {}, the device has {} and the build {} "
                    "sm_90a code",
                    to_string(config), config.isa == Isa::sm90a ? "9.0" : "8.0 or higher",
                    device.compute_capability, device.sm90a_code ? "has" : "lacks"));
  }
  const std::int64_t grid_m = ceil_div(problem.m, config.tile_m);
  if (config.family == KernelFamily::prefill && config.isa == Isa::sm90a) {
    const ClusterShape cluster = best_cluster(config, problem, device, options).cluster;
    const std::int64_t tiles = cluster_tiles(config, problem, cluster.multicast);
    if (tiles > std::numeric_limits<std::int32_t>::max()) {
      throw Error(ErrorCode::unsupported,
                  fmt::format("plan: {} x {} outputs are more tiles of {} than 32 bits count",
                              problem.m, problem.n, to_string(config)));
    }
    result.multicast = cluster.multicast;
    result.split = cluster.split;
    result.clusters = static_cast<int>(
        std::min(tiles, cluster.split == 1 ? resident_clusters(device, cluster) : tiles));
    result.grid_n = static_cast<unsigned>(tiles / grid_m * cluster.multicast);
    result.grid_m = static_cast<unsigned>(grid_m);
    result.gathers = problem.gathers;
    return result;
  }
  if (grid_m > kMaxGridM) {
    throw Error(ErrorCode::unsupported,
                fmt::format("plan: batch is {}, {} takes at most {} rows", problem.m,
                            to_string(config), kMaxGridM * config.tile_m));
  }
  result.grid_n = static_cast<unsigned>(ceil_div(problem.n_padded, config.tile_n));
  result.grid_m = static_cast<unsigned>(grid_m);
  result.gathers = problem.gathers;
  return result;
}

std::string to_string(const KernelConfig& config) {
  return fmt::format("{} {} {}x{} warps {}x{}x{} stages {}", to_string(config.family),
                     to_string(config.isa), config.tile_n, config.tile_m, config.warps_n,
                     config.warps_m, config.warps_k, config.stages);
}

std::string to_string(const Plan& plan) {
  if (plan.kernel == -1) return "nothing to do";
  const std::string cluster =
      plan.clusters == 0 ? ""
                         : fmt::format(", {} clusters of {} sharing x times {} slices of K",
                                       plan.clusters, plan.multicast, plan.split);
  return fmt::format("{} grid {}x{}{}{}", to_string(plan.config()), plan.grid_n, plan.grid_m,
                     cluster, plan.gathers ? ", x gathered" : "");
}

std::size_t workspace_bytes(const Problem& problem, std::int64_t max_m) {
  if (!problem.gathers) return 0;
  const std::int64_t halves = max_m * problem.k_padded;
  return static_cast<std::size_t>(
      round_up(halves * 2, static_cast<std::int64_t>(kWorkspaceAlignment)));
}

}  // namespace mpq

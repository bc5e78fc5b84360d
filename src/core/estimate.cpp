#include "core/estimate.hpp"

#include <algorithm>
#include <cmath>

namespace mpq::detail {

namespace {

// What differs between the Hopper prefill kernels for few rows that round weights and those that
// multiply raised codes, in cycles; fitted to sweeps of all of their tiles.
struct FewRowCosts {
  double in_phases;  // what dequantising takes where warpgroups take turns along K, factor
  double exposed;    // of the shorter of products and dequantising
  double tile, tile_per_channel = 0;
  double split, split_squared;  // of a tile cut into so many slices
  double three_exposed = 1.3;   // of three warpgroups with a strip each, which hide less of each
  double three_split = 0;       // other than four: factor of exposed; of a slice
  // Of two CTAs a multiprocessor: dequantising, products and reading in one that is alone, both, a
  // tile, when shared, and slices.
  double alone = 0, alone_tensor = 0, alone_read = 0, crowded = 0;
  double pair_tile = 0, pair_shared = 0, pair_split = 0, pair_split_squared = 0;
  double idle = 0;              // of reading, what the busiest multiprocessor has more
  double read_bytes_per_cycle;  // of a multiprocessor, where an H200 reads
};
constexpr FewRowCosts kRounding{.in_phases = 0.95,
                                .exposed = 0.524,
                                .tile = 1938,
                                .tile_per_channel = 12.3,
                                .split = 807,
                                .split_squared = 0,
                                .alone = 1.261,
                                .alone_tensor = 0.613,
                                .alone_read = 1.29,
                                .crowded = 1.074,
                                .pair_tile = 3534,
                                .pair_shared = 1.014,
                                .pair_split = 1518,
                                .pair_split_squared = 31.7,
                                .idle = 0,
                                .read_bytes_per_cycle = 19};
constexpr FewRowCosts kRoundingBytes{.in_phases = 0.709,
                                     .exposed = 0.574,
                                     .tile = 3298,
                                     .tile_per_channel = 10.7,
                                     .split = 1022,
                                     .split_squared = 0,
                                     .three_exposed = 1.2,
                                     .three_split = 1050,
                                     .alone = 1.271,
                                     .alone_tensor = 0.465,
                                     .alone_read = 1.236,
                                     .crowded = 1.045,
                                     .pair_tile = 4507,
                                     .pair_shared = 1.199,
                                     .pair_split = 1807,
                                     .pair_split_squared = 2.14,
                                     .idle = 0,
                                     .read_bytes_per_cycle = 19};
constexpr FewRowCosts kRaising{.in_phases = 1,
                               .exposed = 0.502,
                               .tile = 1607,
                               .tile_per_channel = 4.45,
                               .split = 2329,
                               .split_squared = 9.06,
                               .alone = 1.178,
                               .alone_tensor = 0.792,
                               .alone_read = 0.453,
                               .crowded = 1.022,
                               .pair_tile = 3841,
                               .pair_shared = 1.119,
                               .pair_split = 999,
                               .pair_split_squared = 8.73,
                               .idle = 0.5,
                               .read_bytes_per_cycle = 15.8};
// The same in four phases, which have no pairs.
constexpr FewRowCosts kRaisingInPhases{.in_phases = 0.706,
                                       .exposed = 1.905,
                                       .tile = 4498,
                                       .split = 575,
                                       .split_squared = 6.33,
                                       .read_bytes_per_cycle = 16.9};

const FewRowCosts& few_row_costs(const KernelConfig& config, const Problem& problem) {
  if (multiplies_raised_codes(config, problem.bits)) {
    return config.warps_k > 1 ? kRaisingInPhases : kRaising;
  }
  return problem.bits == 8 ? kRoundingBytes : kRounding;
}

// By how much small groups and affine zeros lengthen dequantising for up to 64 rows: more scales,
// sums that end sooner, and affine zeros of float32 to take apart.
constexpr GroupFactors kRoundingGroups{0.976, 1, 1.1, 1.25, 1.7};
constexpr GroupFactors kRoundingBitGroups{0.976, 1, 1.25, 1.4, 1.75};
constexpr GroupFactors kRoundingByteGroups{1.18, 1.18, 1.1, 1.15, 1.15};
constexpr GroupFactors kRaisingGroups[3]{// 8, 16 and 32 rows
                                         {1.05, 1.55, 1.07, 1.36, 2.15},
                                         {1.3, 2.16, 1.1, 1.76, 2.48},
                                         {1.82, 2.15, 1.25, 1.92, 3}};

// Of more than 64 rows: fitted with less knowledge, to groups of 128 and integer zeros.
double small_groups(const KernelConfig& config, const Problem& problem) {
  if (shares_x(config) || problem.group_columns >= 128) return 1;
  const bool raised = multiplies_raised_codes(config, problem.bits);
  if (problem.group_columns >= 64) return !raised ? 1.11 : config.tile_m > 8 ? 1.28 : 1;
  const bool sum_by_sum = config.warps_n == 16 && config.tile_m > 16;  // short of registers
  return !raised ? 1.3 : sum_by_sum ? 2.15 : 1.85;
}

constexpr std::int64_t kFewRows = 64;

// To a kernel that makes weights by one multiply-add affine zeros of 16 bits are like integers.
bool fuses(const KernelConfig& config, const Problem& problem) {
  return problem.fuses && fuses_weights(config, problem.bits);
}

double groups_factor(const KernelConfig& config, const Problem& problem) {
  if (problem.m > kFewRows) return small_groups(config, problem);
  if (multiplies_raised_codes(config, problem.bits)) {
    return kRaisingGroups[config.tile_m > 16 ? 2 : config.tile_m > 8 ? 1 : 0].of(problem);
  }
  return (problem.bits == 8   ? kRoundingByteGroups
          : problem.bits == 1 ? kRoundingBitGroups
                              : kRoundingGroups)
      .of(problem, problem.zeros == ZeroKind::affine && !fuses(config, problem));
}

// Issue slots that a warp needs for 64 channels x 64 columns in groups of 128 and more, its share
// of a stage's bookkeeping included.
double large_group_slots(const KernelConfig& config, const Problem& problem) {
  if (multiplies_raised_codes(config, problem.bits)) {
    const double slots = problem.bits == 4   ? (problem.dtype == DType::bf16 ? 94.7 : 92.1)
                         : problem.bits == 2 ? 79.2
                                             : 70.6;
    return slots * (has_several_strips(config) ? 0.862 : 1) *
           (config.tile_m > 16  ? 1.389
            : config.tile_m > 8 ? 1.179
                                : 1);
  }
  const bool fused = fuses(config, problem);
  switch (problem.bits) {
    case 8:
      if (config.tile_m <= 16) return fused ? 129 : 144;
      return fused ? 118 : shares_x(config) ? 137 : 132;
    case 4:
      return fused ? 112 : 125;
    case 2:
      return has_longest_stages(config, problem.bits) ? 113 : 118;
    default:  // made by one multiply-add, which tells where 64 rows are products, too
      return config.tile_m == 64 && problem.m <= 64 ? 103 : 111;
  }
}

double dequantising_slots(const KernelConfig& config, const Problem& problem) {
  return large_group_slots(config, problem) * groups_factor(config, problem);
}

}  // namespace

std::int64_t resident_clusters(const DeviceTraits& device, const ClusterShape& cluster,
                               int ctas_per_sm) {
  const int ctas = cluster.ctas();
  if (ctas == 1) return std::int64_t{device.sm_count} * ctas_per_sm;
  const auto& clusters = ctas_per_sm == 2 ? device.paired_clusters : device.resident_clusters;
  return std::max(clusters.at(static_cast<std::size_t>(ctas) - 2), 1);
}

double read_bytes_per_cycle(const DeviceTraits& device, double of_h200) {
  const DeviceTraits h200;
  return of_h200 * (device.memory_gb_per_s / device.sm_count) /
         (h200.memory_gb_per_s / h200.sm_count);
}

double GroupFactors::of(const Problem& problem, bool is_affine) const {
  if (problem.group_columns >= 128) return is_affine ? affine : 1;
  if (problem.group_columns >= 64) return is_affine ? affine_of_64 : of_64;
  return is_affine ? affine_of_32 : of_32;
}

double bits_read(const Problem& problem) {
  const double integer_bits = problem.bits == 8 ? 32 : 24;  // of a group and channel
  const double affine_bits = problem.fuses && reads_narrow_zeros(problem.bits) ? 32 : 48;
  const double bits = problem.zeros == ZeroKind::affine ? affine_bits : integer_bits;
  return problem.bits +
         std::max(bits / static_cast<double>(problem.group_columns) - integer_bits / 128, 0.);
}

std::int64_t cluster_tiles(const KernelConfig& config, const Problem& problem, int multicast) {
  return ceil_div(problem.n_padded, config.tile_n * multicast) * ceil_div(problem.m, config.tile_m);
}

namespace {

constexpr int kStageK = 64;
constexpr double kMultiplyAddsPerCycle = 2048;  // of an SM's tensor cores
constexpr double kCachedBytesPerCycle = 32.8;   // an SM's share of what the L2 cache gives,
constexpr double kSharedBytesPerCycle = 42;     // where other SMs want the same rows of x

// Stages of a slice of K.
double stages_of(const KernelConfig& config, const ClusterShape& cluster, const Problem& problem) {
  const int chunk_k = prefill_chunk_k(config, problem.bits);
  return static_cast<double>(ceil_div(ceil_div(problem.k_padded, chunk_k), cluster.split) *
                             (chunk_k / kStageK));
}

// What a stage of so many CTAs for each multiprocessor takes to be read.
double read_cycles(const KernelConfig& config, const Problem& problem, const DeviceTraits& device,
                   double ctas_per_sm) {
  const double bits = problem.m <= kFewRows ? bits_read(problem) : problem.bits;
  const double weights = config.tile_n * kStageK * bits / 8;
  const bool many_rows = shares_x(config);
  const double of_h200 = many_rows ? 19 : few_row_costs(config, problem).read_bytes_per_cycle;
  const double cached = many_rows ? kSharedBytesPerCycle : kCachedBytesPerCycle;
  return ctas_per_sm * std::max(weights / read_bytes_per_cycle(device, of_h200),
                                (weights + 2 * kStageK * config.tile_m) / cached);
}

// Two CTAs a multiprocessor: its two consumers alone cannot keep it busy, but nothing of one CTA's
// begin and end is in the way of the other.
double estimate_pairs(const KernelConfig& config, const ClusterShape& cluster,
                      const Problem& problem, const DeviceTraits& device, bool chained) {
  const double bytes = 4.0 * config.tile_n * config.tile_m;
  const double tensor = bytes / 4 * kStageK / kMultiplyAddsPerCycle;
  const FewRowCosts& costs = few_row_costs(config, problem);
  const double dequantise = config.tile_n / 64 * dequantising_slots(config, problem);
  const double alone = costs.alone * dequantise + costs.alone_tensor * tensor;
  const double crowded =
      std::max(alone, 2 * costs.crowded *
                          (std::max(tensor, dequantise) + 0.5 * std::min(tensor, dequantise)));
  double fixed = costs.pair_tile + 0.025 * bytes;
  if (cluster.split > 1) {
    const double split = cluster.split;
    fixed += costs.pair_split + costs.pair_split_squared * split * split +
             0.093 * bytes * (split - 1) / split;
  }
  const double stages = stages_of(config, cluster, problem);
  const std::int64_t apart = resident_clusters(device, cluster);
  const auto wave = [&](std::int64_t clusters) {
    // As soon as clusters have to share multiprocessors some CTAs take twice the time.
    const bool shares = clusters > apart;
    const double load =
        static_cast<double>(clusters * cluster.ctas()) / static_cast<double>(device.sm_count);
    // With half of the shared memory a CTA alone has less on its way.
    // Multiprocessors with a CTA less do not read the faster for it; in a chain the next launch
    // does.
    const double idle = shares && !chained ? costs.idle * (std::ceil(load) - load) : 0;
    const double read =
        read_cycles(config, problem, device, load + idle) * (shares ? 1 : costs.alone_read);
    return stages * std::max(shares ? crowded : alone, read) +
           fixed * (shares ? costs.pair_shared : 1);
  };
  const std::int64_t tiles = cluster_tiles(config, problem, cluster.multicast);
  const std::int64_t resident = resident_clusters(device, cluster, 2), rest = tiles % resident;
  return static_cast<double>(tiles / resident) * wave(resident) + (rest > 0 ? wave(rest) : 0);
}

}  // namespace

double estimate_prefill(const KernelConfig& config, const ClusterShape& cluster,
                        const Problem& problem, const DeviceTraits& device, bool chained) {
  constexpr double kMulticast = 1.15;  // CTAs that share x wait for each other
  if (config.ctas_per_sm == 2) {
    return estimate_pairs(config, cluster, problem, device, chained);
  }
  const bool few_rows = !shares_x(config);

  const double tile = static_cast<double>(config.tile_n) * config.tile_m;
  const auto tiles = static_cast<double>(cluster_tiles(config, problem, cluster.multicast));
  const auto resident = static_cast<double>(resident_clusters(device, cluster));
  const double waves = std::ceil(tiles / resident);
  const double stages = stages_of(config, cluster, problem);

  // Of 64 columns: the longer of products and dequantising, and what of the other is not hidden.
  const double tensor = tile * kStageK / kMultiplyAddsPerCycle;
  const FewRowCosts& costs = few_row_costs(config, problem);
  const double dequantise = config.tile_n / 64 * dequantising_slots(config, problem) *
                            (config.warps_k > 1 ? costs.in_phases : 1);
  const bool three = few_rows && config.warps_n == 12 && !has_several_strips(config);
  const double exposed = few_rows ? costs.exposed * (three ? costs.three_exposed : 1)
                         : config.tile_m <= 128 || groups_factor(config, problem) > 1 ? 0.414
                                                                                      : 0;
  const double busy =
      std::min(tiles * cluster.ctas(), static_cast<double>(device.sm_count)) / device.sm_count;
  const double read = read_cycles(config, problem, device, busy);
  // A device full of short products is slower than one multiprocessor would be.
  const double slowed = few_rows ? 0 : config.tile_m > 128 ? 0.172 : 0.054;
  const double crowd = 1 + slowed * busy;
  const double stage =
      std::max(std::max(tensor, dequantise) + exposed * std::min(tensor, dequantise), read) *
      crowd * (cluster.multicast > 1 ? kMulticast : 1);

  // Of a tile: filling the rings and writing y; adding up what phases and slices summed.
  const double bytes = 4 * tile;
  double fixed = few_rows ? costs.tile + costs.tile_per_channel * config.tile_n : 4600;
  if (config.warps_k > 1) fixed += 0.1 * bytes;
  if (cluster.split > 1) {
    const double split = cluster.split;
    fixed +=
        few_rows ? costs.split + costs.split_squared * split * split : 3280 + 71.3 * split * split;
    if (three) fixed += costs.three_split * (split - 1);
    const double sent = !few_rows ? 0.0405 : config.warps_k > 1 ? 0.1 : 0.108;
    fixed += sent * bytes * (split - 1) / split;
  }
  // Walkers over large tiles have the next one's rings filled, and TMA write y, beside products.
  const double next = !few_rows && cluster.split == 1 ? 2450 : fixed;
  return waves * stages * stage + fixed + (waves - 1) * next;
}

double least_cycles(const Problem& problem, const DeviceTraits& device) {
  return static_cast<double>(problem.m) * static_cast<double>(problem.n_padded) *
         static_cast<double>(problem.k_padded) / (kMultiplyAddsPerCycle * device.sm_count);
}

double estimate_in_chain(const KernelConfig& config, int cluster, std::int64_t ctas,
                         const DeviceTraits& device, double cycles) {
  constexpr double kShares = -800;
  constexpr double kLarge = 700, kLargePart = 0.1, kSparsePart = 0.15;
  constexpr int kLargeCluster = 7;
  if (ctas <= device.sm_count) {
    // Some begin beside the launch before, the others behind it.
    const bool sparse = config.warps_k > 1 && cluster <= 2 && 2 * ctas > device.sm_count &&
                        3 * ctas < 2 * device.sm_count;
    return sparse ? kSparsePart * cycles : 0;
  }
  if (config.ctas_per_sm == 1) return 0;
  return cluster >= kLargeCluster ? kLarge + kLargePart * cycles : kShares;
}

}  // namespace mpq::detail

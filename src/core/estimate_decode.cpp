// What decode kernels take.

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/estimate.hpp"

namespace mpq::detail {

namespace {

// Of the decode kernels for up to 8 rows, in cycles, one launch after the other or chained.
struct DecodeCosts {
  double start, start_per_row = 0;  // the latter of the start
  double work[4];                   // of 64 channels x 8 columns, 1, 2, 4 and 8 bits,
  double work_per_row = 0;          // and a part of that for each further row
  double read_bytes_per_cycle;      // of a multiprocessor, where an H200 reads
  int power = 3;                    // or 2, of which work and reading are added up
  double tile, tile_per_warp = 0;   // warps side by side
  double further = 0;               // where a cluster has more than one tile
  double pair = 0, cta = 0;         // of an exchange between two CTAs, of each of more
  double uneven, idle = 0;          // of multiplying and reading, what the busiest SM has more
  // Part of the clusters that have a tile more, above which both of a multiprocessor's CTAs may be
  // of these; 0: that part of its second CTA's.
  double longer = 0;
  double alone;          // multiplying in a CTA that has its multiprocessor for itself, factor
  double x, digits = 0;  // of a column: bringing it, making its digits
  double chunks = 1;     // factor where x is cut into chunks, between which nothing multiplies
};
constexpr DecodeCosts kPlanes[2]{{.start = 4361,
                                  .work = {2.005, 0, 0, 0},
                                  .read_bytes_per_cycle = 18.4,
                                  .power = 2,
                                  .tile = 722,
                                  .tile_per_warp = 123,
                                  .pair = 228,
                                  .cta = 41.3,
                                  .uneven = 0.984,
                                  .idle = 0.713,
                                  .longer = 0.5,
                                  .alone = 1.271,
                                  .x = 0.471,
                                  .digits = 0.0498},
                                 {.start = 3289,
                                  .work = {3.236, 0, 0, 0},
                                  .read_bytes_per_cycle = 21,
                                  .tile = 1006,
                                  .tile_per_warp = 174,
                                  .further = 830,
                                  .cta = 84.8,
                                  .uneven = 0.129,
                                  .idle = 1.358,
                                  .longer = 1,
                                  .alone = 1.35,
                                  .x = 0.503,
                                  .digits = 0.0246}};
constexpr DecodeCosts kSelections[2]{{.start = 3035,
                                      .start_per_row = 0.004,
                                      .work = {3.677, 0, 0, 0},
                                      .read_bytes_per_cycle = 12.7,
                                      .tile = 549,
                                      .tile_per_warp = 202,
                                      .further = 56,
                                      .pair = 69,
                                      .uneven = 1.061,
                                      .idle = 0.008,
                                      .longer = 0.35,
                                      .alone = 1.209,
                                      .x = 0.363,
                                      .digits = 0.019},
                                     {.start = 3226,
                                      .start_per_row = 0.02,
                                      .work = {3.836, 0, 0, 0},
                                      .read_bytes_per_cycle = 18.2,
                                      .power = 2,
                                      .tile = 967,
                                      .tile_per_warp = 105,
                                      .further = 514,
                                      .pair = 37,
                                      .cta = 7.6,
                                      .uneven = 0.205,
                                      .idle = 1.325,
                                      .alone = 1.424,
                                      .x = 0.111,
                                      .digits = 0.002}};
constexpr DecodeCosts kDigitsOfFewBits[2]{{.start = 3788,
                                           .start_per_row = 0.004,
                                           .work = {4.817, 4.817, 0, 0},
                                           .read_bytes_per_cycle = 21,
                                           .tile = 235,
                                           .tile_per_warp = 282,
                                           .further = 235,
                                           .pair = 982,
                                           .cta = 25.5,
                                           .uneven = 0.824,
                                           .idle = 0.006,
                                           .longer = 0.5,
                                           .alone = 1.075,
                                           .x = 0.148,
                                           .digits = 0.266},
                                          {.start = 2427,
                                           .start_per_row = 0.012,
                                           .work = {4.537, 4.537, 0, 0},
                                           .read_bytes_per_cycle = 21.5,
                                           .tile = 88,
                                           .tile_per_warp = 206,
                                           .further = 2464,
                                           .pair = 1176,
                                           .cta = 40.8,
                                           .uneven = 0.528,
                                           .idle = 0.648,
                                           .alone = 1.352,
                                           .x = 0.274,
                                           .digits = 0.079}};
// Of 1 bit, whose small groups have no ring of scales and zeros: a CTA that is alone waits for
// them.
constexpr DecodeCosts waiting(DecodeCosts costs) {
  costs.alone = 1.45;
  return costs;
}
constexpr DecodeCosts kDigitsOfOneBit[2]{waiting(kDigitsOfFewBits[0]), kDigitsOfFewBits[1]};
constexpr DecodeCosts kDigits[2]{{.start = 3878,
                                  .start_per_row = 0.065,
                                  .work = {0, 0, 7.97, 0},
                                  .read_bytes_per_cycle = 23,
                                  .power = 2,
                                  .tile = 12,
                                  .tile_per_warp = 324,
                                  .further = 1454,
                                  .pair = 2.483,
                                  .cta = 7.286,
                                  .uneven = 0.292,
                                  .idle = 0.121,
                                  .longer = 0.5,
                                  .alone = 1.134,
                                  .x = 0.159,
                                  .digits = 0.056},
                                 {.start = 2396,
                                  .start_per_row = 0.3,
                                  .work = {0, 0, 3.387, 0},
                                  .read_bytes_per_cycle = 18.4,
                                  .tile = 380,
                                  .tile_per_warp = 112,
                                  .further = 910,
                                  .pair = 637,
                                  .cta = 62.3,
                                  .uneven = 0.245,
                                  .idle = 0.381,
                                  .alone = 2.663,
                                  .x = 0.105,
                                  .digits = 0.051}};
constexpr DecodeCosts kByteDigits[2]{{.start = 3866,
                                      .start_per_row = 0.028,
                                      .work = {0, 0, 0, 9.467},
                                      .read_bytes_per_cycle = 19.1,
                                      .power = 2,
                                      .tile = 149,
                                      .tile_per_warp = 290,
                                      .further = 754,
                                      .pair = 43.9,
                                      .cta = 3.514,
                                      .uneven = 0.133,
                                      .idle = 0.043,
                                      .longer = 0.35,
                                      .alone = 1.356,
                                      .x = 0.089,
                                      .digits = 0.146},
                                     {.start = 3939,
                                      .start_per_row = 0.155,
                                      .work = {0, 0, 0, 17.4},
                                      .read_bytes_per_cycle = 20.2,
                                      .tile = 44.7,
                                      .tile_per_warp = 27.6,
                                      .pair = 233,
                                      .cta = 6.405,
                                      .uneven = 0.085,
                                      .idle = 0.354,
                                      .longer = 1,
                                      .alone = 1.084,
                                      .x = 0.026,
                                      .digits = 0.003}};
constexpr DecodeCosts kProducts[2]{{.start = 5213,
                                    .start_per_row = 0.033,
                                    .work = {9.625, 9.625, 8.223, 0},
                                    .work_per_row = 0.011,
                                    .read_bytes_per_cycle = 18.4,
                                    .tile = 864,
                                    .tile_per_warp = 24.9,
                                    .pair = 183,
                                    .uneven = 0.757,
                                    .idle = 0.485,
                                    .longer = 0.5,
                                    .alone = 1.135,
                                    .x = 0.103,
                                    .chunks = 1.379},
                                   {.start = 3725,
                                    .start_per_row = 0.02,
                                    .work = {9.941, 9.941, 10.03, 0},
                                    .read_bytes_per_cycle = 20,
                                    .tile = 806,
                                    .tile_per_warp = 63.6,
                                    .uneven = 0.758,
                                    .idle = 0.3,
                                    .alone = 1.19,
                                    .x = 0.0868,
                                    .chunks = 1.209}};
constexpr DecodeCosts kByteProducts[2]{{.start = 5436,
                                        .work = {0, 0, 0, 10.88},
                                        .work_per_row = 0.026,
                                        .read_bytes_per_cycle = 18.6,
                                        .tile = 695,
                                        .further = 300,
                                        .cta = 78.5,
                                        .uneven = 0.5915,
                                        .idle = 0.04,
                                        .longer = 0.35,
                                        .alone = 1.295,
                                        .x = 0.0678,
                                        .chunks = 1.085},
                                       {.start = 3403,
                                        .start_per_row = 0.0316,
                                        .work = {0, 0, 0, 15.65},
                                        .work_per_row = 0.0156,
                                        .read_bytes_per_cycle = 20,
                                        .tile = 357,
                                        .pair = 144,
                                        .cta = 36.2,
                                        .uneven = 0.019,
                                        .idle = 0.393,
                                        .alone = 1.203,
                                        .x = 0.0581,
                                        .chunks = 1.035}};

// Tiles that the busiest multiprocessor has. Where it has two CTAs, one of them may have a tile
// less; in a chain the next launch fills what that leaves. longer: DecodeCosts'.
double busiest_load(const DecodeSplit& split, bool shared, double longer) {
  const std::int64_t fewest = split.tiles / split.clusters, rest = split.tiles % split.clusters;
  const auto most = static_cast<double>(fewest + (rest > 0));
  if (!shared) return most;
  if (rest == 0) return 2 * most;
  const double part = static_cast<double>(rest) / static_cast<double>(split.clusters);
  return most + static_cast<double>(fewest) + (longer == 0 ? part : part > longer ? 1 : 0);
}

// What a way to multiply costs, alone and in a chain, and other groups and zeros than those of 128
// columns and integers.
struct WayCosts {
  const DecodeCosts* of;
  GroupFactors groups;
};
WayCosts costs_of(const KernelConfig& config, const Problem& problem, std::int64_t rows) {
  if (multiplies_planes(config, problem.bits, problem.group_columns, rows)) {
    return {kPlanes, {1.53, 1, 1.21, 1.98, 1}};
  }
  if (multiplies_selections(config, problem.bits, rows)) return {kSelections, {1, 1, 1.63, 1, 1}};
  const bool bytes = problem.bits == 8;
  if (!multiplies_fixed_point(config)) {
    if (bytes) return {kByteProducts, {0.97, 1.05, 1, 1.03, 1.4}};
    return {kProducts, {1.3, 3, 1.2, 1.5, 3.3}};
  }
  if (problem.bits == 1) return {kDigitsOfOneBit, {1, 2.2, 1, 1, 2.4}};
  if (problem.bits == 2) return {kDigitsOfFewBits, {0.86, 1.37, 1.09, 1.04, 1.16}};
  if (problem.bits == 4) return {kDigits, {0.974, 1.26, 0.974, 1.06, 1.24}};
  return {kByteDigits, {1.5, 2, 1, 1.5, 2}};
}

}  // namespace

double estimate_decode(const Problem& problem, const KernelConfig& config,
                       const DeviceTraits& device, const DecodeSplit& split, bool chained) {
  const bool fixed_point = multiplies_fixed_point(config);
  const auto row_tiles = static_cast<double>(split.row_tiles);
  const double rows = split.row_tiles > 1 ? 1 : static_cast<double>(problem.m);
  const WayCosts way = costs_of(config, problem, static_cast<std::int64_t>(rows));
  const DecodeCosts& costs = way.of[chained ? 1 : 0];
  const int slots =
      fixed_point ? static_cast<int>(rows)
                  : decode_row_slots(
                        config, static_cast<int>(std::min<std::int64_t>(problem.m, config.tile_m)));
  const bool shared =
      split.clusters * split.row_tiles > resident_clusters(device, {.split = split.cluster});
  const int per_sm = shared ? 2 : 1;

  const double mean =
      static_cast<double>(split.tiles) * split.cluster / device.sm_count * row_tiles;
  const double more = std::max(busiest_load(split, shared, costs.longer) - mean, 0.);
  const double slice = split.columns * split.warps_k / split.chunks;
  const double work =
      costs.work[std::countr_zero(static_cast<unsigned>(problem.bits))] * way.groups.of(problem);
  const double tile = split.columns * work * (1 + costs.work_per_row * (rows - 1)) + costs.tile +
                      costs.tile_per_warp * split.warps_n;
  const double multiplied =
      ((mean + costs.uneven * more) * tile + costs.digits * slice * rows * per_sm) *
      (shared ? 1 : costs.alone) * (split.chunks > 1 ? costs.chunks : 1);
  const double read = (mean + costs.idle * more) / row_tiles * split.columns * 64 *
                      bits_read(problem) / read_bytes_per_cycle(device, costs.read_bytes_per_cycle);
  const double exchange = split.cluster == 1   ? 0
                          : split.cluster == 2 ? costs.pair
                                               : costs.cta * split.cluster;
  return costs.start * (1 + costs.start_per_row * (rows - 1)) + costs.x * slice * slots * per_sm +
         (costs.power == 2 ? std::hypot(multiplied, read)
                           : std::cbrt(multiplied * multiplied * multiplied + read * read * read)) +
         exchange + (split.tiles > split.clusters ? costs.further : 0);
}

double estimate_many_rows(const Problem& problem, const KernelConfig& config,
                          const DeviceTraits& device, const DecodeSplit& split) {
  constexpr double kStart = 6300, kWeightCyclesPerRow = 0.9, kSecondCta = 1.6, kTileCycles = 170,
                   kStagedBytesPerCycle = 67;
  // Between chunks of x nothing is multiplied.
  constexpr double kChunks = 1.22;
  constexpr GroupFactors kGroups{1.1, 2, 1.1, 1.3, 2.5};
  const double exchange = split.cluster == 1 ? 0 : split.cluster == 2 ? 230 : 190 * split.cluster;
  const int slots =
      decode_row_slots(config, static_cast<int>(std::min<std::int64_t>(problem.m, config.tile_m)));
  const auto rounds = static_cast<double>(ceil_div(split.tiles, split.clusters));
  const std::int64_t per_sm =
      ceil_div(split.clusters * split.cluster * split.row_tiles, device.sm_count);
  const double multiplied = split.columns * config.tile_n / 32 * config.tile_m *
                            kWeightCyclesPerRow * (per_sm > 1 ? kSecondCta : 1) *
                            kGroups.of(problem);
  const double staged = split.columns * split.warps_k * 2 * slots * static_cast<double>(per_sm) /
                        kStagedBytesPerCycle;
  return kStart +
         (split.chunks > 1 ? kChunks : 1) * rounds * (multiplied + kTileCycles + exchange) +
         staged * (split.chunks > 1 ? rounds : 1);
}

}  // namespace mpq::detail

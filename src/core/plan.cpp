#include "mpq/plan.hpp"

#include <algorithm>
#include <array>
#include <limits>

#include "core/early_start.hpp"
#include "core/estimate.hpp"
#include "core/format.hpp"
#include "core/plan_prefill.hpp"
#include "mpq/error.hpp"
#include "mpq/layout.hpp"
#include "mpq/workspace.hpp"

namespace mpq {
namespace {

using namespace detail;

constexpr std::int64_t kMaxGridM = 65535;  // CUDA's limit on a grid's second dimension
constexpr std::array kDecodeClusters{1, 2, 4, 8};
constexpr std::array kWarpsN{1, 2, 4, 8};  // 8 warps a CTA
// Passes over the weights up to which a decode kernel is ahead of the sm80 prefill kernels.
constexpr std::int64_t kDecodePasses = 4;
// On Hopper, rows up to which it is ahead of all prefill kernels, with fewer than 8 bits and with
// 8, and of some.
constexpr std::int64_t kDecodeRowsOfFewBits = 1, kDecodeRowsOnHopper = 2, kDecodeRowsAtMost = 32;
constexpr std::int64_t kDecodeTileRows = 8;
constexpr double kBehindGather = 1.3;
constexpr int kReservedSharedBytes = 1 << 10;  // of every resident CTA, by the CUDA runtime

// What prefill kernels take for up to 8 rows of what is estimated, beside decode kernels.
double prefill_factor(const Problem& problem, bool chained) {
  if (problem.bits == 8) return 1.05;
  if (chained) {
    const bool fixed_point = problem.m <= 2 && (problem.bits > 1 || problem.group_columns >= 128);
    return fixed_point ? 1 : 0.94;
  }
  if (problem.gathers) return 1;
  return problem.bits != 4 ? 1.06 : problem.m <= 2 ? 1.15 : 1.05;
}

std::int64_t ctas(const KernelConfig& config, const Problem& problem) {
  return ceil_div(problem.n_padded, config.tile_n) * ceil_div(problem.m, config.tile_m);
}

// Shared memory of a decode kernel's CTA.
std::int64_t decode_shared_bytes(const Problem& problem, const KernelConfig& config,
                                 const KSplit& split) {
  const int tile_rows = decode_tile_rows(config, problem.bits, problem.group_columns);
  const auto rows = static_cast<int>(std::min<std::int64_t>(problem.m, tile_rows));
  const int warps_n = config.warps() / split.warps;
  return decode_storage_bytes(config) +
         decode_slice_bytes(config, problem.bits, rows,
                            decode_x_pitch(config, problem.bits, split)) +
         std::int64_t{4} * decode_inbox_floats(config, rows, warps_n, split.cluster) +
         decode_group_ring_bytes(config, problem.bits, problem.group_columns,
                                 problem.zeros != ZeroKind::affine ? 0
                                 : problem.fuses                   ? 2
                                                                   : 4);
}

// Splits N and K for a decode kernel: of all ways the one whose estimated time is least. Returns
// the estimate; the plan's grid is empty if x fits no way.
double split_k(const Problem& problem, const DeviceTraits& device, const ForwardOptions& options,
               Plan& plan) {
  const KernelConfig& config = plan.config();
  const std::int64_t columns = problem.n_padded / config.tile_n;
  const int unit = decode_unit_k(config, problem.bits);
  const auto units = static_cast<int>(problem.k_padded / unit);
  double best = std::numeric_limits<double>::infinity();
  for (const int warps_n : kWarpsN) {
    for (const int cluster : kDecodeClusters) {
      if (options.cluster != -1 && cluster != options.cluster) continue;
      if (options.warps_n != -1 && warps_n != options.warps_n) continue;
      if (cluster > 1 && !runs_sm90a_code(device)) continue;
      const int warps_k = config.warps() / warps_n;
      int chunks = 1;
      std::int64_t shared = 0;
      const auto split = [&] { return KSplit::of(units, warps_k, chunks, cluster); };
      const auto fits = [&] {
        shared = decode_shared_bytes(problem, config, split());
        return shared <= device.shared_bytes_per_block;
      };
      while (!multiplies_fixed_point(config) && !fits() && split().part > 1) ++chunks;
      if (!fits()) continue;  // with fewer warps along K it does
      const std::int64_t resident = std::min<std::int64_t>(
          config.ctas_per_sm,
          (device.shared_bytes_per_block + kReservedSharedBytes) / (shared + kReservedSharedBytes));
      const std::int64_t tiles = ceil_div(columns, warps_n);
      const std::int64_t clusters = std::clamp<std::int64_t>(
          resident_clusters(device, {.split = cluster}) * resident / plan.grid_m, 1, tiles);
      const DecodeSplit way{
          cluster, warps_n,  warps_k,     chunks,
          tiles,   clusters, plan.grid_m, split().part * static_cast<double>(chunks) * unit};
      double cycles = config.tile_m <= kDecodeTileRows
                          ? estimate_decode(problem, config, device, way, in_chain(device, options))
                          : estimate_many_rows(problem, config, device, way);
      // A gather's CTAs are in the way of large clusters, whose second tiles then come late.
      if (problem.gathers && cluster > 2 && tiles > clusters) cycles *= kBehindGather;
      if (begins_early(problem, device, options) &&
          clusters * plan.grid_m <= resident_clusters(device, {.split = cluster})) {
        shared = std::max(shared, alone_shared_bytes(device));
      }
      if (cycles >= best) continue;
      best = cycles;
      plan.cluster = cluster;
      plan.warps_n = warps_n;
      plan.chunks = chunks;
      plan.shared_bytes = static_cast<int>(shared);
      plan.grid_n = static_cast<unsigned>(clusters * cluster);
    }
  }
  return best;
}

// Whether x as fixed-point numbers fits shared memory, and there is something to gain, unlike with
// 8 bits and small groups. What products of single bits cost on devices after 9.0 is not known.
bool wants_fixed_point(const Problem& problem, const DeviceTraits& device,
                       const ForwardOptions& options, const KernelConfig& config) {
  if (problem.bits == 8 && problem.group_columns < 128) return false;
  const int rows = decode_tile_rows(config, problem.bits, problem.group_columns);
  if (multiplies_planes(config, problem.bits, problem.group_columns,
                        std::min<std::int64_t>(problem.m, rows)) &&
      device.compute_capability >= 100) {
    return false;
  }
  const int cluster = options.cluster != -1     ? options.cluster
                      : runs_sm90a_code(device) ? kDecodeClusters.back()
                                                : 1;
  const auto units = static_cast<int>(problem.k_padded / decode_unit_k(config, problem.bits));
  return decode_shared_bytes(problem, config, KSplit::of(units, config.warps(), 1, cluster)) <=
         device.shared_bytes_per_block;
}

// Of the decode kernels the one with the smallest tile that takes all rows, or passes over the
// largest. Fixed-point numbers only for as many rows as they are ahead for on other devices: one,
// with 2 bits and fewer what a tile has, with 8 none.
int smallest_decode(const Problem& problem, const DeviceTraits& device,
                    const ForwardOptions& options) {
  int decode = -1, decode_rows = 0;
  for (int i = 0; i < kKernelCount; ++i) {
    const KernelConfig& config = kKernelTable[static_cast<std::size_t>(i)];
    if (config.family != KernelFamily::decode || !is_available(config, problem.bits, device) ||
        !takes_groups(config, problem.group_columns)) {
      continue;
    }
    const int rows = decode_tile_rows(config, problem.bits, problem.group_columns);
    const int most = problem.bits < 4 ? rows : problem.bits == 4 ? 1 : 0;
    if (multiplies_fixed_point(config) &&
        (problem.m > most || !wants_fixed_point(problem, device, options, config))) {
      continue;
    }
    if (decode == -1 || decode_rows < problem.m) decode = i, decode_rows = rows;
  }
  return decode;
}

// The largest sm80 prefill tile that still occupies most of the device; the smallest if none does.
int largest_prefill(const Problem& problem, const DeviceTraits& device) {
  int prefill = -1;
  for (int i = 0; i < kKernelCount; ++i) {
    const KernelConfig& config = kKernelTable[static_cast<std::size_t>(i)];
    if (config.family != KernelFamily::prefill || config.isa != Isa::sm80) continue;
    const std::int64_t most = device.sm_count * std::int64_t{3};
    if (prefill == -1 || ctas(config, problem) * 4 >= most) prefill = i;
  }
  return prefill;
}

// What two tiles of rows side by side take of what is estimated, alone and in a chain.
constexpr double kTwoRowTiles[2]{1.08, 1.33};

// Whether a kernel is a decode kernel that can be ahead on Hopper. With fewer than 8 bits and more
// than a few rows prefill kernels are ahead of 16-bit products; of fixed-point numbers two tiles of
// rows can be ahead in small layers (2 bits, groups of 128, in order, outside of a chain:
// bench/NOTES.md).
bool is_decode_candidate(int kernel, const Problem& problem, const DeviceTraits& device,
                         const ForwardOptions& options) {
  constexpr std::int64_t kProductRows = 4, kSmallLayer = std::int64_t{1} << 22;  // weights
  const KernelConfig& config = kKernelTable[static_cast<std::size_t>(kernel)];
  if (config.family != KernelFamily::decode || problem.m > kDecodeRowsAtMost) return false;
  if (problem.m > kDecodeTileRows) {
    return problem.bits == 8 && kernel == smallest_decode(problem, device, options);
  }
  const int rows = decode_tile_rows(config, problem.bits, problem.group_columns);
  if (multiplies_fixed_point(config)) {
    const bool two_tiles =
        (rows == 1 && problem.bits > 1) ||
        (problem.bits == 2 && problem.group_columns == 128 && !problem.gathers &&
         problem.n_padded * problem.k_padded <= kSmallLayer && !in_chain(device, options));
    return problem.m <= (two_tiles ? 2 : 1) * rows &&
           wants_fixed_point(problem, device, options, config);
  }
  if (problem.m > rows) return false;
  return config.tile_m <= kDecodeTileRows && (problem.bits == 8 || problem.m <= kProductRows);
}

// On Hopper: what the estimates say.
int fastest(const Problem& problem, const DeviceTraits& device, const ForwardOptions& options) {
  int decode = -1;
  double decode_cycles = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kKernelCount; ++i) {
    if (!is_decode_candidate(i, problem, device, options)) continue;
    Plan plan;
    plan.kernel = i;
    const int rows = decode_tile_rows(plan.config(), problem.bits, problem.group_columns);
    plan.grid_m = static_cast<unsigned>(ceil_div(problem.m, rows));
    double cycles = split_k(problem, device, options, plan);
    if (plan.grid_m > 1) cycles *= kTwoRowTiles[in_chain(device, options) ? 1 : 0];
    // (The first also where the options leave it no way: plan() says so, or finds another.)
    if (decode == -1 || cycles < decode_cycles) decode = i, decode_cycles = cycles;
  }
  if (decode == -1) return choose_prefill(problem, device, options).kernel;
  if ((problem.group_columns >= 128 || problem.bits == 1 || problem.bits == 8) &&
      problem.m <= (problem.bits == 8 ? kDecodeRowsOnHopper : kDecodeRowsOfFewBits)) {
    return decode;
  }
  // With more rows decode kernels' estimates know no other memory than an H200's.
  DeviceTraits known = device;
  double factor = 1;
  if (problem.m <= kDecodeTileRows) {
    factor = prefill_factor(problem, in_chain(device, options));
  } else {
    known.memory_gb_per_s = DeviceTraits{}.memory_gb_per_s;
  }
  if (decode_cycles <= factor * choose_prefill(problem, known, options).cycles) return decode;
  return choose_prefill(problem, device, options).kernel;
}

int choose(const Problem& problem, const DeviceTraits& device, const ForwardOptions& options) {
  if (runs_sm90a_code(device) && problem.group_columns >= kLeastGroup &&
      !problem.scales_are_large) {
    return fastest(problem, device, options);
  }
  const int decode = smallest_decode(problem, device, options);
  if (decode == -1) return decode;  // no kernel runs on the device
  const int rows = decode_tile_rows(kKernelTable[static_cast<std::size_t>(decode)], problem.bits,
                                    problem.group_columns);
  return problem.m <= kDecodePasses * rows ? decode : largest_prefill(problem, device);
}

}  // namespace

bool keeps_statistics_packed(const Problem& problem, const DeviceTraits& device) {
  // Measured on an H200, dq_group_size 32 (bench/NOTES.md): fewer bytes are worth more than the
  // decoding where groups are small, weights wide and rows few.
  constexpr std::int64_t kLeastWeights = std::int64_t{1} << 25;
  if (!runs_sm90a_code(device)) return false;
  if (problem.bits == 8) return problem.group_columns <= 32 && problem.m <= 2;
  const bool large = problem.n_padded * problem.k_padded >= kLeastWeights;
  return problem.bits == 4 && problem.m == 1 && problem.group_columns <= (large ? 64 : 32);
}

Plan plan(const Problem& problem, const DeviceTraits& device, const ForwardOptions& options) {
  if (options.kernel < -1 || options.kernel >= kKernelCount) {
    throw Error(ErrorCode::invalid_argument,
                detail::format("plan: kernel is {}, the table has rows 0 to {}", options.kernel,
                               kKernelCount - 1));
  }
  if (options.cluster != -1 && (options.cluster < 1 || options.cluster > kMostClusterCtas)) {
    throw Error(ErrorCode::invalid_argument,
                detail::format("plan: cluster is {}, it can be 1 to {}", options.cluster,
                               kMostClusterCtas));
  }
  if (options.warps_n != -1 &&
      std::find(kWarpsN.begin(), kWarpsN.end(), options.warps_n) == kWarpsN.end()) {
    throw Error(ErrorCode::invalid_argument,
                detail::format("plan: warps_n is {}, it can be 1, 2, 4 or 8", options.warps_n));
  }
  if (options.multicast != -1 && options.multicast != 1 && options.multicast != 2) {
    throw Error(ErrorCode::invalid_argument,
                detail::format("plan: multicast is {}, it can be 1 or 2", options.multicast));
  }
  if (options.multicast * options.cluster > kMostClusterCtas) {
    throw Error(ErrorCode::invalid_argument,
                detail::format("plan: multicast {} x cluster {} are more than {} CTAs",
                               options.multicast, options.cluster, kMostClusterCtas));
  }
  Plan result;
  if (problem.m == 0) return result;
  // What does not depend on the batch cannot make rows depend on it.
  constexpr std::int64_t kInvariantRows = 64;
  Problem planned = problem;
  if (options.batch_invariant) planned.m = std::max(planned.m, kInvariantRows);

  result.kernel = options.kernel != -1 ? options.kernel : choose(planned, device, options);
  if (result.kernel != -1 && !is_compiled(result.config(), problem.bits)) {
    throw Error(ErrorCode::unsupported, detail::format("plan: {} is not for {} bits",
                                                       to_string(result.config()), problem.bits));
  }
  if (result.kernel == -1 || !is_available(result.config(), problem.bits, device)) {
    const bool for_hopper = result.kernel != -1 && result.config().isa == Isa::sm90a;
    const bool not_for_hopper = device.compute_capability >= 80 && !for_hopper;
    throw Error(
        ErrorCode::unsupported,
        detail::format("plan: {} needs {}, the device has compute capability {}{}",
                       result.kernel == -1 ? "every kernel" : to_string(result.config()),
                       for_hopper       ? "compute capability 90 and a build for 90a"
                       : not_for_hopper ? "a compute capability other than 90, or a build without "
                                          "90a, for fewer than 8 bits"
                                        : "compute capability 80 or higher",
                       device.compute_capability,
                       device.sm90a_code ? "" : ", the build has no code for 90a"));
  }
  const KernelConfig& config = result.config();
  if (!takes_groups(config, problem.group_columns)) {
    throw Error(ErrorCode::unsupported,
                detail::format("plan: {} takes groups of {} columns and more, the layer has {}",
                               to_string(config), kLeastGroup, problem.group_columns));
  }
  if (problem.scales_are_large && config.isa == Isa::sm90a) {
    throw Error(ErrorCode::unsupported,
                detail::format("plan: {} takes no scales of 2^{} and more here", to_string(config),
                               problem.dtype == DType::f16 ? 7 : 122));
  }
  const int tile_rows = config.family == KernelFamily::decode
                            ? decode_tile_rows(config, problem.bits, problem.group_columns)
                            : config.tile_m;
  const std::int64_t grid_m = ceil_div(problem.m, tile_rows);
  result.gathers = problem.gathers;
  result.programmatic = in_chain(device, options);
  if (config.family == KernelFamily::prefill && config.isa == Isa::sm90a) {
    plan_clusters(planned, device, options, result);
    return result;
  }
  if (grid_m > kMaxGridM) {
    throw Error(ErrorCode::unsupported,
                detail::format("plan: batch is {}, {} takes at most {} rows", problem.m,
                               to_string(config), kMaxGridM * tile_rows));
  }
  if (config.family == KernelFamily::decode) {
    if (options.cluster != -1 && std::find(kDecodeClusters.begin(), kDecodeClusters.end(),
                                           options.cluster) == kDecodeClusters.end()) {
      throw Error(ErrorCode::invalid_argument,
                  detail::format("plan: cluster is {}, in a decode kernel it can be 1, 2, 4 or 8",
                                 options.cluster));
    }
    if (options.cluster > 1 && !runs_sm90a_code(device)) {
      throw Error(
          ErrorCode::unsupported,
          detail::format("plan: cluster is {}, which needs compute capability 90 and a build for "
                         "90a; the device has {}",
                         options.cluster, device.compute_capability));
    }
    result.grid_m = static_cast<unsigned>(ceil_div(planned.m, tile_rows));
    split_k(planned, device, options, result);
    if (result.grid_n == 0) {
      // So many warps along K would leave some without work: let the plan choose how many.
      ForwardOptions relaxed = options;
      relaxed.warps_n = -1;
      split_k(planned, device, relaxed, result);
    }
    if (result.grid_n == 0) {
      throw Error(ErrorCode::unsupported,
                  detail::format("plan: {} columns of x do not fit the shared memory of {}",
                                 problem.k_padded, to_string(config)));
    }
  } else {
    result.grid_n = static_cast<unsigned>(ceil_div(problem.n_padded, config.tile_n));
  }
  result.grid_m = static_cast<unsigned>(grid_m);
  return result;
}

std::string to_string(const KernelConfig& config) {
  return detail::format("{} {} {}x{} warps {}x{}x{} stages {}", to_string(config.family),
                        to_string(config.isa), config.tile_n, config.tile_m, config.warps_n,
                        config.warps_m, config.warps_k, config.stages);
}

namespace {

// Of a Plan or a PlanTail.
template <class LaunchPlan>
std::string launch_text(const LaunchPlan& plan) {
  std::string text =
      detail::format("{} grid {}x{}", to_string(plan.config()), plan.grid_n, plan.grid_m);
  if constexpr (requires { plan.warps_n; }) {
    if (plan.warps_n > 1) text += detail::format(" warps_n {}", plan.warps_n);
  }
  if (plan.clusters > 0) text += detail::format(" clusters {}", plan.clusters);
  if (plan.multicast > 1) text += detail::format(" multicast {}", plan.multicast);
  if (plan.cluster > 1) text += detail::format(" cluster {}", plan.cluster);
  return text;
}

}  // namespace

std::string to_string(const Plan& plan) {
  if (plan.kernel == -1) return "nothing to do";
  std::string text = launch_text(plan);
  if (plan.chunks > 1) text += detail::format(" chunks {}", plan.chunks);
  if (plan.tail.kernel != -1) {
    text +=
        detail::format(", from channel {} on {}", plan.tail.first_channel, launch_text(plan.tail));
  }
  if (plan.gathers) text += ", x gathered";
  if (plan.programmatic) text += ", programmatic";
  return text;
}

std::size_t workspace_bytes(const Problem& problem, std::int64_t max_m) {
  if (!problem.gathers) return 0;
  const std::int64_t halves = max_m * problem.k_padded;
  return static_cast<std::size_t>(
      round_up(halves * 2, static_cast<std::int64_t>(kWorkspaceAlignment)));
}

}  // namespace mpq

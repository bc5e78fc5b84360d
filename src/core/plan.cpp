#include "mpq/plan.hpp"

#include <fmt/format.h>

#include "mpq/error.hpp"
#include "mpq/workspace.hpp"

namespace mpq {
namespace {

constexpr std::int64_t kMaxGridM = 65535;  // CUDA's limit on a grid's second dimension

std::int64_t ctas(const KernelConfig& config, const Problem& problem) {
  return ceil_div(problem.n_padded, config.tile_n) * ceil_div(problem.m, config.tile_m);
}

// Decode: the smallest tile that takes all rows, so that weights are read once. Beyond decode, the
// largest prefill tile that still occupies most of the device; the smallest if none does.
int choose(const Problem& problem, const DeviceTraits& device) {
  int chosen = -1;
  for (int i = 0; i < kKernelCount; ++i) {
    const KernelConfig& config = kKernelTable[static_cast<std::size_t>(i)];
    if (config.min_compute_capability > device.compute_capability) continue;
    if (config.family == KernelFamily::decode) {
      if (problem.m <= config.tile_m) return i;
    } else if (chosen == -1 || ctas(config, problem) * 4 >= device.sm_count * std::int64_t{3}) {
      chosen = i;
    }
  }
  return chosen;
}

}  // namespace

Plan plan(const Problem& problem, const DeviceTraits& device, const ForwardOptions& options) {
  if (options.kernel < -1 || options.kernel >= kKernelCount) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("plan: kernel is {}, the table has rows 0 to {}", options.kernel,
                            kKernelCount - 1));
  }
  Plan result;
  if (problem.m == 0) return result;
  result.kernel = options.kernel != -1 ? options.kernel : choose(problem, device);
  if (result.kernel == -1 || result.config().min_compute_capability > device.compute_capability) {
    throw Error(ErrorCode::unsupported,
                fmt::format("plan: {} needs compute capability {} or higher, the device has {}",
                            result.kernel == -1 ? "every kernel" : to_string(result.config()),
                            result.kernel == -1 ? 80 : result.config().min_compute_capability,
                            device.compute_capability));
  }
  const KernelConfig& config = result.config();
  const std::int64_t grid_m = ceil_div(problem.m, config.tile_m);
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
  return fmt::format("{} {}x{} warps {}x{}x{} stages {}", to_string(config.family), config.tile_n,
                     config.tile_m, config.warps_n, config.warps_m, config.warps_k, config.stages);
}

std::string to_string(const Plan& plan) {
  if (plan.kernel == -1) return "nothing to do";
  return fmt::format("{} grid {}x{}{}", to_string(plan.config()), plan.grid_n, plan.grid_m,
                     plan.gathers ? ", x gathered" : "");
}

std::size_t workspace_bytes(const Problem& problem, std::int64_t max_m) {
  if (!problem.gathers) return 0;
  const std::int64_t halves = max_m * problem.k_padded;
  return static_cast<std::size_t>(
      round_up(halves * 2, static_cast<std::int64_t>(kWorkspaceAlignment)));
}

}  // namespace mpq

#pragma once
// The part of a plan that is about the sm90a prefill kernels.

#include <limits>

#include "core/estimate.hpp"
#include "mpq/device.hpp"
#include "mpq/plan.hpp"

namespace mpq::detail {

inline constexpr int kMostClusterCtas = 8;  // what every device allows

/// A cluster and the cycles that a kernel takes with it.
struct Candidate {
  ClusterShape cluster;
  double cycles = std::numeric_limits<double>::infinity();
};
struct Prefill : Candidate {
  int kernel = -1;
};

/// The kernel whose estimate is least, and its cluster, as far as the options leave that open.
Prefill choose_prefill(const Problem& problem, const DeviceTraits& device,
                       const ForwardOptions& options);

/// Clusters and tiles of plan.kernel; where that is faster, and the options leave everything open,
/// a large tile's full waves and a PlanTail instead. Throws Error (unsupported) for more tiles than
/// 32 bits count.
void plan_clusters(const Problem& problem, const DeviceTraits& device,
                   const ForwardOptions& options, Plan& plan);

}  // namespace mpq::detail

#pragma once
// How long a kernel would take: what the plan compares.

#include <cstdint>

#include "mpq/device.hpp"
#include "mpq/plan.hpp"

namespace mpq::detail {

/// CTAs of a cluster of the sm90a prefill kernels.
struct ClusterShape {
  int multicast = 1, split = 1;
  int ctas() const { return multicast * split; }
};

/// Clusters that run at once, one or two CTAs a multiprocessor; at least one.
std::int64_t resident_clusters(const DeviceTraits& device, const ClusterShape& cluster,
                               int ctas_per_sm = 1);
/// Tiles of a cluster.
std::int64_t cluster_tiles(const KernelConfig& config, const Problem& problem, int multicast);

/// Cycles that a launch takes; good for comparing. Fitted to sweeps of rows and splits on an H200
/// (bench/NOTES.md). Of tiles of more than 64 rows (ten shapes, 96 to 1024 rows, all widths, up to
/// 1e11 operations): what is picked is in the mean 0.35 % slower than the best of what was swept,
/// 8 % at most. Of the others (eleven shapes, 8 to 64 rows): 0.1 % slower, 3.5 % at most; of 64
/// rows with fewer than 8 bits 1.4 and 11 %.
double estimate_prefill(const KernelConfig& config, const ClusterShape& cluster,
                        const Problem& problem, const DeviceTraits& device);

/// One way to split N and K for a decode kernel.
struct DecodeSplit {
  int cluster, warps_n, warps_k;
  std::int64_t tiles;
  std::int64_t rounds;  ///< tiles of a cluster
  std::int64_t per_sm;  ///< CTAs of a multiprocessor
  double columns;       ///< of a warp, in a tile
};

/// Cycles that the decode kernels of 16-bit products take; good for comparing. Fitted to a sweep of
/// all ways on an H200 (bench/NOTES.md), where what is picked is 3.5 % slower than the best in the
/// mean: a lane's weights one after the other, by rows of the tile; what a second CTA on the same
/// multiprocessor slows them; what a tile costs that nothing hides, and what an exchange within a
/// cluster adds to it. It knows no other memory than an H200's.
double estimate_products(const Problem& problem, const KernelConfig& config, int chunks,
                         const DecodeSplit& split);

/// The same with what it leaves out where there is one tile of rows: reading the weights, and how
/// many of the tile's rows there are. Met within 4.6 % (root mean square; 8 and 4 bits, 2 to 8
/// rows, an H200).
double estimate_products_by_rows(const Problem& problem, const DeviceTraits& device,
                                 double products);

/// The same of the kernel of 8-bit products (met within 7 %, in the mean 2.3 % slower than the
/// best): products and making the digits of x on the busiest multiprocessor, and reading the
/// weights, which all share; the two overlap for the most part.
double estimate_digits(const Problem& problem, const DeviceTraits& device,
                       const DecodeSplit& split);

/// What a launch of so many CTAs that takes `cycles` alone takes more, or less, behind another by
/// programmatic dependent launch; beside what every kernel gains there. For kernels of up to 64
/// rows, from chains on an H200 (bench/NOTES.md): two CTAs of a multiprocessor begin and end at
/// times of their own, so the next launch finds room before this one ends, unless its clusters are
/// large. Where more than half of the multiprocessors have a CTA that nothing splits but phases,
/// the next launch is torn apart.
double estimate_in_chain(const KernelConfig& config, int cluster, std::int64_t ctas,
                         const DeviceTraits& device, double cycles);

}  // namespace mpq::detail

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
/// rows with fewer than 8 bits 1.4 and 11 %; of 8 and 16 rows with those in four phases (twelve
/// shapes) 0.2 and 5 %, in a chain 0.5 and 6 %.
double estimate_prefill(const KernelConfig& config, const ClusterShape& cluster,
                        const Problem& problem, const DeviceTraits& device, bool chained = false);

/// What estimate_prefill is above for every kernel: cycles of the products.
double least_cycles(const Problem& problem, const DeviceTraits& device);

/// What other groups and zeros take of what groups of 128 columns and integer zeros do.
struct GroupFactors {
  double of_64 = 1, of_32 = 1;                            // columns of integer zeros
  double affine = 1, affine_of_64 = 1, affine_of_32 = 1;  // affine zeros, of 128 columns and more
  double of(const Problem& problem, bool is_affine) const;
  double of(const Problem& problem) const { return of(problem, problem.zeros == ZeroKind::affine); }
};

/// Bits of a weight, and of what scales and zeros take more than in groups of 128 and integers.
double bits_read(const Problem& problem);

/// Bytes a cycle: a multiprocessor's share of what memory gives, where an H200's gets `of_h200`.
double read_bytes_per_cycle(const DeviceTraits& device, double of_h200);

/// One way to split N and K for a decode kernel.
struct DecodeSplit {
  int cluster, warps_n, warps_k, chunks;
  std::int64_t tiles, clusters;  ///< of a tile of batch rows: clusters walk over the tiles
  std::int64_t row_tiles;
  double columns;  ///< of a warp, in a tile
};

/// Cycles that a decode kernel for up to 8 rows takes; good for comparing. The longer of
/// multiplying and of reading the weights, for the most part, on the busiest multiprocessor; making
/// digits of x, or bringing it; what a tile costs that nothing hides. chained: behind another
/// launch by programmatic dependent launch, whose end this one's beginning fills. Fitted to sweeps
/// of all ways on an H200 (8 to 14 shapes, bench/NOTES.md): what is picked is 0.0 to 2.9 % slower
/// than the best in the mean, times are met within 4 to 9 %.
double estimate_decode(const Problem& problem, const KernelConfig& config,
                       const DeviceTraits& device, const DecodeSplit& split, bool chained);

/// The same of the decode kernels for 16 and 32 rows (3.5 % slower than the best). It knows no
/// other memory than an H200's.
double estimate_many_rows(const Problem& problem, const KernelConfig& config,
                          const DeviceTraits& device, const DecodeSplit& split);

/// What a launch of so many CTAs that takes `cycles` alone takes more, or less, behind another by
/// programmatic dependent launch; beside what every kernel gains there. For prefill kernels of up
/// to 64 rows, from chains on an H200 (bench/NOTES.md): two CTAs of a multiprocessor begin and end
/// at times of their own, so the next launch finds room before this one ends, unless its clusters
/// are large. Where more than half of the multiprocessors have a CTA that nothing splits but
/// phases, the next launch is torn apart.
double estimate_in_chain(const KernelConfig& config, int cluster, std::int64_t ctas,
                         const DeviceTraits& device, double cycles);

}  // namespace mpq::detail

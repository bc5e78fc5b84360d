#pragma once
// Which kernel runs, with what grid: a pure function of the problem and the device.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "mpq/device.hpp"
#include "mpq/kernel_shape.hpp"
#include "mpq/kernel_table.hpp"
#include "mpq/types.hpp"

namespace mpq {

/// Whether the device runs this build's machine code for 9.0, with clusters, programmatic dependent
/// launch and wgmma.
constexpr bool runs_sm90a_code(const DeviceTraits& device) noexcept {
  return device.compute_capability == 90 && device.sm90a_code;
}
/// Whether a kernel runs on a device.
constexpr bool is_available(const KernelConfig& config, int bits,
                            const DeviceTraits& device) noexcept {
  if (!is_compiled(config, bits) || device.compute_capability < 80) return false;
  return runs_sm90a_code(device) ? has_sm90a_code(config, bits) : config.isa == Isa::sm80;
}

/// Shared memory of each of two CTAs on a multiprocessor, of which the CUDA runtime takes 1 KiB.
constexpr std::int64_t pair_shared_bytes(const DeviceTraits& device) noexcept {
  return (device.shared_bytes_per_block + (1 << 10)) / 2 - (1 << 10);
}

/// What is to be computed: y [m, n] = x [m, k] w^T.
struct Problem {
  int bits = 4;
  DType dtype = DType::f16;
  ZeroKind zeros = ZeroKind::integer;
  std::int64_t m = 0, n = 0, k = 0;
  std::int64_t n_padded = 0, k_padded = 0;  ///< of the kernel layout
  std::int64_t group_columns = 128;         ///< of a kernel group; k_padded when there is one
  bool gathers = false;                     ///< x is gathered into the workspace first
  bool fuses = false;                       ///< one multiply-add makes a weight (fuses_weights);
                                            ///< affine zeros are of the activations' type
  bool scales_are_large = false;            ///< too large for the sm90a prefill kernels: 128 (f16)
                                            ///< or 2^122 (bf16) and more, where zeros are affine or
                                            ///< scales not of the activations' type
  bool operator==(const Problem&) const = default;
};

/// Whether a layer's double-quantised statistics are faster left packed, 1.25 bytes a group and
/// channel that kernels decode where they use them, than as scales and affine zeros; for
/// problem.m rows.
bool keeps_statistics_packed(const Problem& problem, const DeviceTraits& device);

/// What a caller may ask of one forward call.
struct ForwardOptions {
  /// Programmatic dependent launch: the kernel may start while its predecessor in the stream still
  /// runs, reads its weights ahead, and waits for the predecessor before it touches x, y or the
  /// workspace. Any predecessor and successor will do, and graph capture keeps it. The caller's
  /// part: nothing in the stream may be changing the layer's own parameters. K may be cut in other
  /// ways than without, so y may be rounded differently. No effect before sm_90.
  bool programmatic = false;
  /// Row i of y has the same bits whatever the other rows hold and however many there are, up
  /// to 64.
  bool batch_invariant = false;
  /// For tests and tuning; -1: the plan chooses.
  int kernel = -1;  ///< a row of kKernelTable
  /// CTAs that split K: 1 to 8, in decode kernels 1, 2, 4 or 8 (1 before 9.0; never more than K has
  /// chunks).
  int cluster = -1;
  int warps_n = -1;         ///< decode: warps of a CTA side by side along N, 1, 2, 4 or 8
  int multicast = -1;       ///< CTAs that share x in an sm90a prefill kernel of many rows, 1 or 2
  bool one_launch = false;  ///< no PlanTail; nor with a kernel or a cluster asked for
  bool operator==(const ForwardOptions&) const = default;
};

/// A second launch, of the last channels, beside the end of the first: where tiles are a few more
/// than the device takes at once, others of their own take the place of a wave that would fill a
/// small part of it. Of the sm90a prefill kernels; as in Plan.
struct PlanTail {
  int kernel = -1;  ///< -1: there is none
  std::int64_t first_channel = 0;
  unsigned grid_n = 0, grid_m = 0;
  int cluster = 1, multicast = 1, clusters = 0;
  bool operator==(const PlanTail&) const = default;
  const KernelConfig& config() const { return kKernelTable[static_cast<std::size_t>(kernel)]; }
};

/// A decision, ready to launch.
struct Plan {
  int kernel = -1;                  ///< row of kKernelTable; -1: nothing to do (m == 0)
  unsigned grid_n = 0, grid_m = 0;  ///< CTAs; of the sm90a prefill kernels, tiles
  int cluster = 1;                  ///< CTAs of a thread-block cluster, along grid_n
  int multicast = 1;                ///< of these, how many share x; the others split K
  int clusters = 0;                 ///< of an sm90a prefill kernel, that walk over the tiles
  int warps_n = 1;  ///< decode: warps of a CTA side by side along N, the others split K
  int chunks = 1;   ///< KSplit::chunks
  /// Dynamic shared memory of a decode kernel's CTA, or of an sm90a prefill kernel's of two a
  /// multiprocessor, 0 for what it needs. More than half of what there is where each CTA should
  /// have a multiprocessor for itself: programmatic launches find some taken, and would put two on
  /// another.
  int shared_bytes = 0;
  bool gathers = false;
  bool programmatic = false;
  PlanTail tail;  ///< channels that this launch leaves out
  bool operator==(const Plan&) const = default;
  const KernelConfig& config() const { return kKernelTable[static_cast<std::size_t>(kernel)]; }
};

/// Chooses. Throws Error(invalid_argument) when an option names no row or no cluster, and
/// Error(unsupported) when the device or the grid limits rule it out.
Plan plan(const Problem& problem, const DeviceTraits& device, const ForwardOptions& options = {});

/// "decode sm80 64x8 warps 1x1x8 stages 3", for instance.
std::string to_string(const KernelConfig& config);
/// The kernel's text with the grid, the cluster and whether x is gathered.
std::string to_string(const Plan& plan);

/// Bytes of workspace for up to max_m rows: the gathered x. Monotone in max_m.
std::size_t workspace_bytes(const Problem& problem, std::int64_t max_m);

}  // namespace mpq

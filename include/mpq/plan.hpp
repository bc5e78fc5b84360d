#pragma once
// Which kernel runs, with what grid: a pure function of the problem and the device. The table here
// is also what kernels/instances expands, so every row that can be chosen is compiled.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "mpq/device.hpp"
#include "mpq/types.hpp"

namespace mpq {

enum class KernelFamily : std::uint8_t {
  decode,   ///< few batch rows: weights straight from memory to registers, K split over the warps
  prefill,  ///< many batch rows: x staged in shared memory, weights dequantised to 16 bits
};

/// "decode" or "prefill".
constexpr const char* to_string(KernelFamily family) noexcept {
  return family == KernelFamily::decode ? "decode" : "prefill";
}

/// The instructions that a kernel needs.
enum class Isa : std::uint8_t {
  sm80,   ///< mma.sync, cp.async: compute capability 8.0 and newer
  sm90a,  ///< wgmma, clusters: exactly 9.0
};

/// "sm80" or "sm90a".
constexpr const char* to_string(Isa isa) noexcept {
  return isa == Isa::sm80 ? "sm80" : "sm90a";
}

/// One compiled kernel (for every width and activation type).
struct KernelConfig {
  KernelFamily family = KernelFamily::decode;
  Isa isa = Isa::sm80;
  int tile_n = 0;   ///< output channels of a CTA
  int tile_m = 0;   ///< batch rows of a CTA
  int warps_n = 1;  ///< warps side by side along N
  int warps_m = 1;  ///< along M
  int warps_k = 1;  ///< along K, reduced in a fixed order
  int stages =
      0;  ///< decode: blocks of weights in flight per warp; prefill: x stages of 64 columns
  constexpr int threads() const noexcept { return 32 * warps_n * warps_m * warps_k; }
  constexpr bool operator==(const KernelConfig&) const = default;
};

/// Every kernel there is. Order within a family: growing tile_m.
inline constexpr std::array kKernelTable{
    KernelConfig{
        .family = KernelFamily::decode, .tile_n = 32, .tile_m = 8, .warps_k = 8, .stages = 3},
    KernelConfig{
        .family = KernelFamily::decode, .tile_n = 32, .tile_m = 16, .warps_k = 8, .stages = 4},
    KernelConfig{
        .family = KernelFamily::decode, .tile_n = 32, .tile_m = 32, .warps_k = 8, .stages = 2},
    KernelConfig{.family = KernelFamily::prefill,
                 .tile_n = 64,
                 .tile_m = 64,
                 .warps_n = 2,
                 .warps_m = 2,
                 .stages = 4},
    KernelConfig{.family = KernelFamily::prefill,
                 .tile_n = 128,
                 .tile_m = 128,
                 .warps_n = 4,
                 .warps_m = 2,
                 .stages = 4},
    KernelConfig{.family = KernelFamily::prefill,
                 .isa = Isa::sm90a,
                 .tile_n = 128,
                 .tile_m = 64,
                 .warps_n = 8,
                 .stages = 8},
    KernelConfig{.family = KernelFamily::prefill,
                 .isa = Isa::sm90a,
                 .tile_n = 256,
                 .tile_m = 64,
                 .warps_n = 8,
                 .stages = 6},
    KernelConfig{.family = KernelFamily::prefill,
                 .isa = Isa::sm90a,
                 .tile_n = 256,
                 .tile_m = 96,
                 .warps_n = 8,
                 .stages = 6},
    KernelConfig{.family = KernelFamily::prefill,
                 .isa = Isa::sm90a,
                 .tile_n = 128,
                 .tile_m = 128,
                 .warps_n = 8,
                 .stages = 7},
    KernelConfig{.family = KernelFamily::prefill,
                 .isa = Isa::sm90a,
                 .tile_n = 192,
                 .tile_m = 128,
                 .warps_n = 12,
                 .stages = 6},
    KernelConfig{.family = KernelFamily::prefill,
                 .isa = Isa::sm90a,
                 .tile_n = 256,
                 .tile_m = 128,
                 .warps_n = 8,
                 .stages = 5},
    KernelConfig{.family = KernelFamily::prefill,
                 .isa = Isa::sm90a,
                 .tile_n = 128,
                 .tile_m = 256,
                 .warps_n = 8,
                 .stages = 5},
};
inline constexpr int kKernelCount = static_cast<int>(kKernelTable.size());

/// Whether the device, and this build, can run a kernel.
constexpr bool runs_on(const KernelConfig& config, const DeviceTraits& device) noexcept {
  return config.isa == Isa::sm90a ? device.compute_capability == 90 && device.sm90a_code
                                  : device.compute_capability >= 80;
}

/// What is to be computed: y [m, n] = x [m, k] w^T.
struct Problem {
  int bits = 4;
  DType dtype = DType::f16;
  std::int64_t m = 0, n = 0, k = 0;
  std::int64_t n_padded = 0, k_padded = 0;  ///< of the kernel layout
  bool gathers = false;                     ///< x is gathered into the workspace first
};

/// What a caller may ask of one forward call.
struct ForwardOptions {
  int kernel = -1;  ///< a row of kKernelTable to use, for tests and tuning; -1: the plan chooses
  /// Of the sm90a prefill kernels: CTAs that share x (1 or 2) and slices of K (1 to 8), at most 8
  /// CTAs in all, likewise.
  int multicast = -1, split = -1;
};

/// A decision, ready to launch.
struct Plan {
  int kernel = -1;                  ///< row of kKernelTable; -1: nothing to do (m == 0)
  unsigned grid_n = 0, grid_m = 0;  ///< tiles
  // The sm90a prefill kernels; else one CTA a tile.
  int multicast = 1;  ///< CTAs of a cluster that share x
  int split = 1;      ///< times slices of K
  int clusters = 0;   ///< that walk over the tiles
  bool gathers = false;
  bool operator==(const Plan&) const = default;
  const KernelConfig& config() const { return kKernelTable[static_cast<std::size_t>(kernel)]; }
};

/// Chooses. Throws Error(invalid_argument) when options.kernel names no row, and Error(unsupported)
/// when the device or the grid limits rule it out.
Plan plan(const Problem& problem, const DeviceTraits& device, const ForwardOptions& options = {});

/// "decode sm80 32x8 warps 1x1x8 stages 4", for instance.
std::string to_string(const KernelConfig& config);
/// The kernel's text with the grid and whether x is gathered.
std::string to_string(const Plan& plan);

/// Bytes of workspace for up to max_m rows: the gathered x. Monotone in max_m.
std::size_t workspace_bytes(const Problem& problem, std::int64_t max_m);

}  // namespace mpq

#pragma once
// Every kernel there is. The table is also what kernels/instances expands, so every row that can be
// chosen is compiled.

#include <array>
#include <cstdint>

namespace mpq {

enum class KernelFamily : std::uint8_t {
  decode,   ///< few batch rows: as fast as the weights are read; codes enter the products exactly
  prefill,  ///< many batch rows: weights dequantised to 16 bits
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

/// One kernel, compiled for every activation type.
struct KernelConfig {
  KernelFamily family = KernelFamily::decode;
  Isa isa = Isa::sm80;
  int tile_n = 0;       ///< output channels of a CTA; decode: of a warp
  int tile_m = 0;       ///< batch rows of a CTA
  int warps_n = 1;      ///< warps side by side along N
  int warps_m = 1;      ///< along M
  int warps_k = 1;      ///< along K, reduced in a fixed order; decode: the plan turns some to N
  int stages = 0;       ///< decode: blocks of weights in flight per warp; prefill: of x, at most
  int ctas_per_sm = 1;  ///< that registers leave room for; sm90a prefill: and shared memory
  int widths = 1 | 2 | 4 | 8;  ///< the sum of those that there is code for
  constexpr int warps() const noexcept { return warps_n * warps_m * warps_k; }
  constexpr int threads() const noexcept { return 32 * warps(); }
  constexpr bool operator==(const KernelConfig&) const = default;
};

/// A prefill kernel with Hopper's own instructions.
constexpr KernelConfig hopper_prefill(KernelConfig config) noexcept {
  config.family = KernelFamily::prefill;
  config.isa = Isa::sm90a;
  return config;
}
inline constexpr int kFewBits = 1 | 2 | 4;

/// Every kernel there is. Order within a family: growing tile_m. A width that a row leaves out
/// gains next to nothing from it (bench/NOTES.md).
inline constexpr std::array kKernelTable{
    KernelConfig{.tile_n = 64, .tile_m = 2, .warps_k = 8, .stages = 3, .ctas_per_sm = 2},
    KernelConfig{.tile_n = 64, .tile_m = 8, .warps_k = 8, .stages = 3, .ctas_per_sm = 2},
    KernelConfig{.tile_n = 32, .tile_m = 16, .warps_k = 8, .stages = 4, .ctas_per_sm = 2},
    KernelConfig{.tile_n = 32, .tile_m = 32, .warps_k = 8, .stages = 4, .ctas_per_sm = 1},
    KernelConfig{.family = KernelFamily::prefill,
                 .tile_n = 64,
                 .tile_m = 64,
                 .warps_n = 2,
                 .warps_m = 2,
                 .stages = 4,
                 .ctas_per_sm = 3},
    KernelConfig{.family = KernelFamily::prefill,
                 .tile_n = 128,
                 .tile_m = 128,
                 .warps_n = 4,
                 .warps_m = 2,
                 .stages = 4},
    hopper_prefill(
        {.tile_n = 128, .tile_m = 8, .warps_n = 8, .stages = 8, .ctas_per_sm = 2, .widths = 1}),
    hopper_prefill(
        {.tile_n = 128, .tile_m = 8, .warps_n = 4, .warps_k = 4, .stages = 12, .widths = kFewBits}),
    hopper_prefill(
        {.tile_n = 256, .tile_m = 8, .warps_n = 8, .stages = 8, .ctas_per_sm = 2, .widths = 4}),
    hopper_prefill({.tile_n = 384, .tile_m = 8, .warps_n = 12, .stages = 8, .widths = kFewBits}),
    hopper_prefill({.tile_n = 448, .tile_m = 8, .warps_n = 16, .stages = 8, .widths = kFewBits}),
    hopper_prefill(
        {.tile_n = 128, .tile_m = 16, .warps_n = 8, .warps_k = 2, .stages = 8, .widths = 8}),
    hopper_prefill({.tile_n = 128, .tile_m = 16, .warps_n = 8, .stages = 8, .ctas_per_sm = 2}),
    hopper_prefill(
        {.tile_n = 128, .tile_m = 16, .warps_n = 4, .warps_k = 4, .stages = 12, .widths = 2 | 4}),
    hopper_prefill({.tile_n = 384, .tile_m = 16, .warps_n = 12, .stages = 8, .widths = kFewBits}),
    hopper_prefill({.tile_n = 448, .tile_m = 16, .warps_n = 16, .stages = 8, .widths = kFewBits}),
    hopper_prefill({.tile_n = 128, .tile_m = 32, .warps_n = 8, .warps_k = 2, .stages = 8}),
    hopper_prefill({.tile_n = 128,
                    .tile_m = 32,
                    .warps_n = 8,
                    .stages = 8,
                    .ctas_per_sm = 2,
                    .widths = 4 | 8}),
    hopper_prefill({.tile_n = 384, .tile_m = 32, .warps_n = 12, .stages = 8, .widths = kFewBits}),
    hopper_prefill({.tile_n = 448, .tile_m = 32, .warps_n = 16, .stages = 8, .widths = kFewBits}),
    hopper_prefill({.tile_n = 128, .tile_m = 64, .warps_n = 8, .warps_k = 2, .stages = 8}),
    hopper_prefill(
        {.tile_n = 128, .tile_m = 64, .warps_n = 8, .stages = 8, .ctas_per_sm = 2, .widths = 8}),
    hopper_prefill({.tile_n = 192, .tile_m = 64, .warps_n = 12, .stages = 8}),
    hopper_prefill({.tile_n = 256, .tile_m = 64, .warps_n = 16, .stages = 8}),
    hopper_prefill({.tile_n = 256, .tile_m = 96, .warps_n = 8, .stages = 4}),
    hopper_prefill({.tile_n = 128, .tile_m = 128, .warps_n = 8, .stages = 4}),
    hopper_prefill({.tile_n = 192, .tile_m = 128, .warps_n = 12, .stages = 4}),
    hopper_prefill({.tile_n = 256, .tile_m = 128, .warps_n = 8, .stages = 5}),
    hopper_prefill({.tile_n = 192, .tile_m = 160, .warps_n = 12, .stages = 6}),
    hopper_prefill({.tile_n = 128, .tile_m = 160, .warps_n = 8, .stages = 4}),
    hopper_prefill({.tile_n = 192, .tile_m = 192, .warps_n = 12, .stages = 5}),
    hopper_prefill({.tile_n = 128, .tile_m = 192, .warps_n = 8, .stages = 6}),
    hopper_prefill({.tile_n = 128, .tile_m = 256, .warps_n = 8, .stages = 4}),
};
inline constexpr int kKernelCount = static_cast<int>(kKernelTable.size());

/// Whether there is code for a kernel and a width.
constexpr bool is_compiled(const KernelConfig& config, int bits) noexcept {
  return (config.widths & bits) != 0;
}

}  // namespace mpq

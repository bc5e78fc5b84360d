#pragma once
// What is measured: a layer, a batch and a way of launching; and what came of it.

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>

#include "mpq/types.hpp"

namespace mpq::bench {

/// A linear layer's weight [n, k]: n = out_features, k = in_features.
struct Shape {
  std::int64_t n = 0, k = 0;
  bool operator==(const Shape&) const = default;
};

/// One linear of a decoder layer.
struct NamedShape {
  const char* name;
  Shape shape;
};

/// The linears of one decoder layer, q/k/v and gate/up fused. From the models' config.json: hidden
/// size, heads, key-value heads, intermediate size.
struct Model {
  std::string_view name;
  NamedShape linears[4];
};

inline constexpr Model kModels[] = {
    {"llama-3-8b",
     {{"qkv", {6144, 4096}},
      {"o", {4096, 4096}},
      {"gate_up", {28672, 4096}},
      {"down", {4096, 14336}}}},
    {"llama-3-70b",
     {{"qkv", {10240, 8192}},
      {"o", {8192, 8192}},
      {"gate_up", {57344, 8192}},
      {"down", {8192, 28672}}}},
    {"qwen2.5-32b",
     {{"qkv", {7168, 5120}},
      {"o", {5120, 5120}},
      {"gate_up", {55296, 5120}},
      {"down", {5120, 27648}}}},
    {"mistral-7b",
     {{"qkv", {6144, 4096}},
      {"o", {4096, 4096}},
      {"gate_up", {28672, 4096}},
      {"down", {4096, 14336}}}},
};

/// How forward calls follow each other in the graph.
enum class Mode : std::uint8_t {
  isolated,  ///< plain kernel nodes: each starts when the one before has ended
  chained,   ///< programmatic dependent launch, where the kernel supports it
};

constexpr const char* to_string(Mode mode) noexcept {
  return mode == Mode::isolated ? "isolated" : "chained";
}

/// What a layer's zeros are; in options and results by these names.
enum class Zeros : std::uint8_t {
  integer,
  integer_f16,  ///< with scales of float16 whatever the activations are
  affine,       ///< of the layer's 16-bit type, as MLX and GBA have them
  affine_f32,   ///< of float32
  none,
  gba,         ///< affine, double-quantised with the scales; packed or not as the plan chooses,
  gba_packed,  ///< packed,
  gba_plain    ///< decoded once
};

struct NamedZeros {
  std::string_view name;
  Zeros zeros;
};
inline constexpr NamedZeros kZeros[] = {
    {"int", Zeros::integer},           {"int-f16", Zeros::integer_f16}, {"affine", Zeros::affine},
    {"affine-f32", Zeros::affine_f32}, {"none", Zeros::none},           {"gba", Zeros::gba},
    {"gba-packed", Zeros::gba_packed}, {"gba-plain", Zeros::gba_plain}};

constexpr std::string_view to_string(Zeros zeros) noexcept {
  for (const NamedZeros& named : kZeros) {
    if (named.zeros == zeros) return named.name;
  }
  return {};
}
constexpr bool double_quantized(Zeros zeros) noexcept {
  return zeros == Zeros::gba || zeros == Zeros::gba_packed || zeros == Zeros::gba_plain;
}
constexpr ZeroKind kind_of(Zeros zeros) noexcept {
  return zeros == Zeros::integer || zeros == Zeros::integer_f16 ? ZeroKind::integer
         : zeros == Zeros::none                                 ? ZeroKind::none
                                                                : ZeroKind::affine;
}

/// A layer to be built.
struct LayerSpec {
  Shape shape;
  int bits = 4;
  DType dtype = DType::f16;
  Zeros zeros = Zeros::integer;
  int group_size = 128;
  bool operator==(const LayerSpec&) const = default;

  static constexpr int kDqGroupSize = 32;  ///< of double-quantised statistics

  std::int64_t groups() const noexcept {
    return group_size == -1 ? 1 : ceil_div(shape.k, group_size);
  }
  /// Bytes of codes, scales and zeros as a checkpoint stores them.
  double packed_bytes() const noexcept {
    const double statistic_bytes = kind_of(zeros) == ZeroKind::integer ? 2.0 + bits / 8.0
                                   : zeros == Zeros::affine            ? 4.0
                                   : zeros == Zeros::affine_f32        ? 6.0
                                   : double_quantized(zeros)           ? 1.0 + 8.0 / kDqGroupSize
                                                                       : 2.0;
    const auto n = static_cast<double>(shape.n);
    return n * static_cast<double>(shape.k) * bits / 8.0 +
           n * static_cast<double>(groups()) * statistic_bytes;
  }
};

struct Case {
  LayerSpec layer;
  std::int64_t m = 1;
  Mode mode = Mode::isolated;

  /// The fewest bytes that a forward call must move: the layer, x and y.
  double bytes() const noexcept {
    return layer.packed_bytes() +
           2.0 * static_cast<double>(m) * static_cast<double>(layer.shape.k + layer.shape.n);
  }
  double flops() const noexcept {
    return 2.0 * static_cast<double>(m) * static_cast<double>(layer.shape.n) *
           static_cast<double>(layer.shape.k);
  }
};

/// "w4 f16 int g128 8192x8192 M=8 isolated".
std::string to_string(const Case& c);

/// One measured case. Times are medians, us.
struct Row {
  static constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

  Case what;
  double us = kNone;
  double limit_us = kNone;   ///< max(read_us, compute_us)
  bool read_limited = true;  ///< which of the two
  double cublas_us = kNone;  ///< NaN where the dense weights do not fit
  double max_error = kNone;  ///< largest |y - ref| / bound of the sample
  std::string kernel;
  std::string failure;  ///< why there is no time; empty if there is one

  bool failed() const noexcept { return !failure.empty(); }
  double share() const noexcept { return limit_us / us; }
  double ratio_cublas() const noexcept { return cublas_us / us; }
  double tb_per_s() const noexcept { return what.bytes() / us * 1e-6; }
  double tflops() const noexcept { return what.flops() / us * 1e-6; }
};

/// Throughput of something done once per layer, on the host or driven by it.
struct HostRow {
  std::string stage;  ///< "pack_kernel_layout", "load", "prepare_params"
  LayerSpec layer;
  double ms = 0;
  double gb_per_s() const noexcept { return layer.packed_bytes() / ms * 1e-6; }
};

}  // namespace mpq::bench

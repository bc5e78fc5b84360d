#pragma once
// Element types, the widths that have kernels, and exact conversions between 16-bit floats and
// float.

#include <bit>
#include <cstdint>

namespace mpq {

/// 16-bit floating-point types. Their values travel on the host as raw std::uint16_t bits.
enum class DType : std::uint8_t { f16, bf16 };

/// "f16" or "bf16".
constexpr const char* to_string(DType dtype) noexcept {
  return dtype == DType::f16 ? "f16" : "bf16";
}

/// How a code q becomes a weight w (s: scale of the group and output channel).
enum class ZeroKind : std::uint8_t {
  none,     ///< w = s * (q - 2^(bits-1))
  integer,  ///< w = s * (q - z), z an integer in [0, 2^bits]
  affine,   ///< w = s * q + b, b a float32
};

/// "none", "integer" or "affine".
constexpr const char* to_string(ZeroKind kind) noexcept {
  return kind == ZeroKind::none ? "none" : kind == ZeroKind::integer ? "integer" : "affine";
}

/// Widths of a code that have a Linear.
constexpr bool is_supported_bits(int bits) noexcept {
  return bits == 1 || bits == 2 || bits == 4 || bits == 8;
}

template <int WBits>
concept SupportedBits = is_supported_bits(WBits);

/// ceil(a / b) for a >= 0, b > 0.
constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) noexcept {
  return (a + b - 1) / b;
}

/// The smallest multiple of b that is >= a, for a >= 0, b > 0.
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) noexcept {
  return ceil_div(a, b) * b;
}

constexpr float bf16_to_float(std::uint16_t bits) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// Round to nearest, ties to even; NaN stays NaN (quiet).
constexpr std::uint16_t float_to_bf16(float value) noexcept {
  const auto u = std::bit_cast<std::uint32_t>(value);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((u >> 16) | 0x0040u);
  return static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

constexpr float f16_to_float(std::uint16_t bits) noexcept {
  const std::uint32_t sign = (bits & 0x8000u) << 16;
  const std::uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // Inf, NaN
    return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  }
  if (magnitude < 0x0400u) {  // zero, subnormal: exact as an integer times 2^-24
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(value));
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
}

/// Round to nearest, ties to even; overflow becomes infinity, NaN stays NaN (quiet).
constexpr std::uint16_t float_to_f16(float value) noexcept {
  const auto u = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (u >> 16) & 0x8000u;
  const std::uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (magnitude <
      0x38800000u) {  // below 2^-14: adding 0.5 leaves round(value * 2^24) in the low bits
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}

constexpr float to_float(std::uint16_t bits, DType dtype) noexcept {
  return dtype == DType::f16 ? f16_to_float(bits) : bf16_to_float(bits);
}

constexpr std::uint16_t from_float(float value, DType dtype) noexcept {
  return dtype == DType::f16 ? float_to_f16(value) : float_to_bf16(value);
}

}  // namespace mpq

#pragma once
// The order of columns in a word of AutoAWQ's GEMM version.

#include <array>
#include <cstddef>
#include <cstdint>

namespace mpq::detail {

inline constexpr std::int64_t kAwqColumns = 8;  ///< of a word
/// Nibble i of a word is this one of its columns.
inline constexpr std::array<std::size_t, 8> kAwqOrder{0, 2, 4, 6, 1, 3, 5, 7};

}  // namespace mpq::detail

#pragma once
// Matrix products of a warp, by whichever lane comes last. They would take half of an emulated
// kernel's time, so products.cpp is optimised and not instrumented: operand A and the product are
// lanes' registers, and B has been copied from the kernel's memory by code that is.

#include <array>
#include <cstdint>

namespace mpq::emulator {

/// A lane's operand A, and its part of the product: D += A B.
template <class Number>
struct ProductLane {
  const std::uint32_t* a;  ///< four words
  Number* d;  ///< of row lane / 4 + 8 (e % 4 / 2), column e / 4 * 8 + 2 (lane % 4) + e % 2
};
template <class Number>
using ProductLanes = std::array<ProductLane<Number>, 32>;

/// m16nNk16 of 16-bit floats; exact products, summed in float64, rounded once. b: [column][16].
void multiply_halves(bool bf16, const ProductLanes<float>& lanes, const std::uint16_t* b,
                     int columns);

/// m16n8k32 of unsigned and signed bytes; sums wrap, as the device's do. b: [column][32].
void multiply_bytes(const ProductLanes<int>& lanes, const std::int8_t* b);

}  // namespace mpq::emulator

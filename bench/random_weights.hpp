#pragma once
// Random layers, made quickly on the host.

#include <cstdint>

#include "cases.hpp"
#include "mpq/quantized_weights.hpp"

namespace mpq::bench {

/// Codes and zeros even over their whole range, scales 2^-6 with a random mantissa. `act_order`:
/// columns belong to groups at random, each group as large as in order. The same for the same
/// arguments.
AnyQuantizedWeights make_random_weights(const LayerSpec& spec, bool act_order, bool bias,
                                        std::uint64_t seed);

}  // namespace mpq::bench

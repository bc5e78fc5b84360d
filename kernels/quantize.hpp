#pragma once
// Quantisation of dense weights on a device. Asynchronous on `stream`, on the current device.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/group_fit.hpp"
#include "mpq/quantize.hpp"

namespace mpq::kernels {

/// weight [channels, k] -> out [groups, n], of which it writes the first `channels` columns. A
/// group with a weight that is not finite gets a scale that is NaN. scratch [channels, k], for
/// symmetric weights of 1 bit; else null.
cudaError_t fit_groups(const float* weight, std::int64_t channels, const detail::Grouping& grouping,
                       const QuantizeOptions& options, float* scratch, std::int64_t n,
                       detail::GroupQuantizer* out, cudaStream_t stream);

/// weight [channels, k] and quantizers [groups, n] -> canonical words out [ceil(k * bits / 32), n]:
/// of both the first `channels` columns.
cudaError_t encode_groups(int bits, const float* weight, std::int64_t channels,
                          const detail::Grouping& grouping,
                          const detail::GroupQuantizer* quantizers, std::int64_t n,
                          std::uint32_t* out, cudaStream_t stream);

}  // namespace mpq::kernels

#pragma once
// What the bench itself computes on the device: random operands, the scan of a result, the
// reference.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "mpq/types.hpp"

namespace mpq::bench {

/// Fills `count` 16-bit floats with values spread evenly over [-1, 1).
void fill_random(void* data, std::int64_t count, DType dtype, std::uint64_t seed,
                 cudaStream_t stream);

/// Keeps one thread of the device busy for about 0.2 ms.
void hold_stream(cudaStream_t stream);

/// What a pass over a result found.
struct ScanResult {
  unsigned long long not_finite;   ///< elements that are NaN (the poison) or infinite
  unsigned long long overwritten;  ///< elements of the guard that lost their poison
  unsigned long long checksum;     ///< of all elements and their places
};

/// Poison of every 16-bit element: a NaN in both types.
inline constexpr int kPoisonByte = 0xff;

/// Adds what it finds in y [count] and in the `guard` poisoned elements behind it to *result.
void scan(const void* y, std::int64_t count, std::int64_t guard, DType dtype, ScanResult* result,
          cudaStream_t stream);

/// Weights in their canonical form (WeightsData), all pointers on the device; K = k, N = n.
struct CanonicalWeights {
  const std::uint32_t* qweight = nullptr;  ///< [ceil(K * bits / 32), N]
  const std::uint16_t* scales = nullptr;   ///< [G, N], bits of scale_dtype
  const std::uint16_t* zeros = nullptr;    ///< [G, N]; ZeroKind::integer
  const float* affine_zeros = nullptr;     ///< [G, N]; ZeroKind::affine
  const std::int32_t* g_idx = nullptr;     ///< [K] or null
  const float* bias = nullptr;             ///< [N] or null
  std::int64_t k = 0, n = 0;
  int bits = 0;
  int group_size = -1;
  ZeroKind zero_kind = ZeroKind::none;
  DType scale_dtype = DType::f16;
};

/// A sample of result elements: rows x channels, the lists on the device.
struct Sample {
  const std::int64_t* rows = nullptr;
  const std::int64_t* channels = nullptr;
  int row_count = 0, channel_count = 0;
};

/// Which error is allowed: |y - ref| <= per_product * sum |x| |w| + half an ulp of the output.
struct ErrorBound {
  double per_product = 0;
};

/// ratios [row_count, channel_count] = |y - ref| / bound with ref in float64 from the canonical
/// weights; infinite where y is not finite. x [M, K] and y [M, N] are row-major.
void compare_with_reference(const CanonicalWeights& weights, const void* x, const void* y,
                            DType dtype, const Sample& sample, ErrorBound bound, double* ratios,
                            cudaStream_t stream);

}  // namespace mpq::bench

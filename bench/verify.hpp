#pragma once
// Whether a result is right: a sample of its elements against float64 from the canonical weights.

#include <cstdint>
#include <vector>

#include "cuda_support.hpp"
#include "device_kernels.hpp"
#include "mpq/quantized_weights.hpp"

namespace mpq::bench {

/// Poisoned elements behind a result that a kernel must leave alone.
inline constexpr std::int64_t kGuardElements = 1024;

/// Bytes that a result of m x n elements and its guard take.
inline std::size_t result_bytes(std::int64_t m, std::int64_t n) {
  return 2 * static_cast<std::size_t>(m * n + kGuardElements);
}

/// Holds one layer's canonical weights on the device.
class Verifier {
 public:
  Verifier(const AnyQuantizedWeights& weights, const Stream& stream);

  /// The largest |y - ref| / bound over a sample: 64 random channels and the first and last one,
  /// times the first 16 rows and 16 random later ones. Infinite if any sampled y is not finite.
  /// bound = 2^-18 sum |x||w| + half an ulp of y, and where the kernel rounds weights to 16 bits
  /// (2^-11 for f16, 2^-8 for bf16) sum |x||w| more.
  double max_error(const void* x, const void* y, std::int64_t m, DType dtype,
                   bool rounds_weights) const;

 private:
  template <class T>
  const T* upload(const std::vector<T>& values);

  const Stream& stream_;
  std::vector<DeviceArray> memory_;
  CanonicalWeights weights_;
};

/// Poisons y [count] and its guard.
void poison(void* y, std::int64_t count, const Stream& stream);

/// Scans results, one per slot, and hands the findings to the host all at once.
class ResultScanner {
 public:
  explicit ResultScanner(const Stream& stream) : stream_(stream) {}
  void reset(std::size_t slots);
  void add(std::size_t slot, const void* y, std::int64_t count, DType dtype);
  /// Synchronises.
  std::vector<ScanResult> results() const;

 private:
  const Stream& stream_;
  DeviceArray slots_;
  std::size_t count_ = 0;
};

}  // namespace mpq::bench

#pragma once
// Random device memory that several measurements read in rotating windows.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cuda_support.hpp"
#include "device_kernels.hpp"

namespace mpq::bench {

/// Values in [-1, 1) of a 16-bit type: dense weights for cuBLAS, bytes for the read kernels. Real
/// data matters: a GPU draws less power, and runs faster, on zeros.
class RandomPool {
 public:
  explicit RandomPool(const Stream& stream) : stream_(stream) {}

  /// At least `bytes` of values of `dtype`.
  void reserve(std::size_t bytes, DType dtype) {
    if (bytes <= memory_.size() && dtype == dtype_) return;
    memory_.reserve(bytes);
    dtype_ = dtype;
    fill_random(memory_.data(), static_cast<std::int64_t>(memory_.size() / 2), dtype, kSeed,
                stream_.get());
  }
  std::size_t size() const noexcept { return memory_.size(); }

  /// Windows of `bytes` that do not overlap.
  std::size_t windows(std::size_t bytes) const { return size() / stride(bytes); }
  /// The i-th of them, counting round.
  const void* window(std::size_t i, std::size_t bytes) const {
    return memory_.data<std::byte>() + i % windows(bytes) * stride(bytes);
  }

 private:
  static constexpr std::uint64_t kSeed = 0x5eed'0000'0000ull;
  static std::size_t stride(std::size_t bytes) {
    return (std::max<std::size_t>(bytes, 1) + 255) / 256 * 256;
  }

  const Stream& stream_;
  DeviceArray memory_;
  DType dtype_ = DType::f16;
};

}  // namespace mpq::bench

#pragma once
// Typed two-dimensional arrays in device memory.

#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

#include "cuda/cuda_error.hpp"
#include "mpq/device.hpp"
#include "mpq/matrix.hpp"
#include "prepare.hpp"

namespace mpq::detail {

template <class Value>
class DeviceArray {
 public:
  DeviceArray() = default;
  DeviceArray(Device device, std::int64_t rows, std::int64_t cols)
      : rows_(rows),
        cols_(cols),
        buffer_(device, static_cast<std::size_t>(rows * cols) * sizeof(Value)) {}

  /// Null when empty.
  Value* data() const noexcept { return static_cast<Value*>(buffer_.data()); }
  std::int64_t rows() const noexcept { return rows_; }
  std::int64_t cols() const noexcept { return cols_; }
  std::int64_t size() const noexcept { return rows_ * cols_; }
  bool empty() const noexcept { return size() == 0; }
  DeviceBuffer& buffer() noexcept { return buffer_; }

  TensorView view() const {
    constexpr ElementType kElement = std::is_same_v<Value, float>           ? ElementType::f32
                                     : std::is_same_v<Value, std::uint32_t> ? ElementType::u32
                                     : std::is_same_v<Value, std::uint16_t> ? ElementType::u16
                                                                            : ElementType::u8;
    return {data(), kElement, {rows_, cols_}, buffer_.device()};
  }

 private:
  std::int64_t rows_ = 0, cols_ = 0;
  DeviceBuffer buffer_;
};

/// An empty vector makes an empty array; else it has rows * cols values.
template <class Value>
DeviceArray<Value> upload(Device device, const std::vector<Value>& host, std::int64_t rows,
                          std::int64_t cols, StreamRef stream) {
  if (host.empty()) return {};
  DeviceArray<Value> array(device, rows, cols);
  array.buffer().copy_from_host(host.data(), host.size() * sizeof(Value), 0, stream);
  return array;
}

/// Index of the first Inf or NaN, if there is one. dtype: what 16-bit values are.
template <class Value>
std::optional<std::int64_t> find_non_finite(const DeviceArray<Value>& array, DType dtype) {
  if (array.empty()) return std::nullopt;
  const std::int64_t size = array.size();
  auto first = static_cast<unsigned long long>(size);
  DeviceBuffer result(array.view().device, sizeof(first));
  result.copy_from_host(&first, sizeof(first));
  check_cuda(kernels::first_non_finite(array.data(), dtype, size,
                                       static_cast<unsigned long long*>(result.data()), nullptr),
             "first_non_finite");
  result.copy_to_host(&first, sizeof(first));
  const auto index = static_cast<std::int64_t>(first);
  return index < size ? std::optional(index) : std::nullopt;
}

}  // namespace mpq::detail

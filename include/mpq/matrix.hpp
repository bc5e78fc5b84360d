#pragma once
// Views of row-major matrices of 16-bit floats, and of the tensors that a layer owns.

#include <array>
#include <cstddef>
#include <cstdint>

#include "mpq/device.hpp"
#include "mpq/types.hpp"

namespace mpq {

/// Row-major view: element (r, c) lies at data[r * ld + c], with ld >= cols. Any pointer aligned to
/// one element and any ld will do; 16-byte aligned rows are read fastest.
template <class Void>
struct BasicMatrix {
  Void* data = nullptr;
  DType dtype = DType::f16;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t ld = 0;  ///< leading dimension, in elements

  BasicMatrix() = default;
  BasicMatrix(Void* data_, DType dtype_, std::int64_t rows_, std::int64_t cols_)
      : BasicMatrix(data_, dtype_, rows_, cols_, cols_) {}
  BasicMatrix(Void* data_, DType dtype_, std::int64_t rows_, std::int64_t cols_, std::int64_t ld_)
      : data(data_), dtype(dtype_), rows(rows_), cols(cols_), ld(ld_) {}
  operator BasicMatrix<const Void>() const { return {data, dtype, rows, cols, ld}; }
};

using Matrix = BasicMatrix<void>;
using ConstMatrix = BasicMatrix<const void>;

/// Element types of what a layer owns.
enum class ElementType : std::uint8_t { u8, u16, u32, i32, f16, bf16, f32 };

/// A tensor in a layer's own memory, valid until the layer is loaded, prepared or destroyed.
struct TensorView {
  const void* data = nullptr;
  ElementType element = ElementType::u8;
  std::array<std::int64_t, 2> shape{0, 0};  ///< row-major
  Device device = Device::cpu();

  bool empty() const noexcept { return shape[0] * shape[1] == 0; }
};

}  // namespace mpq

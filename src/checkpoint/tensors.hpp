#pragma once
// The tensors of one layer, and how formats read them: every access names the tensor it fails on.

#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "mpq/checkpoint.hpp"

namespace mpq::detail {

/// A tensor in an open file.
struct Tensor {
  const SafetensorsFile* file = nullptr;
  const SafetensorsEntry* entry = nullptr;

  const std::vector<std::int64_t>& shape() const noexcept { return entry->shape; }
  SafetensorsType type() const noexcept { return entry->type; }

  /// Throws Error(invalid_file) unless the type is one of these.
  const Tensor& of_type(std::initializer_list<SafetensorsType> types) const;
  /// Throws Error(invalid_file) unless the shape is this; `meaning` names its dimensions.
  const Tensor& of_shape(std::initializer_list<std::int64_t> expected, const char* meaning) const;
  /// Throws Error(invalid_file) unless there are as many dimensions as `meaning` names.
  const Tensor& of_rank(std::size_t rank, const char* meaning) const;

  /// The elements; sizeof(T) is the type's. Copied, since data may be misaligned.
  template <class T>
  std::vector<T> values() const {
    const auto bytes = file->bytes(*entry);
    std::vector<T> out(bytes.size() / sizeof(T));
    if (!out.empty()) std::memcpy(out.data(), bytes.data(), out.size() * sizeof(T));
    return out;
  }
  /// The elements of an I64 or I32 tensor.
  std::vector<std::int64_t> integers() const;
  /// The elements of an F16, BF16 or F32 tensor.
  std::vector<float> floats() const;

  /// The 16-bit type that holds an F16, BF16 or F32 tensor exactly: for F32 f16 before bf16.
  /// Throws Error(unsupported) naming a value that neither holds, and its place.
  DType exact_dtype() const;
  /// Bits of the elements in exact_dtype().
  std::vector<std::uint16_t> halves(DType exact) const;

  /// `FILE: tensor "NAME"`, for messages.
  std::string where() const;
};

/// The tensors that share a prefix, by the rest of their names.
class LayerTensors {
 public:
  LayerTensors(std::string prefix, const std::map<std::string, Tensor, std::less<>>& tensors)
      : prefix_(std::move(prefix)), tensors_(&tensors) {}

  const std::string& prefix() const noexcept { return prefix_; }
  bool has(std::string_view suffix) const { return tensors_->contains(suffix); }
  /// Null if there is none.
  const Tensor* find(std::string_view suffix) const;
  /// Throws Error(invalid_file) naming the tensor if there is none.
  const Tensor& get(std::string_view suffix) const;
  const std::map<std::string, Tensor, std::less<>>& all() const noexcept { return *tensors_; }
  /// Of all of them, on disk.
  std::uint64_t bytes() const;

 private:
  std::string prefix_;
  const std::map<std::string, Tensor, std::less<>>* tensors_;
};

}  // namespace mpq::detail

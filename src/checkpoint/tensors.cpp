#include "checkpoint/tensors.hpp"

#include <algorithm>
#include <cmath>

#include "checkpoint/text.hpp"

namespace mpq::detail {

namespace {

/// The place of element `index` in a row-major tensor: "[0, 5]".
std::string place_text(std::uint64_t index, const std::vector<std::int64_t>& shape) {
  std::vector<std::int64_t> place(shape.size());
  for (std::size_t i = shape.size(); i-- > 0;) {
    place[i] = static_cast<std::int64_t>(index % static_cast<std::uint64_t>(shape[i]));
    index /= static_cast<std::uint64_t>(shape[i]);
  }
  return shape_text(place);
}

/// The index of the first value that `dtype` does not hold, or values.size(). Infinities and NaN
/// are held: refusing them is for check_parameters, whatever the type in the file.
std::size_t first_inexact(const std::vector<float>& values, DType dtype) {
  const auto inexact = [dtype](float value) {
    return !std::isnan(value) && to_float(from_float(value, dtype), dtype) != value;
  };
  return static_cast<std::size_t>(std::ranges::find_if(values, inexact) - values.begin());
}

}  // namespace

std::string Tensor::where() const {
  return detail::format("{}: tensor {}", file->path().string(), in_quotes(entry->name));
}

const Tensor& Tensor::of_type(std::initializer_list<SafetensorsType> types) const {
  if (std::ranges::find(types, type()) == types.end()) {
    std::string expected;
    for (const auto each : types) {
      expected += detail::format("{}{}", expected.empty() ? "" : " or ", to_string(each));
    }
    fail(ErrorCode::invalid_file, "{} has dtype {}, expected {}", where(), to_string(type()),
         expected);
  }
  return *this;
}

const Tensor& Tensor::of_shape(std::initializer_list<std::int64_t> expected,
                               const char* meaning) const {
  if (!std::ranges::equal(shape(), expected)) {
    fail(ErrorCode::invalid_file, "{} has shape {}, expected {} = {}", where(), shape_text(shape()),
         shape_text(std::vector<std::int64_t>(expected)), meaning);
  }
  return *this;
}

const Tensor& Tensor::of_rank(std::size_t rank, const char* meaning) const {
  if (shape().size() != rank) {
    fail(ErrorCode::invalid_file, "{} has shape {}, expected {} dimensions: {}", where(),
         shape_text(shape()), rank, meaning);
  }
  return *this;
}

std::vector<std::int64_t> Tensor::integers() const {
  of_type({SafetensorsType::I64, SafetensorsType::I32});
  if (type() == SafetensorsType::I64) return values<std::int64_t>();
  const auto narrow = values<std::int32_t>();
  return {narrow.begin(), narrow.end()};
}

std::vector<float> Tensor::floats() const {
  of_type({SafetensorsType::F16, SafetensorsType::BF16, SafetensorsType::F32});
  if (type() == SafetensorsType::F32) return values<float>();
  const DType dtype = type() == SafetensorsType::F16 ? DType::f16 : DType::bf16;
  const auto halves_ = values<std::uint16_t>();
  std::vector<float> out(halves_.size());
  std::ranges::transform(halves_, out.begin(),
                         [dtype](std::uint16_t bits) { return to_float(bits, dtype); });
  return out;
}

DType Tensor::exact_dtype() const {
  of_type({SafetensorsType::F16, SafetensorsType::BF16, SafetensorsType::F32});
  if (type() == SafetensorsType::F16) return DType::f16;
  if (type() == SafetensorsType::BF16) return DType::bf16;
  const auto floats_ = values<float>();
  const std::size_t in_f16 = first_inexact(floats_, DType::f16);
  if (in_f16 == floats_.size()) return DType::f16;
  const std::size_t in_bf16 = first_inexact(floats_, DType::bf16);
  if (in_bf16 == floats_.size()) return DType::bf16;
  fail(ErrorCode::unsupported,
       "{} is F32 and no 16-bit type holds it exactly: {} at {} is not a f16, {} at {} not a bf16",
       where(), floats_[in_f16], place_text(in_f16, shape()), floats_[in_bf16],
       place_text(in_bf16, shape()));
}

std::vector<std::uint16_t> Tensor::halves(DType exact) const {
  if (type() != SafetensorsType::F32) return values<std::uint16_t>();
  const auto floats_ = values<float>();
  std::vector<std::uint16_t> out(floats_.size());
  std::ranges::transform(floats_, out.begin(),
                         [exact](float value) { return from_float(value, exact); });
  return out;
}

const Tensor* LayerTensors::find(std::string_view suffix) const {
  const auto at = tensors_->find(suffix);
  return at == tensors_->end() ? nullptr : &at->second;
}

const Tensor& LayerTensors::get(std::string_view suffix) const {
  if (const Tensor* tensor = find(suffix)) return *tensor;
  fail(ErrorCode::invalid_file, "layer {}: tensor {} is missing", in_quotes(prefix_),
       in_quotes(detail::format("{}{}{}", prefix_, prefix_.empty() ? "" : ".", suffix)));
}

std::uint64_t LayerTensors::bytes() const {
  std::uint64_t sum = 0;
  for (const auto& [suffix, tensor] : *tensors_) sum += tensor.entry->end - tensor.entry->begin;
  return sum;
}

}  // namespace mpq::detail

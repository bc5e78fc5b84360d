// Writing: the same tensors always give the same bytes, in the order of the reference writer.

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "checkpoint/atomic_file.hpp"
#include "checkpoint/safetensors_header.hpp"
#include "checkpoint/text.hpp"
#include "mpq/checkpoint.hpp"

namespace mpq {

namespace {

using detail::fail;
using detail::in_quotes;

std::string json_string(const std::string& text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    fail(ErrorCode::invalid_argument, "{} is not UTF-8", in_quotes(text));
  }
}

std::uint64_t checked_bytes(const SafetensorsTensor& tensor) {
  const auto bytes = detail::tensor_bytes(tensor.type, tensor.shape);
  if (!bytes) {
    fail(ErrorCode::invalid_argument, "tensor {} of {} {} has no size in whole bytes below 2^64",
         in_quotes(tensor.name), to_string(tensor.type), detail::shape_text(tensor.shape));
  }
  return *bytes;
}

/// Indices in the order of the file: falling alignment, so that every tensor is aligned, then name.
std::vector<std::size_t> file_order(std::span<const SafetensorsTensor> tensors) {
  std::vector<std::size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::sort(order, [&](std::size_t a, std::size_t b) {
    const int bits_a = bits_of(tensors[a].type), bits_b = bits_of(tensors[b].type);
    return bits_a != bits_b ? bits_a > bits_b : tensors[a].name < tensors[b].name;
  });
  std::vector<std::string_view> names;
  for (const auto& tensor : tensors) names.push_back(tensor.name);
  std::ranges::sort(names);
  if (const auto twice = std::ranges::adjacent_find(names); twice != names.end()) {
    fail(ErrorCode::invalid_argument, "tensor {} is given twice", in_quotes(*twice));
  }
  if (std::ranges::binary_search(names, std::string_view("__metadata__"))) {
    fail(ErrorCode::invalid_argument, "a tensor cannot be called \"__metadata__\"");
  }
  return order;
}

std::string header_text(std::span<const SafetensorsTensor> tensors,
                        std::span<const std::size_t> order,
                        const std::map<std::string, std::string>& metadata) {
  std::string text = "{";
  if (!metadata.empty()) {
    text += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      text += detail::format("{}{}:{}", text.back() == '{' ? "" : ",", json_string(key),
                             json_string(value));
    }
    text += "}";
  }
  std::uint64_t begin = 0;
  for (const std::size_t i : order) {
    const auto& tensor = tensors[i];
    const std::uint64_t bytes = checked_bytes(tensor);
    if (bytes > std::numeric_limits<std::uint64_t>::max() - begin) {
      fail(ErrorCode::invalid_argument, "the tensors together have more than 2^64 bytes");
    }
    text += detail::format(R"({}{}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                           text.size() == 1 ? "" : ",", json_string(tensor.name),
                           to_string(tensor.type), detail::joined(tensor.shape, ","), begin,
                           begin + bytes);
    begin += bytes;
  }
  text += "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');
  if (text.size() > detail::kMaxHeaderBytes) {
    fail(ErrorCode::invalid_argument, "a header of {} bytes, limit {}", text.size(),
         detail::kMaxHeaderBytes);
  }
  return text;
}

}  // namespace

void write_safetensors(const std::filesystem::path& path,
                       std::span<const SafetensorsTensor> tensors,
                       const SafetensorsProducer& producer,
                       const std::map<std::string, std::string>& metadata) {
  const auto order = file_order(tensors);
  const std::string text = header_text(tensors, order, metadata);
  const std::uint64_t length = text.size();
  detail::AtomicFile file(path);
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(std::as_bytes(std::span(text)));
  for (const std::size_t i : order) {
    const std::uint64_t expected = checked_bytes(tensors[i]);
    std::uint64_t written = 0;
    producer(i, [&](std::span<const std::byte> bytes) {
      written += bytes.size();
      if (written <= expected) file.write(bytes);
    });
    if (written != expected) {
      fail(ErrorCode::invalid_argument, "tensor {} of {} {} needs {} bytes, got {}",
           in_quotes(tensors[i].name), to_string(tensors[i].type),
           detail::shape_text(tensors[i].shape), expected, written);
    }
  }
  file.commit();
}

void write_safetensors(const std::filesystem::path& path,
                       std::span<const SafetensorsTensor> tensors,
                       const std::map<std::string, std::string>& metadata) {
  write_safetensors(
      path, tensors, [&](std::size_t i, const auto& write) { write(tensors[i].bytes); }, metadata);
}

}  // namespace mpq

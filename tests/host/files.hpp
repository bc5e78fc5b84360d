#pragma once
// Files for tests: a directory that goes away, safetensors files that are taken apart, changed and
// put together again, and files that no writer would make.

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "mpq/checkpoint.hpp"

namespace mpq::test {

/// What tests read: golden checkpoints, a directory each.
inline const std::filesystem::path kData(MPQ_TEST_DATA);
/// The layer that each of them has.
inline constexpr auto kGoldenLayer = "model.layers.0.mlp.down_proj";

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    static std::atomic<int> count{0};
    path_ = std::filesystem::temp_directory_path() /
            ("mpq-test-" + std::to_string(::getpid()) + "-" + std::to_string(count++));
    std::filesystem::create_directories(path_);
  }
  ~TemporaryDirectory() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  std::size_t file_count() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(path_), {}));
  }

 private:
  std::filesystem::path path_;
};

inline void write_text(const std::filesystem::path& path, const std::string& text) {
  // A new file each time: some file systems flush a file to the disk that is cut and written again.
  std::filesystem::remove(path);
  std::ofstream(path, std::ios::binary) << text;
}

inline std::string read_text(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// The bytes of a safetensors file with this header, right or wrong.
inline std::string file_bytes(const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes + header + data;
}

/// A tensor that owns its bytes.
struct TensorCopy {
  std::string name;
  SafetensorsType type = SafetensorsType::F32;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;

  template <class T>
  std::vector<T> values() const {
    std::vector<T> out(bytes.size() / sizeof(T));
    if (!out.empty()) std::memcpy(out.data(), bytes.data(), out.size() * sizeof(T));
    return out;
  }
};

template <class T>
TensorCopy make_tensor(std::string name, SafetensorsType type, std::vector<std::int64_t> shape,
                       const std::vector<T>& values) {
  TensorCopy tensor{std::move(name), type, std::move(shape), {}};
  tensor.bytes.resize(values.size() * sizeof(T));
  if (!values.empty()) std::memcpy(tensor.bytes.data(), values.data(), tensor.bytes.size());
  return tensor;
}

inline std::vector<TensorCopy> read_tensors(const std::filesystem::path& path) {
  const auto file = SafetensorsFile::open(path);
  std::vector<TensorCopy> tensors;
  for (const auto& entry : file.entries()) {
    const auto bytes = file.bytes(entry);
    tensors.push_back({entry.name, entry.type, entry.shape, {bytes.begin(), bytes.end()}});
  }
  return tensors;
}

inline void write_tensors(const std::filesystem::path& path,
                          const std::vector<TensorCopy>& tensors) {
  std::vector<SafetensorsTensor> views;
  for (const auto& t : tensors) views.push_back({t.name, t.type, t.shape, t.bytes});
  write_safetensors(path, views);
}

/// The tensor whose name is `suffix` or ends in ".suffix".
inline TensorCopy& tensor_of(std::vector<TensorCopy>& tensors, const std::string& suffix) {
  for (auto& tensor : tensors) {
    if (tensor.name == suffix || tensor.name.ends_with("." + suffix)) return tensor;
  }
  throw std::runtime_error("no tensor " + suffix);
}

/// The golden checkpoints' directories, sorted.
inline std::vector<std::filesystem::path> golden_directories() {
  std::vector<std::filesystem::path> all;
  for (const auto& each : std::filesystem::directory_iterator(kData)) {
    if (std::filesystem::exists(each.path() / "expected.safetensors")) all.push_back(each.path());
  }
  std::sort(all.begin(), all.end());
  return all;
}

}  // namespace mpq::test

#pragma once
// Writing checkpoints: layers of any origin in one of the formats that have a writer.

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "mpq/checkpoint.hpp"
#include "mpq/quantized_weights.hpp"

namespace mpq {

/// Names of the formats that can be written, as in CheckpointOptions::format.
std::vector<std::string> writable_formats();

struct CheckpointWriterOptions {
  std::string format = "gptq";  ///< one of writable_formats()
  /// Whether a layer that the format cannot hold exactly is an error.
  bool lossless = false;
  /// Tensors are gathered in memory up to this size (or one layer, if that is more) and then
  /// written as a shard.
  std::uint64_t max_shard_bytes = std::uint64_t{2} << 30;
  /// A checkpoint whose other files (config.json, tokenizer) are taken over; empty: none.
  std::filesystem::path base;
  /// Of the safetensors files.
  std::map<std::string, std::string> metadata{{"format", "pt"}};
};

/// What a format could not hold of a layer.
struct EncodingLoss {
  double max_error = 0;   ///< largest |w - w'| of dense weights; 0: every weight is the same
  double max_weight = 0;  ///< largest |w|, only where max_error is not 0
};

/// Writes a directory that Checkpoint::open reads: model.safetensors or shards with an index, the
/// format's settings, config.json. The directory appears whole, on finish(), or not at all.
class CheckpointWriter {
 public:
  /// `directory` must not exist, or be empty. Throws Error(unsupported) for a format that has no
  /// writer, Error(invalid_argument) or Error(io_failure) for the directory.
  CheckpointWriter(const std::filesystem::path& directory, const CheckpointWriterOptions& options);
  ~CheckpointWriter();
  CheckpointWriter(CheckpointWriter&&) noexcept;
  CheckpointWriter& operator=(CheckpointWriter&&) noexcept;

  /// Adds a layer. Its weights may go to the nearest that the format holds; what that changes is
  /// returned. Throws Error(unsupported) naming what the format has no room for (a width,
  /// act-order, a loss with options.lossless).
  EncodingLoss add(const std::string& layer, const AnyQuantizedWeights& weights);
  /// Adds a tensor as it is.
  void add_tensor(const SafetensorsTensor& tensor);
  /// Writes what is left and the settings, and gives the directory its name. Throws
  /// Error(unsupported) where the format has no settings for layers that differ as these do.
  void finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mpq

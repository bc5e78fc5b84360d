#pragma once
// A whole checkpoint on a device: read, decoded, copied and prepared layer by layer, by several
// threads, with bounded host memory.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "mpq/checkpoint.hpp"
#include "mpq/model.hpp"

namespace mpq {

struct ModelProgress {
  std::size_t layers_done = 0, layers = 0;
  std::uint64_t bytes_done = 0, bytes = 0;  ///< of the layers' tensors on disk
  std::string layer;                        ///< the one that was just done
};

struct ModelOptions {
  std::optional<DType> dtype;  ///< of activations and outputs; default: that of each layer's scales
  int threads = 0;             ///< that read and decode; 0: one for each core
  /// Host memory that layers on their way may take together. A layer that needs more is loaded on
  /// its own.
  std::uint64_t max_host_bytes = std::uint64_t{4} << 30;
  /// Which layers to load; default: all.
  std::function<bool(const LayerInfo&)> filter;
  /// More names for layers, name -> layer, such as "lm_head" -> "model.embed_tokens" where a model
  /// ties them and the file holds one.
  std::map<std::string, std::string> aliases;
  /// Called after each layer, by one thread at a time. What it throws ends the load and is passed
  /// on.
  std::function<void(const ModelProgress&)> progress;
};

/// The layers of a checkpoint, prepared. Layers whose tensors are equal byte for byte (tied
/// weights) are one layer under several names. Move-only.
class QuantizedModel {
 public:
  using Layers = std::map<std::string, std::shared_ptr<AnyLinear>, std::less<>>;

  /// Host memory, in bytes, that load() takes at most beyond what stays with the model: buffers of
  /// the layers on their way. (The mapped files' pages come and go with the system's file cache and
  /// are released layer by layer.)
  static std::uint64_t host_bytes(const Checkpoint& checkpoint, const ModelOptions& options = {});

  /// Loads and prepares all layers. Throws what reading, checking and the device throw, naming the
  /// layer; Error(unsupported) for a layer of mixed widths; Error(invalid_argument) for an alias of
  /// no layer.
  static QuantizedModel load(const Checkpoint& checkpoint, Device device,
                             const ModelOptions& options = {});
  static QuantizedModel load(const std::filesystem::path& directory, Device device,
                             const ModelOptions& options = {}) {
    return load(Checkpoint::open(directory), device, options);
  }

  /// By name, aliases and tied layers too. A range for prepare_layers.
  const Layers& layers() const noexcept { return layers_; }
  Layers& layers() noexcept { return layers_; }
  /// Throws Error(invalid_argument) if there is none of that name.
  const AnyLinear& layer(std::string_view name) const;

 private:
  QuantizedModel() = default;
  Layers layers_;
};

}  // namespace mpq

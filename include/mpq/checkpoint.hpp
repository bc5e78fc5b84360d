#pragma once
// Checkpoints on disk: safetensors files, and directories of quantised layers in their formats.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mpq/mixed_weights.hpp"
#include "mpq/quantized_weights.hpp"
#include "mpq/types.hpp"

namespace mpq {

/// Tensor types of the safetensors format, by the names used in its header.
enum class SafetensorsType : std::uint8_t {
  BOOL,
  U8,
  I8,
  F8_E5M2,
  F8_E4M3,
  F8_E8M0,
  I16,
  U16,
  F16,
  BF16,
  I32,
  U32,
  F32,
  F64,
  I64,
  U64,
  F4,
  F6_E2M3,
  F6_E3M2,
  C64
};

const char* to_string(SafetensorsType type) noexcept;
/// Bits of one element.
int bits_of(SafetensorsType type) noexcept;

/// One tensor of a file: its header entry.
struct SafetensorsEntry {
  std::string name;
  SafetensorsType type = SafetensorsType::F32;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, end = 0;  ///< bytes, from the end of the header
};

/// A memory-mapped safetensors file, validated on opening
/// (https://github.com/huggingface/safetensors, "Format"): nothing of the header's claims is
/// believed before it is checked against the file's size.
class SafetensorsFile {
 public:
  /// Throws Error(io_failure) if it cannot be read, Error(invalid_file) naming what is wrong in it.
  static SafetensorsFile open(const std::filesystem::path& path);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;

  const std::filesystem::path& path() const noexcept;
  /// Sorted by name.
  const std::vector<SafetensorsEntry>& entries() const noexcept;
  const std::map<std::string, std::string>& metadata() const noexcept;
  /// Null if there is no such tensor.
  const SafetensorsEntry* find(std::string_view name) const noexcept;
  /// The tensor's bytes, little-endian, possibly misaligned for its type.
  std::span<const std::byte> bytes(const SafetensorsEntry& entry) const noexcept;
  /// Lets go of the memory pages that hold nothing but this tensor; reading it again brings them
  /// back from the file.
  void release(const SafetensorsEntry& entry) const noexcept;

 private:
  struct Impl;
  explicit SafetensorsFile(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// A tensor to be written.
struct SafetensorsTensor {
  std::string name;
  SafetensorsType type = SafetensorsType::F32;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
};

/// Writes a file that open() accepts, byte for byte the same for the same input: tensors laid out
/// by falling alignment and then name, header padded with spaces to 8 bytes. The file appears whole
/// or not at all (written beside, then renamed). Throws Error(invalid_argument) or
/// Error(io_failure).
void write_safetensors(const std::filesystem::path& path,
                       std::span<const SafetensorsTensor> tensors,
                       const std::map<std::string, std::string>& metadata = {});

/// Hands the bytes of tensors[index] to `write`, in order and in any number of pieces.
using SafetensorsProducer = std::function<void(
    std::size_t index, const std::function<void(std::span<const std::byte>)>& write)>;

/// The same file, for tensors that are too large to be in memory together: their `bytes` are not
/// looked at; `producer` is called once for each tensor, in the order in which they lie in the
/// file.
void write_safetensors(const std::filesystem::path& path,
                       std::span<const SafetensorsTensor> tensors,
                       const SafetensorsProducer& producer,
                       const std::map<std::string, std::string>& metadata = {});

/// Settings that files may lack or have wrong; set ones win over the files'.
struct CheckpointOptions {
  /// "gptq", "gptq_v2", "gba", "gba-mixed", "awq", "compressed-tensors", "hqq" or "mlx"
  std::optional<std::string> format;
  std::optional<int> bits;
  std::optional<int> group_size;
  std::optional<bool> asymmetric;    ///< GBA
  std::optional<int> dq_group_size;  ///< GBA; -1: all output channels
  std::optional<int> dq_mode;        ///< GBA; 1 or 2
};

/// What is known of a quantised layer without decoding it.
struct LayerInfo {
  std::string name;             ///< prefix of its tensors: "model.layers.0.mlp.down_proj"
  std::string format;           ///< as in CheckpointOptions
  int bits = 0;                 ///< 0 with mixed_bits
  std::vector<int> mixed_bits;  ///< several widths in this layer, in the order of the file
  std::int64_t in_features = 0, out_features = 0;
  int group_size = -1;
  ZeroKind zero_kind = ZeroKind::none;
  DType dtype = DType::f16;  ///< of the scales
  bool act_order = false;    ///< whether g_idx is present and not k / group_size
  bool bias = false;
  bool double_quantized = false;
  std::uint64_t bytes = 0;  ///< of its tensors on disk
  std::string note;         ///< where the tensors contradict their settings: how, and what is done
};

/// A directory with safetensors files and settings.
class Checkpoint {
 public:
  /// Opens every *.safetensors file (or those of model.safetensors.index.json), reads the settings
  /// and finds the quantised layers. Throws Error(io_failure, invalid_file, unsupported), naming
  /// the file.
  static Checkpoint open(const std::filesystem::path& directory,
                         const CheckpointOptions& options = {});
  ~Checkpoint();
  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;

  /// Sorted by name.
  const std::vector<LayerInfo>& layers() const noexcept;
  /// One of them. Throws Error(invalid_argument), naming the closest, if there is none of that
  /// name.
  const LayerInfo& layer(std::string_view name) const;
  /// Names of tensors that belong to no quantised layer, sorted.
  const std::vector<std::string>& dense_tensors() const noexcept;
  /// One of dense_tensors(), or any other tensor; its bytes live as long as this object. Throws
  /// Error(invalid_argument) if there is none of that name.
  SafetensorsTensor tensor(std::string_view name) const;
  /// [2^bits + 1]: in how many groups and output channels of a layer the integer zero is this;
  /// empty where zeros are affine. Reads nothing but the zeros. Throws as read() does.
  std::vector<std::int64_t> zeros_histogram(std::string_view layer) const;
  /// Decodes one layer. Throws Error(invalid_argument) if there is none of that name,
  /// Error(invalid_weights) or Error(invalid_file) naming the tensor that does not fit.
  AnyQuantizedWeights read(std::string_view layer) const;
  /// Whether two layers have the same settings and tensors, byte for byte: tied weights that were
  /// saved twice. Differing layers are told apart by their first bytes, mostly.
  bool equal_layers(std::string_view a, std::string_view b) const;
  /// Lets go of the memory pages of a layer's tensors, which come back from the file when they are
  /// read again.
  void release(std::string_view layer) const;
  /// The same for a layer with LayerInfo::mixed_bits, which read() refuses.
  MixedWeights read_mixed(std::string_view layer) const;

 private:
  struct Impl;
  explicit Checkpoint(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace mpq

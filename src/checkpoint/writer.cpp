// CheckpointWriter: shards gathered in memory, a directory that is renamed when it is whole.

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <set>
#include <system_error>

#include "checkpoint/atomic_file.hpp"
#include "checkpoint/format.hpp"
#include "checkpoint/text.hpp"
#include "mpq/checkpoint_writer.hpp"
#include "mpq/pack.hpp"

namespace mpq {

namespace {

using namespace detail;
namespace fs = std::filesystem;

const FormatWriter& writer_named(const std::string& name) {
  for (const Format* format : formats()) {
    if (format->name == name && format->writer != nullptr) return *format->writer;
  }
  fail(ErrorCode::unsupported, "format {} cannot be written, these can: {}", in_quotes(name),
       detail::joined(writable_formats(), ", "));
}

void write_text(const fs::path& path, const std::string& text) {
  AtomicFile file(path);
  file.write(std::as_bytes(std::span(text)));
  file.commit();
}

EncodingLoss loss_of(const AnyQuantizedWeights& before, const AnyQuantizedWeights& after) {
  const auto a = dequantize(before), b = dequantize(after);
  EncodingLoss loss;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double error = std::abs(double{a[i]} - double{b[i]});
    if (!(error <= loss.max_error)) loss.max_error = std::isnan(error) ? HUGE_VAL : error;
    loss.max_weight = std::max(loss.max_weight, std::abs(double{a[i]}));
  }
  return loss;
}

WrittenLayer written_layer(const std::string& name, const WeightsData& weights, int bits) {
  WrittenLayer layer{.name = name, .bits = bits, .group_size = weights.group_size};
  const auto middle = static_cast<std::uint16_t>(1 << (bits - 1));
  layer.zero_kind = weights.zero_kind;
  layer.symmetric =
      weights.zero_kind == ZeroKind::none ||
      (weights.zero_kind == ZeroKind::integer &&
       std::ranges::all_of(weights.zeros, [&](std::uint16_t zero) { return zero == middle; }));
  layer.act_order = !weights.g_idx.empty();
  if (const auto& dq = weights.double_quantized) {
    layer.per_channel = dq->per_channel;
    layer.dq_group_size =
        dq->per_channel || dq->dq_group_size == weights.out_features ? -1 : dq->dq_group_size;
  }
  return layer;
}

/// Files of a checkpoint that belong to the model and not to its weights' format.
bool is_taken_over(const fs::path& file) {
  static const std::set<std::string> kExtensions{".json", ".txt", ".model", ".jinja", ".tiktoken"};
  static const std::set<std::string> kOwn{"config.json", "quantize_config.json",
                                          "quant_config.json", "quant_strategy.json",
                                          "model.safetensors.index.json"};
  return kExtensions.contains(file.extension().string()) && !kOwn.contains(file.filename());
}

}  // namespace

std::vector<std::string> writable_formats() {
  std::vector<std::string> names;
  for (const Format* format : formats()) {
    if (format->writer != nullptr) names.emplace_back(format->name);
  }
  std::ranges::sort(names);
  return names;
}

struct CheckpointWriter::Impl {
  fs::path target, part;
  CheckpointWriterOptions options;
  const FormatWriter* writer;
  std::vector<WrittenLayer> layers;
  std::vector<std::string> dense;                            ///< layers that are not quantised
  std::vector<std::pair<std::string, EncodedTensor>> shard;  ///< names and tensors, not yet written
  std::uint64_t shard_bytes = 0, total_bytes = 0;
  std::vector<std::vector<std::string>> shard_names;  ///< the tensors of each shard
  std::set<std::string> names;
  bool finished = false;

  Impl(const fs::path& directory, const CheckpointWriterOptions& options_)
      : target(directory.has_filename() ? directory : directory.parent_path()),
        options(options_),
        writer(&writer_named(options_.format)) {
    std::error_code error;
    if (fs::exists(target, error) &&
        !(fs::is_directory(target, error) && fs::is_empty(target, error))) {
      fail(ErrorCode::invalid_argument, "{}: exists and is no empty directory", target.string());
    }
    part = target;
    part += detail::format(".part-{}", ::getpid());
    if (!fs::create_directory(part, error)) {
      fail(ErrorCode::io_failure, "{}: cannot be made: {}", part.string(),
           error ? error.message() : "exists");
    }
  }

  ~Impl() {
    std::error_code error;
    if (!finished) fs::remove_all(part, error);
  }

  void add(std::string name, EncodedTensor tensor) {
    if (!names.insert(name).second) {
      fail(ErrorCode::invalid_argument, "tensor {} is added twice", in_quotes(name));
    }
    shard_bytes += tensor.bytes.size();
    total_bytes += tensor.bytes.size();
    shard.emplace_back(std::move(name), std::move(tensor));
  }

  void make_room(std::uint64_t bytes) {
    if (!shard.empty() && shard_bytes + bytes > options.max_shard_bytes) flush();
  }

  fs::path shard_path(std::size_t index) const {
    return part / detail::format("shard-{}.safetensors", index);
  }

  void flush() {
    std::vector<SafetensorsTensor> tensors;
    std::vector<std::string> written;
    for (const auto& [name, tensor] : shard) {
      tensors.push_back({name, tensor.type, tensor.shape, tensor.bytes});
      written.push_back(name);
    }
    write_safetensors(shard_path(shard_names.size()), tensors, options.metadata);
    shard_names.push_back(std::move(written));
    shard.clear();
    shard_bytes = 0;
  }

  void name_shards() {
    if (shard_names.size() == 1) {
      fs::rename(shard_path(0), part / "model.safetensors");
      return;
    }
    SettingsTree map;
    for (std::size_t i = 0; i < shard_names.size(); ++i) {
      const auto file =
          detail::format("model-{:05}-of-{:05}.safetensors", i + 1, shard_names.size());
      fs::rename(shard_path(i), part / file);
      for (const auto& name : shard_names[i]) map.set(name, file);
    }
    std::ranges::sort(map.members, {}, &SettingsTree::Member::key);
    write_text(part / "model.safetensors.index.json",
               settings_text(
                   SettingsTree{}
                       .set("metadata", SettingsTree{}.set("total_size",
                                                           static_cast<std::int64_t>(total_bytes)))
                       .set("weight_map", map)));
  }

  void write_settings() {
    const SettingsTree settings = writer->settings(layers, dense);
    if (writer->settings_file != nullptr) {
      write_text(part / writer->settings_file, settings_text(settings));
    }
    const fs::path base = options.base.empty() ? fs::path() : options.base / "config.json";
    write_text(part / "config.json", config_text(settings, base));
    if (options.base.empty()) return;
    for (const auto& file : fs::directory_iterator(options.base)) {
      if (!file.is_regular_file() || !is_taken_over(file.path())) continue;
      fs::copy_file(file.path(), part / file.path().filename());
    }
  }
};

CheckpointWriter::CheckpointWriter(const fs::path& directory,
                                   const CheckpointWriterOptions& options)
    : impl_(std::make_unique<Impl>(directory, options)) {}
CheckpointWriter::~CheckpointWriter() = default;
CheckpointWriter::CheckpointWriter(CheckpointWriter&&) noexcept = default;
CheckpointWriter& CheckpointWriter::operator=(CheckpointWriter&&) noexcept = default;

EncodingLoss CheckpointWriter::add(const std::string& layer, const AnyQuantizedWeights& weights) {
  const int bits = bits_of(weights);
  EncodingLoss loss;
  std::vector<EncodedTensor> tensors;
  try {
    check_values(data_of(weights), bits);
    Fitted fitted = impl_->writer->fit(data_of(weights), bits);
    impl_->layers.push_back(written_layer(layer, fitted.weights, bits));
    tensors = impl_->writer->encode(fitted.weights, bits);
    if (!fitted.exact) {
      loss = loss_of(weights, make_quantized_weights(bits, std::move(fitted.weights)));
      if (impl_->options.lossless && loss.max_error != 0) {
        fail(ErrorCode::unsupported, "{} cannot hold it exactly, the largest error is {}",
             impl_->options.format, loss.max_error);
      }
    }
  } catch (const Error& error) {
    throw Error(error.code(), detail::format("layer {}: {}", in_quotes(layer), error.what()));
  }
  std::uint64_t bytes = 0;
  for (const auto& tensor : tensors) bytes += tensor.bytes.size();
  impl_->make_room(bytes);
  for (auto& tensor : tensors) {
    auto name = layer.empty() ? tensor.suffix : layer + "." + tensor.suffix;
    impl_->add(std::move(name), std::move(tensor));
  }
  return loss;
}

void CheckpointWriter::add_tensor(const SafetensorsTensor& tensor) {
  constexpr std::string_view kWeight = ".weight";
  if (tensor.shape.size() == 2 && tensor.name.ends_with(kWeight)) {
    impl_->dense.push_back(tensor.name.substr(0, tensor.name.size() - kWeight.size()));
  }
  impl_->make_room(tensor.bytes.size());
  impl_->add(tensor.name, {.suffix = {},
                           .type = tensor.type,
                           .shape = tensor.shape,
                           .bytes = {tensor.bytes.begin(), tensor.bytes.end()}});
}

void CheckpointWriter::finish() {
  if (impl_->layers.empty()) {
    fail(ErrorCode::invalid_argument, "{}: no layer was added", impl_->target.string());
  }
  try {
    if (!impl_->shard.empty()) impl_->flush();
    impl_->write_settings();
    impl_->name_shards();
    fs::rename(impl_->part, impl_->target);
  } catch (const fs::filesystem_error& error) {
    fail(ErrorCode::io_failure, "{}: {}", impl_->target.string(), error.code().message());
  }
  impl_->finished = true;
}

}  // namespace mpq

// A directory of shards and settings as a list of layers that can be decoded.

#include "mpq/checkpoint.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <numeric>
#include <utility>

#include "checkpoint/format.hpp"
#include "checkpoint/packed_layer.hpp"
#include "checkpoint/shards.hpp"
#include "checkpoint/text.hpp"

namespace mpq {

namespace {

using namespace detail;

using TensorMap = std::map<std::string, Tensor, std::less<>>;

/// Edits that make one name of the other; long names are compared by their ends.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  constexpr std::size_t kLongest = 128;
  if (a.size() > kLongest) a.remove_prefix(a.size() - kLongest);
  if (b.size() > kLongest) b.remove_prefix(b.size() - kLongest);
  std::array<std::size_t, kLongest + 1> row{};
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t above = row[j + 1];
      row[j + 1] = std::min({above + 1, row[j] + 1, diagonal + (a[i] == b[j] ? 0u : 1u)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

/// The names that were perhaps meant, for a message.
std::string suggestions(std::string_view wanted, const std::vector<LayerInfo>& layers) {
  constexpr std::size_t kShown = 4;
  if (layers.empty()) return "there is no quantised layer";
  std::vector<std::pair<std::size_t, std::string_view>> ranked;
  for (const auto& layer : layers) {
    const bool part = !wanted.empty() && layer.name.find(wanted) != std::string::npos;
    ranked.emplace_back(part ? 0 : edit_distance(wanted, layer.name), layer.name);
  }
  const std::size_t shown = std::min(kShown, ranked.size());
  std::ranges::partial_sort(ranked, ranked.begin() + static_cast<std::ptrdiff_t>(shown));
  std::string text = shown < ranked.size() ? detail::format("the closest of {} are ", ranked.size())
                                           : std::string("there is ");
  for (std::size_t i = 0; i < shown; ++i) {
    text += detail::format("{}{}", i == 0 ? "" : ", ", in_quotes(ranked[i].second));
  }
  return text;
}

bool is_marked(const Format& format, const LayerTensors& tensors) {
  return std::ranges::any_of(format.marks,
                             [&](std::string_view mark) { return tensors.has(mark); });
}

/// The format of a layer by its settings, else by its tensors.
const Format& format_of(const LayerTensors& tensors, const LayerSettings& settings) {
  if (settings.format) return format_named(*settings.format);
  for (const Format* format : formats()) {
    if (is_marked(*format, tensors) && format->claims(tensors)) return *format;
  }
  fail(ErrorCode::unsupported, "layer {}: its tensors are of no format that is supported",
       in_quotes(tensors.prefix()));
}

}  // namespace

struct Checkpoint::Impl {
  struct Layer {
    LayerTensors tensors;
    const Format* format;
  };
  std::vector<SafetensorsFile> files;
  std::map<std::string, TensorMap> prefixes;  ///< prefix -> rest of the name -> tensor
  std::vector<LayerInfo> infos;
  std::vector<Layer> layers;  ///< as infos
  std::vector<std::string> dense;

  Impl(const std::filesystem::path& directory, const CheckpointOptions& options)
      : files(open_shards(directory)) {
    const Settings settings = Settings::read(directory, options);
    // A directory in a format that is not supported should say so, not show no layers.
    if (const auto format = settings.format()) format_named(*format);
    for (const auto& file : files) {
      for (const auto& entry : file.entries()) {
        auto dot = entry.name.rfind('.');
        if (dot == std::string::npos) dot = 0;  // no prefix
        prefixes[entry.name.substr(0, dot)].emplace(entry.name.substr(dot == 0 ? 0 : dot + 1),
                                                    Tensor{&file, &entry});
      }
    }
    for (const auto& [prefix, tensors] : prefixes) find_layer(prefix, tensors, settings);
    std::ranges::sort(dense);
  }

  std::size_t index_of(std::string_view layer) const {
    const auto at = std::ranges::lower_bound(
        infos, layer, {}, [](const LayerInfo& info) -> std::string_view { return info.name; });
    if (at == infos.end() || at->name != layer) {
      fail(ErrorCode::invalid_argument, "no layer {}: {}", in_quotes(layer),
           suggestions(layer, infos));
    }
    return static_cast<std::size_t>(at - infos.begin());
  }

  void find_layer(const std::string& prefix, const TensorMap& tensors, const Settings& settings) {
    LayerTensors layer(prefix, tensors);
    const auto marked = [&](const Format* format) { return is_marked(*format, layer); };
    if (std::ranges::none_of(formats(), marked)) {
      for (const auto& [suffix, tensor] : tensors) dense.push_back(tensor.entry->name);
      return;
    }
    const LayerSettings layer_settings = settings.for_layer(prefix);
    const Format& format = format_of(layer, layer_settings);
    infos.push_back(format.inspect(layer, layer_settings));
    LayerInfo& info = infos.back();
    if (info.format.empty()) info.format = format.name;
    layers.push_back({std::move(layer), &format_named(info.format)});
  }
};

Checkpoint::Checkpoint(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Checkpoint::~Checkpoint() = default;
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;

Checkpoint Checkpoint::open(const std::filesystem::path& directory,
                            const CheckpointOptions& options) {
  return Checkpoint(std::make_unique<Impl>(directory, options));
}

const std::vector<LayerInfo>& Checkpoint::layers() const noexcept {
  return impl_->infos;
}

const LayerInfo& Checkpoint::layer(std::string_view name) const {
  return impl_->infos[impl_->index_of(name)];
}

const std::vector<std::string>& Checkpoint::dense_tensors() const noexcept {
  return impl_->dense;
}

SafetensorsTensor Checkpoint::tensor(std::string_view name) const {
  for (const auto& file : impl_->files) {
    if (const auto* entry = file.find(name)) {
      return {entry->name, entry->type, entry->shape, file.bytes(*entry)};
    }
  }
  fail(ErrorCode::invalid_argument, "no tensor {}", in_quotes(name));
}

std::vector<std::int64_t> Checkpoint::zeros_histogram(std::string_view layer) const {
  const auto index = impl_->index_of(layer);
  const LayerInfo& info = impl_->infos[index];
  if (info.zero_kind == ZeroKind::affine) return {};
  std::vector<std::int64_t> counts((std::size_t{1} << info.bits) + 1);
  if (info.zero_kind == ZeroKind::none) {
    counts[std::size_t{1} << (info.bits - 1)] = groups_of(info) * info.out_features;
    return counts;
  }
  const auto& found = impl_->layers[index];
  for (const auto zero : found.format->zeros(found.tensors, info)) ++counts[zero];
  return counts;
}

AnyQuantizedWeights Checkpoint::read(std::string_view layer) const {
  const auto index = impl_->index_of(layer);
  const LayerInfo& info = impl_->infos[index];
  const auto& found = impl_->layers[index];
  if (!info.mixed_bits.empty()) {
    fail(ErrorCode::unsupported, "layer {}: its widths are {} bits: it is read with read_mixed",
         in_quotes(layer), detail::joined(info.mixed_bits, ", "));
  }
  try {
    auto weights = make_quantized_weights(info.bits, found.format->decode(found.tensors, info));
    check_structure(data_of(weights), info.bits);
    return weights;
  } catch (const Error& error) {
    throw Error(error.code(), detail::format("layer {}: {}", in_quotes(layer), error.what()));
  }
}

bool Checkpoint::equal_layers(std::string_view a, std::string_view b) const {
  const auto i = impl_->index_of(a), j = impl_->index_of(b);
  const LayerInfo &x = impl_->infos[i], &y = impl_->infos[j];
  if (x.format != y.format || x.bits != y.bits || x.group_size != y.group_size ||
      x.zero_kind != y.zero_kind || x.act_order != y.act_order) {
    return false;
  }
  const auto& left = impl_->layers[i].tensors.all();
  const auto& right = impl_->layers[j].tensors.all();
  return std::ranges::equal(left, right, [](const auto& l, const auto& r) {
    const Tensor &p = l.second, &q = r.second;
    if (l.first != r.first || p.type() != q.type() || p.shape() != q.shape()) return false;
    const auto x_bytes = p.file->bytes(*p.entry), y_bytes = q.file->bytes(*q.entry);
    return x_bytes.empty() || std::memcmp(x_bytes.data(), y_bytes.data(), x_bytes.size()) == 0;
  });
}

void Checkpoint::release(std::string_view layer) const {
  for (const auto& [suffix, tensor] : impl_->layers[impl_->index_of(layer)].tensors.all()) {
    tensor.file->release(*tensor.entry);
  }
}

MixedWeights Checkpoint::read_mixed(std::string_view layer) const {
  const auto index = impl_->index_of(layer);
  const auto& found = impl_->layers[index];
  if (found.format->decode_mixed == nullptr) {
    fail(ErrorCode::unsupported, "layer {}: it has one width, {} bits: it is read with read",
         in_quotes(layer), impl_->infos[index].bits);
  }
  try {
    auto weights = found.format->decode_mixed(found.tensors, impl_->infos[index]);
    check_structure(weights);
    return weights;
  } catch (const Error& error) {
    throw Error(error.code(), detail::format("layer {}: {}", in_quotes(layer), error.what()));
  }
}

}  // namespace mpq

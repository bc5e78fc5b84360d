// mpq inspect: what a checkpoint holds.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "commands.hpp"
#include "device.hpp"
#include "output.hpp"

namespace mpq::tool {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::array<std::int64_t, 4> kBatches{1, 16, 64, 512};

struct Totals {
  std::uint64_t quantized_bytes = 0, dense_bytes = 0;
  std::int64_t weights = 0;
};

Totals totals_of(const Checkpoint& checkpoint) {
  Totals totals;
  for (const auto& layer : checkpoint.layers()) {
    totals.quantized_bytes += layer.bytes;
    totals.weights += layer.in_features * layer.out_features;
  }
  for (const auto& name : checkpoint.dense_tensors()) {
    totals.dense_bytes += checkpoint.tensor(name).bytes.size();
  }
  return totals;
}

/// "4", or "8+3" for widths that are mixed inside the layer.
std::string bits_text(const LayerInfo& layer) {
  return layer.mixed_bits.empty() ? std::to_string(layer.bits)
                                  : fmt::format("{}", fmt::join(layer.mixed_bits, "+"));
}

std::string group_text(int group_size) {
  return group_size == -1 ? "one group for all input features"
                          : fmt::format("groups of {}", group_size);
}

/// "gptq, 4 bits, groups of 128 (224 layers); gptq, 8 bits, ... (1 layer)", the most layers first.
std::string verdict(const Checkpoint& checkpoint) {
  std::map<std::string, int> kinds;
  for (const auto& layer : checkpoint.layers()) {
    ++kinds[fmt::format("{}, {} bits, {}{}", layer.format, bits_text(layer),
                        group_text(layer.group_size), layer.act_order ? ", act-order" : "")];
  }
  if (kinds.empty()) return "no quantised layer";
  std::vector<std::pair<int, std::string>> ranked;
  for (const auto& [kind, count] : kinds) ranked.emplace_back(-count, kind);
  std::ranges::sort(ranked);
  std::string text;
  for (const auto& [count, kind] : ranked) {
    text += fmt::format("{}{} ({} layer{})", text.empty() ? "" : "; ", kind, -count,
                        count == -1 ? "" : "s");
  }
  return text;
}

/// Counts of integer zeros by width, over all layers.
std::map<int, std::vector<std::int64_t>> zeros_of(const Checkpoint& checkpoint) {
  std::map<int, std::vector<std::int64_t>> histograms;
  ProgressBar bar(checkpoint.layers().size());
  std::size_t done = 0;
  for (const auto& layer : checkpoint.layers()) {
    bar.show(done++, layer.name);
    const auto counts = checkpoint.zeros_histogram(layer.name);
    auto& all = histograms[layer.bits];
    all.resize(std::max(all.size(), counts.size()));
    for (std::size_t i = 0; i < counts.size(); ++i) all[i] += counts[i];
  }
  std::erase_if(histograms, [](const auto& histogram) { return histogram.second.empty(); });
  return histograms;
}

Json layer_json(const LayerInfo& layer, const DeviceTraits& traits) {
  Json json{{"name", layer.name},
            {"format", layer.format},
            {"bits", layer.bits},
            {"in_features", layer.in_features},
            {"out_features", layer.out_features},
            {"group_size", layer.group_size},
            {"zeros", to_string(layer.zero_kind)},
            {"dtype", to_string(layer.dtype)},
            {"act_order", layer.act_order},
            {"bias", layer.bias},
            {"double_quantized", layer.double_quantized},
            {"bytes", layer.bytes}};
  if (!layer.note.empty()) json["note"] = layer.note;
  if (!layer.mixed_bits.empty()) {
    json["mixed_bits"] = layer.mixed_bits;
    return json;
  }
  auto& kernels = json["kernels"];
  for (const auto batch : kBatches) {
    kernels[std::to_string(batch)] = kernel_text(layer, batch, traits);
  }
  return json;
}

void report_json(const std::string& directory, const Checkpoint& checkpoint) {
  const PlannedDevice device;
  auto layers = Json::array(), dense = Json::array();
  auto zeros = Json::object();
  for (const auto& layer : checkpoint.layers()) layers.push_back(layer_json(layer, device.traits));
  for (const auto& [bits, counts] : zeros_of(checkpoint)) zeros[std::to_string(bits)] = counts;
  for (const auto& name : checkpoint.dense_tensors()) {
    const auto tensor = checkpoint.tensor(name);
    dense.push_back({{"name", name},
                     {"dtype", to_string(tensor.type)},
                     {"shape", tensor.shape},
                     {"bytes", tensor.bytes.size()}});
  }
  const Totals totals = totals_of(checkpoint);
  print_json({{"directory", directory},
              {"verdict", verdict(checkpoint)},
              {"layers", std::move(layers)},
              {"zeros_histogram", std::move(zeros)},
              {"dense_tensors", checkpoint.dense_tensors()},
              {"dense", std::move(dense)},
              {"quantized_bytes", totals.quantized_bytes},
              {"dense_bytes", totals.dense_bytes},
              {"kernels_for", device.name}});
}

void print_layers(const Checkpoint& checkpoint) {
  std::size_t width = 5, format_width = 6;
  for (const auto& layer : checkpoint.layers()) {
    width = std::max(width, printable(layer.name).size());
    format_width = std::max(format_width, layer.format.size());
  }
  fmt::print("{:<{}}  {:<{}}  {:>4}  {:>7}  {:>7}  {:>5}  {:<7}  {:<5}  {}\n", "layer", width,
             "format", format_width, "bits", "in", "out", "group", "zeros", "dtype", "also");
  for (const auto& layer : checkpoint.layers()) {
    std::string also;
    if (layer.act_order) also += " act-order";
    if (layer.double_quantized) also += " double-quantised";
    if (layer.bias) also += " bias";
    fmt::print("{:<{}}  {:<{}}  {:>4}  {:>7}  {:>7}  {:>5}  {:<7}  {:<5} {}\n",
               printable(layer.name), width, layer.format, format_width, bits_text(layer),
               layer.in_features, layer.out_features, layer.group_size, to_string(layer.zero_kind),
               to_string(layer.dtype), also);
  }
}

/// Tensors with two dimensions are layers that stayed dense; the rest is only counted.
void print_dense(const Checkpoint& checkpoint) {
  std::size_t others = 0;
  for (const auto& name : checkpoint.dense_tensors()) {
    const auto tensor = checkpoint.tensor(name);
    if (tensor.shape.size() != 2) {
      ++others;
      continue;
    }
    fmt::print("dense: {} {} [{}], {:.3f} MB\n", printable(name), to_string(tensor.type),
               fmt::join(tensor.shape, ", "), static_cast<double>(tensor.bytes.size()) * 1e-6);
  }
  if (others > 0) fmt::print("dense: {} tensors that are no matrices\n", others);
}

void print_zeros(const Checkpoint& checkpoint) {
  for (const auto& [bits, counts] : zeros_of(checkpoint)) {
    std::int64_t sum = 0;
    for (const auto count : counts) sum += count;
    std::string text;
    for (std::size_t zero = 0; zero < counts.size(); ++zero) {
      if (counts[zero] == 0) continue;
      const double share = 100.0 * static_cast<double>(counts[zero]) / static_cast<double>(sum);
      // With 8 bits most zeros are rare: what is a line's worth is shown.
      if (bits == 8 && share < 2) continue;
      text += fmt::format("{}{}: {:.1f}%", text.empty() ? "" : ", ", zero, share);
    }
    fmt::print("zeros of {} bits: {}{}\n", bits, text.empty() ? "each below 2%" : text,
               bits == 8 ? " (and rarer ones)" : "");
  }
}

/// The kernels for each shape, of which a model has few.
void print_kernels(const Checkpoint& checkpoint) {
  const PlannedDevice device;
  fmt::print("kernels on {}:\n", device.name);
  std::set<std::tuple<int, std::int64_t, std::int64_t, bool>> seen;
  for (const auto& layer : checkpoint.layers()) {
    if (!layer.mixed_bits.empty()) continue;  // pieces, cut when it is run
    if (!seen.emplace(layer.bits, layer.in_features, layer.out_features, layer.act_order).second) {
      continue;
    }
    for (const auto batch : kBatches) {
      fmt::print("  {} bits, {} -> {}, batch {}: {}\n", layer.bits, layer.in_features,
                 layer.out_features, batch, kernel_text(layer, batch, device.traits));
    }
  }
}

void report_text(const Checkpoint& checkpoint) {
  const Totals totals = totals_of(checkpoint);
  fmt::print("{}\n", verdict(checkpoint));
  if (!checkpoint.layers().empty()) print_layers(checkpoint);
  for (const auto& layer : checkpoint.layers()) {
    if (!layer.note.empty()) fmt::print("note: {}: {}\n", printable(layer.name), layer.note);
  }
  print_dense(checkpoint);
  print_zeros(checkpoint);
  if (!checkpoint.layers().empty()) print_kernels(checkpoint);
  fmt::print("{} quantised layers, {:.3f} MB", checkpoint.layers().size(),
             static_cast<double>(totals.quantized_bytes) * 1e-6);
  if (totals.weights > 0) {
    fmt::print(", {:.3f} bits a weight on disk", 8.0 * static_cast<double>(totals.quantized_bytes) /
                                                     static_cast<double>(totals.weights));
  }
  fmt::print("; {} other tensors, {:.3f} MB\n", checkpoint.dense_tensors().size(),
             static_cast<double>(totals.dense_bytes) * 1e-6);
}

}  // namespace

void add_inspect(CLI::App& app) {
  auto* command = app.add_subcommand(
      "inspect",
      "Says what a checkpoint is: its format, layers, widths, groups, zeros, dense tensors,\n"
      "bytes, and the kernels that will run for batches of 1, 16, 64 and 512");
  const auto arguments = add_checkpoint_arguments(*command);
  const auto json = add_json_flag(
      *command,
      "Prints JSON: directory, verdict, layers, zeros_histogram, dense_tensors, dense, ...");
  command->callback([arguments, json] {
    const Checkpoint checkpoint = arguments->open();
    if (*json) {
      report_json(arguments->directory, checkpoint);
    } else {
      report_text(checkpoint);
    }
  });
}

}  // namespace mpq::tool

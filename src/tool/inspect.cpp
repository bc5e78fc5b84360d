// mpq inspect: what a checkpoint holds.

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "commands.hpp"

namespace mpq::tool {

namespace {

void print_json(const std::string& directory, const Checkpoint& checkpoint) {
  auto layers = nlohmann::ordered_json::array();
  for (const auto& layer : checkpoint.layers()) {
    layers.push_back({{"name", layer.name},
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
                      {"bytes", layer.bytes}});
  }
  const nlohmann::ordered_json all{{"directory", directory},
                                   {"layers", std::move(layers)},
                                   {"dense_tensors", checkpoint.dense_tensors()}};
  // A directory's name need not be UTF-8; JSON must.
  fmt::print("{}\n", all.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
}

void print_table(const Checkpoint& checkpoint) {
  std::size_t width = 5;
  for (const auto& layer : checkpoint.layers()) {
    width = std::max(width, printable(layer.name).size());
  }
  std::uint64_t bytes = 0;
  std::int64_t weights = 0;
  if (!checkpoint.layers().empty()) {
    fmt::print("{:<{}}  {:<7}  {:>4}  {:>7}  {:>7}  {:>5}  {:<7}  {:<5}  {}\n", "layer", width,
               "format", "bits", "in", "out", "group", "zeros", "dtype", "also");
  }
  for (const auto& layer : checkpoint.layers()) {
    std::string also;
    if (layer.act_order) also += " act-order";
    if (layer.double_quantized) also += " double-quantised";
    if (layer.bias) also += " bias";
    fmt::print("{:<{}}  {:<7}  {:>4}  {:>7}  {:>7}  {:>5}  {:<7}  {:<5} {}\n",
               printable(layer.name), width, layer.format, layer.bits, layer.in_features,
               layer.out_features, layer.group_size, to_string(layer.zero_kind),
               to_string(layer.dtype), also);
    bytes += layer.bytes;
    weights += layer.in_features * layer.out_features;
  }
  fmt::print("{} quantised layers, {:.3f} MB", checkpoint.layers().size(),
             static_cast<double>(bytes) * 1e-6);
  if (weights > 0) {
    fmt::print(", {:.3f} bits a weight on disk",
               8.0 * static_cast<double>(bytes) / static_cast<double>(weights));
  }
  fmt::print("; {} other tensors\n", checkpoint.dense_tensors().size());
}

}  // namespace

void add_inspect(CLI::App& app) {
  auto* command = app.add_subcommand("inspect", "Lists the quantised layers of a checkpoint");
  const auto arguments = add_checkpoint_arguments(*command);
  const auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "Prints JSON: directory, layers, dense_tensors");
  command->callback([arguments, json] {
    const Checkpoint checkpoint = arguments->open();
    if (*json) {
      print_json(arguments->directory, checkpoint);
    } else {
      print_table(checkpoint);
    }
  });
}

}  // namespace mpq::tool

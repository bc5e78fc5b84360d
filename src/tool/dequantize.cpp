// mpq dequantize: every quantised layer as a dense float32 weight.

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "commands.hpp"
#include "mpq/error.hpp"
#include "mpq/pack.hpp"
#include "mpq/quantized_weights.hpp"
#include "output.hpp"

namespace mpq::tool {

namespace {

void dequantize_all(const CheckpointArguments& arguments, const std::string& output, bool json) {
  const Checkpoint checkpoint = arguments.open();
  const auto& layers = checkpoint.layers();
  if (layers.empty()) {
    throw Error(ErrorCode::invalid_file,
                fmt::format("{}: there is no quantised layer", arguments.directory));
  }
  std::vector<SafetensorsTensor> tensors;
  for (const auto& layer : layers) {
    tensors.push_back({.name = layer.name.empty() ? "weight" : layer.name + ".weight",
                       .type = SafetensorsType::F32,
                       .shape = {layer.out_features, layer.in_features},
                       .bytes = {}});
  }
  // One layer at a time: the dense weights of a model need not fit in memory.
  std::size_t done = 0;
  {
    ProgressBar bar(layers.size());
    write_safetensors(output, tensors, [&](std::size_t index, const auto& write) {
      bar.show(done++, layers[index].name);
      if (!layers[index].mixed_bits.empty()) {
        const std::vector<float> dense = dequantize(checkpoint.read_mixed(layers[index].name));
        write(std::as_bytes(std::span(dense)));
        return;
      }
      const AnyQuantizedWeights weights = checkpoint.read(layers[index].name);
      try {
        check_values(data_of(weights), bits_of(weights));
      } catch (const Error& error) {
        throw Error(error.code(), fmt::format("layer {}: {}", layers[index].name, error.what()));
      }
      const std::vector<float> dense = dequantize(weights);
      write(std::as_bytes(std::span(dense)));
    });
  }
  if (json) {
    print_json({{"layers", layers.size()}, {"output", output}});
    return;
  }
  fmt::print("{} layers to {}\n", layers.size(), printable(output));
}

}  // namespace

void add_dequantize(CLI::App& app) {
  auto* command = app.add_subcommand(
      "dequantize", "Writes each layer's dense F32 weight [out, in] as LAYER.weight");
  const auto arguments = add_checkpoint_arguments(*command);
  const auto output = std::make_shared<std::string>();
  command->add_option("-o,--output", *output, "safetensors file to write")->required();
  const auto json = add_json_flag(*command, "Prints JSON: layers, output");
  command->callback([arguments, output, json] { dequantize_all(*arguments, *output, *json); });
}

}  // namespace mpq::tool

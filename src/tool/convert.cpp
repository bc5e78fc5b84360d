// mpq convert: a checkpoint in another format.

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "commands.hpp"
#include "mpq/checkpoint_writer.hpp"
#include "mpq/error.hpp"
#include "output.hpp"

namespace mpq::tool {

namespace {

struct ConvertArguments {
  std::string output;
  CheckpointWriterOptions writer;
  std::uint64_t shard_megabytes = 2000;
  std::shared_ptr<bool> json;
};

struct Loss {
  std::string layer;
  EncodingLoss loss;
};

void report(const ConvertArguments& arguments, std::size_t layers, std::size_t others,
            const std::vector<Loss>& losses) {
  Loss largest;
  for (const auto& each : losses) {
    if (each.loss.max_error > largest.loss.max_error) largest = each;
  }
  if (*arguments.json) {
    auto lossy = nlohmann::ordered_json::array();
    for (const auto& each : losses) {
      lossy.push_back({{"name", each.layer},
                       {"max_error", each.loss.max_error},
                       {"max_weight", each.loss.max_weight}});
    }
    print_json({{"output", arguments.output},
                {"format", arguments.writer.format},
                {"layers", layers},
                {"dense_tensors", others},
                {"lossless", losses.empty()},
                {"max_error", largest.loss.max_error},
                {"lossy_layers", std::move(lossy)}});
    return;
  }
  fmt::print("{} layers and {} other tensors to {} as {}: ", layers, others,
             printable(arguments.output), arguments.writer.format);
  if (losses.empty()) {
    fmt::print("lossless\n");
  } else {
    fmt::print(
        "{} layers changed, the largest error is {:.6g} in {}, whose largest weight is {:.6g}\n",
        losses.size(), largest.loss.max_error, printable(largest.layer), largest.loss.max_weight);
  }
}

void convert(const CheckpointArguments& from, ConvertArguments& arguments) {
  const Checkpoint checkpoint = from.open();
  if (checkpoint.layers().empty()) {
    throw Error(ErrorCode::invalid_file,
                fmt::format("{}: there is no quantised layer", from.directory));
  }
  arguments.writer.base = from.directory;
  arguments.writer.max_shard_bytes = arguments.shard_megabytes * 1'000'000;
  CheckpointWriter writer(arguments.output, arguments.writer);
  std::vector<Loss> losses;
  {
    ProgressBar bar(checkpoint.layers().size());
    std::size_t done = 0;
    for (const auto& layer : checkpoint.layers()) {
      bar.show(done++, layer.name);
      const EncodingLoss loss = writer.add(layer.name, checkpoint.read(layer.name));
      if (loss.max_error != 0) losses.push_back({layer.name, loss});
    }
    for (const auto& name : checkpoint.dense_tensors()) writer.add_tensor(checkpoint.tensor(name));
    writer.finish();
  }
  report(arguments, checkpoint.layers().size(), checkpoint.dense_tensors().size(), losses);
}

}  // namespace

void add_convert(CLI::App& app) {
  auto* command = app.add_subcommand(
      "convert",
      "Writes a checkpoint in another format. Weights that it cannot hold exactly go to the\n"
      "nearest that it can, and the largest error is told");
  const auto checkpoint = add_checkpoint_arguments(*command);
  const auto arguments = std::make_shared<ConvertArguments>();
  add_writer_arguments(*command, arguments->writer.format, arguments->output);
  command->add_flag("--lossless", arguments->writer.lossless,
                    "Fails (exit code 6) where a layer cannot be held exactly");
  command
      ->add_option("--max-shard-mb", arguments->shard_megabytes,
                   "Size from which files are split, in 10^6 bytes; also the memory used")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  arguments->json = add_json_flag(
      *command, "Prints JSON: output, format, layers, lossless, max_error, lossy_layers");
  command->callback([checkpoint, arguments] { convert(*checkpoint, *arguments); });
}

}  // namespace mpq::tool

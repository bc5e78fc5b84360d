#include <fmt/format.h>

#include "commands.hpp"
#include "mpq/checkpoint_writer.hpp"

namespace mpq::tool {

std::shared_ptr<CheckpointArguments> add_checkpoint_arguments(CLI::App& command) {
  auto arguments = std::make_shared<CheckpointArguments>();
  auto& options = arguments->options;
  command.add_option("DIR", arguments->directory, "Directory of the checkpoint")->required();
  constexpr auto kGroup = "Settings (win over those of the checkpoint's files)";
  command
      .add_option("--format", options.format,
                  "gptq, gptq_v2, gba, awq, compressed-tensors, hqq or mlx")
      ->group(kGroup);
  command.add_option("--bits", options.bits, "Bits of a weight: 1, 2, 4 or 8")->group(kGroup);
  command
      .add_option("--group-size", options.group_size,
                  "Input features that share a scale; -1: all of them")
      ->group(kGroup);
  auto* asymmetric = command.add_flag_callback(
      "--asymmetric", [arguments] { arguments->options.asymmetric = true; },
      "GBA: zeros are integers beside the scales");
  auto* symmetric = command.add_flag_callback(
      "--symmetric", [arguments] { arguments->options.asymmetric = false; },
      "GBA: zeros are quantised with the scales");
  asymmetric->group(kGroup);
  symmetric->group(kGroup)->excludes(asymmetric);
  command
      .add_option("--dq-group-size", options.dq_group_size,
                  "GBA: output channels that share parameters of the scales; -1: all of them")
      ->group(kGroup);
  command
      .add_option("--dq-mode", options.dq_mode, "GBA: 1: parameters by output channel, 2: by group")
      ->group(kGroup);
  return arguments;
}

void add_writer_arguments(CLI::App& command, std::string& format, std::string& output) {
  command.add_option("--to", format, "Format to write")
      ->required()
      ->check(CLI::IsMember(writable_formats()));
  command
      .add_option("-o,--output", output,
                  "Directory to write: new or empty; appears whole or not at all")
      ->required();
}

std::shared_ptr<bool> add_json_flag(CLI::App& command, const std::string& help) {
  auto json = std::make_shared<bool>(false);
  command.add_flag("--json", *json, help);
  return json;
}

std::string printable(const std::string& name) {
  std::string out;
  for (const char c : name) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20u || byte == 0x7fu) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  return out;
}

}  // namespace mpq::tool

#pragma once
// The subcommands of the program, one file each.

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "mpq/checkpoint.hpp"

namespace mpq::tool {

void add_inspect(CLI::App& app);
void add_verify(CLI::App& app);
void add_convert(CLI::App& app);
void add_quantize(CLI::App& app);
void add_dequantize(CLI::App& app);
void add_run(CLI::App& app);
void add_bench(CLI::App& app);

/// The checkpoint argument that all subcommands have, and the settings that its files may lack.
struct CheckpointArguments {
  std::string directory;
  CheckpointOptions options;

  Checkpoint open() const { return Checkpoint::open(directory, options); }
};

/// Adds DIR and the settings to a subcommand. The result belongs to its callback.
std::shared_ptr<CheckpointArguments> add_checkpoint_arguments(CLI::App& command);

/// --to and -o, which the writers of checkpoints share. Both strings outlive the command's
/// callback.
void add_writer_arguments(CLI::App& command, std::string& format, std::string& output);

/// --json, which is what `help` says. The result belongs to the command's callback.
std::shared_ptr<bool> add_json_flag(CLI::App& command, const std::string& help);

/// `name` for people: control characters escaped.
std::string printable(const std::string& name);

}  // namespace mpq::tool

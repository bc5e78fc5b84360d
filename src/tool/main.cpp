// The mpq program: checkpoints of quantised layers, inspected, verified, made, converted, run,
// timed.

#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <iostream>
#include <new>
#include <string>
#include <system_error>

#include "commands.hpp"
#include "mpq/error.hpp"
#include "mpq/version.hpp"

namespace {

// Stable: scripts rely on them.
constexpr int kInternalError = 1;
constexpr int kUsageError = 2;

int exit_code(mpq::ErrorCode code) {
  switch (code) {
    case mpq::ErrorCode::invalid_argument:
      return kUsageError;
    case mpq::ErrorCode::io_failure:
      return 3;
    case mpq::ErrorCode::invalid_file:
      return 4;
    case mpq::ErrorCode::invalid_weights:
      return 5;
    case mpq::ErrorCode::unsupported:
      return 6;
    case mpq::ErrorCode::device_unavailable:
      return 7;
    case mpq::ErrorCode::device_failure:
      return 8;
    case mpq::ErrorCode::not_prepared:
      break;
  }
  return kInternalError;
}

constexpr auto kFooter =
    "Formats are recognised from the settings files in DIR (quantize_config.json,\n"
    "quant_config.json, quant_strategy.json, config.json) and from the tensors. Read: gptq (v1),\n"
    "gptq_v2, gba, awq, compressed-tensors (pack-quantized), auto-round, hqq (axis 1), mlx "
    "(affine).\n"
    "Written: gptq, gptq_v2, gba, awq, compressed-tensors. Every command has --json.\n\n"
    "Examples:\n"
    "  mpq inspect DIR\n"
    "  mpq verify DIR --device cuda\n"
    "  mpq convert DIR --to compressed-tensors -o OUT --lossless\n"
    "  mpq quantize DENSE --to gptq --method gptq --calibration inputs.safetensors -o OUT\n"
    "  mpq bench DIR --batch 1,8,64 --device cuda\n"
    "  mpq run DIR --layer model.layers.0.mlp.up_proj --input x.safetensors -o y.safetensors\n\n"
    "Exit codes: 0 done; 1 internal error or out of memory; 2 bad arguments; 3 a file cannot be\n"
    "read or written; 4 a file breaks the rules of its format; 5 bad weights (NaN, groups out of\n"
    "range); 6 not supported; 7 no such device; 8 the device failed. Errors are one line on "
    "stderr;\n"
    "an output file appears whole or not at all.";

/// One line, whatever names the message holds.
int report(const std::string& message, int code) {
  std::string line;
  for (const char c : message) line += static_cast<unsigned char>(c) < 0x20u ? ' ' : c;
  fmt::print(stderr, "mpq: error: {}\n", line);
  return code;
}

int run(int argc, char** argv) {
  CLI::App app(
      "Checkpoints of quantised linear layers: inspected, verified, converted, made, run "
      "and\ntimed.",
      "mpq");
  app.footer(kFooter);
  app.set_version_flag("--version", fmt::format("mpq {}.{}.{}", mpq::kVersion.major,
                                                mpq::kVersion.minor, mpq::kVersion.patch));
  app.require_subcommand(1);
  mpq::tool::add_inspect(app);
  mpq::tool::add_verify(app);
  mpq::tool::add_convert(app);
  mpq::tool::add_quantize(app);
  mpq::tool::add_dequantize(app);
  mpq::tool::add_run(app);
  mpq::tool::add_bench(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() != 0) {
      return report(fmt::format("{} (see mpq --help)", error.what()), kUsageError);
    }
    app.exit(error);  // --help, --version
  }
  std::cout.flush();
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0 || !std::cout) {
    return report("standard output cannot be written", exit_code(mpq::ErrorCode::io_failure));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const mpq::Error& error) {
    return report(error.what(), exit_code(error.code()));
  } catch (const std::bad_alloc&) {
    return report("out of memory", kInternalError);
  } catch (const std::system_error& error) {  // fmt::print to a closed or full output
    return report(error.what(), exit_code(mpq::ErrorCode::io_failure));
  } catch (const std::exception& error) {
    return report(error.what(), kInternalError);
  }
}

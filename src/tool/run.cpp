// mpq run: one layer on one input.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

#include "commands.hpp"
#include "device.hpp"
#include "forward.hpp"
#include "mpq/error.hpp"
#include "output.hpp"

namespace mpq::tool {

namespace {

struct RunArguments {
  std::string layer, input, output, device = "auto";
  std::optional<std::string> dtype;
  std::shared_ptr<bool> json;
};

/// The layer that is asked for; without one the only one.
std::string choose_layer(const Checkpoint& checkpoint, const RunArguments& arguments) {
  const auto& layers = checkpoint.layers();
  if (!arguments.layer.empty() || layers.empty()) return arguments.layer;
  if (layers.size() == 1) return layers.front().name;
  throw Error(ErrorCode::invalid_argument,
              fmt::format("there are {} layers: choose one with --layer, as --layer {}",
                          layers.size(), layers.front().name));
}

/// Tensor x of a file.
class Input {
 public:
  explicit Input(const std::string& path) : file_(SafetensorsFile::open(path)) {
    entry_ = file_.find("x");
    if (entry_ == nullptr) {
      throw Error(ErrorCode::invalid_file, fmt::format("{}: there is no tensor \"x\"", path));
    }
    if (entry_->shape.size() != 2) {
      throw Error(ErrorCode::invalid_file,
                  fmt::format("{}: x has {} dimensions, expected 2: batch, in_features", path,
                              entry_->shape.size()));
    }
    if (entry_->type != SafetensorsType::F16 && entry_->type != SafetensorsType::BF16 &&
        entry_->type != SafetensorsType::F32) {
      throw Error(ErrorCode::invalid_file,
                  fmt::format("{}: x has dtype {}, expected F16, BF16 or F32", path,
                              to_string(entry_->type)));
    }
  }

  std::int64_t rows() const { return entry_->shape[0]; }
  std::int64_t cols() const { return entry_->shape[1]; }

  /// Nothing for F32.
  std::optional<DType> dtype() const {
    if (entry_->type == SafetensorsType::F16) return DType::f16;
    if (entry_->type == SafetensorsType::BF16) return DType::bf16;
    return std::nullopt;
  }

  /// The elements, rounded to nearest, ties to even. Throws Error(invalid_argument) for a finite
  /// value that would become infinite.
  std::vector<std::uint16_t> as(DType target) const {
    const auto bytes = file_.bytes(*entry_);
    const std::size_t size = static_cast<std::size_t>(bits_of(entry_->type)) / 8;
    std::vector<std::uint16_t> out(bytes.size() / size);
    for (std::size_t i = 0; i < out.size(); ++i) {
      std::uint16_t half = 0;
      float value = 0;
      if (const auto source = dtype()) {
        std::memcpy(&half, bytes.data() + i * size, size);
        value = to_float(half, *source);
      } else {
        std::memcpy(&value, bytes.data() + i * size, size);
      }
      out[i] = dtype() == target ? half : from_float(value, target);
      if (std::isfinite(value) && !std::isfinite(to_float(out[i], target))) {
        const auto at = static_cast<std::int64_t>(i);
        throw Error(
            ErrorCode::invalid_argument,
            fmt::format("x[{}, {}] is {}, beyond the largest finite {} of {}", at / cols(),
                        at % cols(), value, to_string(target),
                        target == DType::f16 ? f16_to_float(0x7bffu) : bf16_to_float(0x7f7fu)));
      }
    }
    return out;
  }

 private:
  SafetensorsFile file_;
  const SafetensorsEntry* entry_ = nullptr;
};

DType choose_dtype(const RunArguments& arguments, const Input& input, DType scales) {
  if (arguments.dtype) return *arguments.dtype == "f16" ? DType::f16 : DType::bf16;
  return input.dtype().value_or(scales);
}

void run_layer(const CheckpointArguments& where, const RunArguments& arguments) {
  const Device device = parse_device(arguments.device);
  const Checkpoint checkpoint = where.open();
  const std::string name = choose_layer(checkpoint, arguments);
  const LayerInfo& info = checkpoint.layer(name);
  const Input input(arguments.input);
  if (input.cols() != info.in_features) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{}: x is [{}, {}], layer {} has {} input features", arguments.input,
                            input.rows(), input.cols(), name, info.in_features));
  }
  const DType dtype = choose_dtype(arguments, input, info.dtype);
  const std::vector<std::uint16_t> x = input.as(dtype);
  const std::int64_t batch = input.rows();
  const auto run = [&](const auto& weights) {
    try {
      return forward(weights, device, dtype, x, batch);
    } catch (const Error& error) {
      throw Error(error.code(), fmt::format("layer {}: {}", name, error.what()));
    }
  };
  const ForwardResult result =
      info.mixed_bits.empty() ? run(checkpoint.read(name)) : run(checkpoint.read_mixed(name));
  const SafetensorsTensor out{
      .name = "y",
      .type = dtype == DType::f16 ? SafetensorsType::F16 : SafetensorsType::BF16,
      .shape = {batch, info.out_features},
      .bytes = std::as_bytes(std::span(result.y))};
  write_safetensors(arguments.output, {&out, 1});
  if (*arguments.json) {
    print_json({{"layer", name},
                {"bits", info.bits},
                {"in_features", info.in_features},
                {"out_features", info.out_features},
                {"batch", batch},
                {"dtype", to_string(dtype)},
                {"device", to_string(device)},
                {"kernel", result.kernel},
                {"output", arguments.output}});
    return;
  }
  const auto widths = info.mixed_bits.empty() ? std::vector{info.bits} : info.mixed_bits;
  fmt::print("{}: {} bits, {} -> {}, batch {}, {} on {}: {}\n", printable(name),
             fmt::join(widths, "+"), info.in_features, info.out_features, batch, to_string(dtype),
             to_string(device), result.kernel);
}

}  // namespace

void add_run(CLI::App& app) {
  auto* command = app.add_subcommand(
      "run", "Computes y [batch, out] = x weight^T + bias for tensor x [batch, in] of a file");
  const auto checkpoint = add_checkpoint_arguments(*command);
  const auto arguments = std::make_shared<RunArguments>();
  command->add_option("--layer", arguments->layer,
                      "Layer, as inspect lists it; may be left out where there is only one");
  command->add_option("--input", arguments->input, "safetensors file with x: F16, BF16 or F32")
      ->required();
  command->add_option("-o,--output", arguments->output, "safetensors file to write, with y")
      ->required();
  command->add_option("--device", arguments->device, kDeviceHelp)->capture_default_str();
  command
      ->add_option("--dtype", arguments->dtype,
                   "Type of activations and y: f16 or bf16; default: that of x, for an F32 x that "
                   "of the scales")
      ->check(CLI::IsMember({"f16", "bf16"}));
  arguments->json = add_json_flag(*command, "Prints JSON: layer, bits, batch, device, kernel, ...");
  command->callback([checkpoint, arguments] { run_layer(*checkpoint, *arguments); });
}

}  // namespace mpq::tool

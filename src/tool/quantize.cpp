// mpq quantize: dense weights to any format that can be written.

#include "mpq/quantize.hpp"

#include <fmt/format.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <set>

#include "commands.hpp"
#include "device.hpp"
#include "mpq/checkpoint_writer.hpp"
#include "mpq/error.hpp"
#include "output.hpp"

namespace mpq::tool {

namespace {

struct QuantizeArguments {
  std::string directory, output, method = "nearest", calibration, include, scale_dtype;
  std::string device = "auto";
  std::string exclude = "embed|lm_head";
  CheckpointWriterOptions writer;
  GptqOptions options;
  std::shared_ptr<bool> json;
};

/// What became of one layer.
struct LayerReport {
  std::string name;
  double error = 0;                    ///< relative, of the weights
  std::optional<double> output_error;  ///< relative, of the calibration's output
  EncodingLoss loss;                   ///< what the format changed after that
};

bool is_float(SafetensorsType type) {
  return type == SafetensorsType::F16 || type == SafetensorsType::BF16 ||
         type == SafetensorsType::F32;
}

std::vector<float> floats(const SafetensorsTensor& tensor) {
  const auto bytes = tensor.bytes;
  std::vector<float> out(bytes.size() * 8 / static_cast<std::size_t>(bits_of(tensor.type)));
  if (tensor.type == SafetensorsType::F32) {
    if (!out.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
    return out;
  }
  const DType dtype = tensor.type == SafetensorsType::F16 ? DType::f16 : DType::bf16;
  for (std::size_t i = 0; i < out.size(); ++i) {
    std::uint16_t half = 0;
    std::memcpy(&half, bytes.data() + 2 * i, 2);
    out[i] = to_float(half, dtype);
  }
  return out;
}

std::regex parse_pattern(const std::string& option, const std::string& pattern) {
  try {
    return std::regex(pattern);
  } catch (const std::regex_error&) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{} is \"{}\", which is no regular expression", option, pattern));
  }
}

/// Names of the layers, the tensors "LAYER.weight" that are matrices of floats and are chosen.
std::set<std::string> choose_layers(const Checkpoint& checkpoint,
                                    const QuantizeArguments& arguments) {
  constexpr std::string_view kSuffix = ".weight";
  const auto include = parse_pattern("--include", arguments.include);
  const auto exclude = parse_pattern("--exclude", arguments.exclude);
  std::set<std::string> layers;
  for (const auto& name : checkpoint.dense_tensors()) {
    const auto tensor = checkpoint.tensor(name);
    if (!name.ends_with(kSuffix) || tensor.shape.size() != 2 || !is_float(tensor.type)) continue;
    if (!std::regex_search(name, include)) continue;
    if (!arguments.exclude.empty() && std::regex_search(name, exclude)) continue;
    layers.insert(name.substr(0, name.size() - kSuffix.size()));
  }
  if (layers.empty()) {
    throw Error(
        ErrorCode::invalid_file,
        fmt::format("{}: no matrix *.weight of F16, BF16 or F32 is chosen", arguments.directory));
  }
  return layers;
}

/// The calibration inputs of one layer, tensor LAYER [rows, in_features].
Hessian read_hessian(const SafetensorsFile& file, const std::string& layer,
                     std::int64_t in_features) {
  const auto* entry = file.find(layer);
  if (entry == nullptr) {
    throw Error(ErrorCode::invalid_file, fmt::format("{}: there is no tensor \"{}\" with inputs",
                                                     file.path().string(), layer));
  }
  if (!is_float(entry->type) || entry->shape.size() != 2 || entry->shape[1] != in_features) {
    throw Error(ErrorCode::invalid_file,
                fmt::format("{}: tensor \"{}\" is {} [{}], expected floats [rows, {}]",
                            file.path().string(), layer, to_string(entry->type),
                            fmt::join(entry->shape, ", "), in_features));
  }
  Hessian hessian(in_features);
  hessian.add(floats({entry->name, entry->type, entry->shape, file.bytes(*entry)}));
  return hessian;
}

class Quantizer {
 public:
  Quantizer(const Checkpoint& checkpoint, const QuantizeArguments& arguments)
      : checkpoint_(checkpoint), arguments_(arguments), device_(parse_device(arguments.device)) {
    if (!arguments.calibration.empty()) {
      calibration_.emplace(SafetensorsFile::open(arguments.calibration));
    }
  }

  LayerReport run(const std::string& layer, CheckpointWriter& writer) const {
    const auto tensor = checkpoint_.tensor(layer + ".weight");
    const std::int64_t n = tensor.shape[0], k = tensor.shape[1];
    const std::vector<float> weight = floats(tensor);
    GptqOptions options = arguments_.options;
    options.scale_dtype = arguments_.scale_dtype == "bf16"       ? DType::bf16
                          : arguments_.scale_dtype == "f16"      ? DType::f16
                          : tensor.type == SafetensorsType::BF16 ? DType::bf16
                                                                 : DType::f16;
    std::optional<Hessian> hessian;
    if (calibration_) hessian = read_hessian(*calibration_, layer, k);
    AnyQuantizedWeights weights = arguments_.method == "gptq"
                                      ? quantize_gptq(weight, n, k, *hessian, options)
                                      : quantize(weight, n, k, options, device_);
    LayerReport report;
    report.name = layer;
    report.error = relative_error(weight, weights);
    if (hessian) report.output_error = relative_output_error(weight, weights, *hessian);
    if (const auto name = bias_name(layer); has(name)) {
      data_of(weights).bias = floats(checkpoint_.tensor(name));
    }
    report.loss = writer.add(layer, weights);
    return report;
  }

  static std::string bias_name(const std::string& layer) { return layer + ".bias"; }

 private:
  bool has(const std::string& name) const {
    return std::ranges::binary_search(checkpoint_.dense_tensors(), name);
  }

  const Checkpoint& checkpoint_;
  const QuantizeArguments& arguments_;
  Device device_;
  std::optional<SafetensorsFile> calibration_;
};

void print_report(const QuantizeArguments& arguments, const std::vector<LayerReport>& reports,
                  std::size_t others) {
  if (*arguments.json) {
    auto layers = nlohmann::ordered_json::array();
    for (const auto& each : reports) {
      nlohmann::ordered_json layer{{"name", each.name}, {"relative_error", each.error}};
      if (each.output_error) layer["relative_output_error"] = *each.output_error;
      if (each.loss.max_error != 0) layer["format_max_error"] = each.loss.max_error;
      layers.push_back(std::move(layer));
    }
    print_json({{"output", arguments.output},
                {"format", arguments.writer.format},
                {"method", arguments.method},
                {"layers", std::move(layers)},
                {"dense_tensors", others}});
    return;
  }
  for (const auto& each : reports) {
    fmt::print("{}: relative error {:.5f}", printable(each.name), each.error);
    if (each.output_error) fmt::print(", of the output {:.5f}", *each.output_error);
    if (each.loss.max_error != 0) {
      fmt::print(", and {} changed weights by up to {:.3g}", arguments.writer.format,
                 each.loss.max_error);
    }
    fmt::print("\n");
  }
  fmt::print("{} layers quantised, {} tensors kept, to {}\n", reports.size(), others,
             printable(arguments.output));
}

void check_arguments(const QuantizeArguments& arguments) {
  if (arguments.method == "gptq" && arguments.calibration.empty()) {
    throw Error(ErrorCode::invalid_argument, "--method gptq needs --calibration");
  }
  if (arguments.method != "gptq" && arguments.options.act_order) {
    throw Error(ErrorCode::invalid_argument, "--act-order needs --method gptq");
  }
  if (arguments.method == "gptq" && arguments.device != "auto" &&
      parse_device(arguments.device).is_cuda()) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("--device is {}, --method gptq runs on the CPU", arguments.device));
  }
}

void quantize_all(QuantizeArguments& arguments) {
  check_arguments(arguments);
  if (arguments.method == "hqq") {
    arguments.options.method = QuantizeMethod::half_quadratic;
    arguments.options.float_zeros = arguments.writer.format == "gba";
  }
  const Checkpoint checkpoint = Checkpoint::open(arguments.directory);
  const auto layers = choose_layers(checkpoint, arguments);
  const Quantizer quantizer(checkpoint, arguments);
  arguments.writer.base = arguments.directory;
  CheckpointWriter writer(arguments.output, arguments.writer);
  std::vector<LayerReport> reports;
  std::set<std::string> used;
  {
    ProgressBar bar(layers.size());
    for (const auto& layer : layers) {
      bar.show(reports.size(), layer);
      try {
        reports.push_back(quantizer.run(layer, writer));
      } catch (const Error& error) {
        throw Error(error.code(), fmt::format("{}: {}", layer, error.what()));
      }
      used.insert({layer + ".weight", Quantizer::bias_name(layer)});
    }
    for (const auto& name : checkpoint.dense_tensors()) {
      if (!used.contains(name)) writer.add_tensor(checkpoint.tensor(name));
    }
    writer.finish();
  }
  std::size_t others = 0;
  for (const auto& name : checkpoint.dense_tensors()) others += used.contains(name) ? 0u : 1u;
  print_report(arguments, reports, others);
}

}  // namespace

void add_quantize(CLI::App& app) {
  auto* command = app.add_subcommand(
      "quantize", "Quantises the matrices *.weight of a dense model and tells each layer's error");
  const auto arguments = std::make_shared<QuantizeArguments>();
  auto& options = arguments->options;
  command->add_option("DIR", arguments->directory, "Directory of the dense model")->required();
  add_writer_arguments(*command, arguments->writer.format, arguments->output);
  command->add_option("--bits", options.bits, "Bits of a weight: 1, 2, 4 or 8")
      ->capture_default_str();
  command
      ->add_option("--group-size", options.group_size,
                   "Input features that share a scale; -1: all of them")
      ->capture_default_str();
  command->add_flag("--symmetric", options.symmetric, "Zeros are all 2^(bits-1)");
  command
      ->add_option(
          "--method", arguments->method,
          "nearest: round to nearest; hqq: with half-quadratic optimisation of the zeros;\n"
          "gptq: errors made up for, as calibration inputs tell")
      ->check(CLI::IsMember({"nearest", "hqq", "gptq"}))
      ->capture_default_str();
  command->add_option("--calibration", arguments->calibration,
                      "safetensors file with the inputs of each layer: tensor LAYER [rows, in] of\n"
                      "F16, BF16 or F32. Also tells the error of the output, for every method");
  command->add_flag("--act-order", options.act_order,
                    "gptq: input features in the order of falling energy (desc_act)");
  command->add_flag("--static-groups", options.static_groups,
                    "gptq: with --act-order, groups stay as they are, so that no g_idx is needed");
  command->add_option("--damping", options.damping, "gptq: share of the mean energy added to all")
      ->capture_default_str();
  command
      ->add_option("--scale-dtype", arguments->scale_dtype,
                   "Type of the scales; default: the weight's, for F32 f16")
      ->check(CLI::IsMember({"f16", "bf16"}));
  command
      ->add_option("--device", arguments->device,
                   fmt::format("{}; gptq: the CPU always", kDeviceHelp))
      ->capture_default_str();
  command->add_option("--include", arguments->include,
                      "Regular expression that names of tensors must match somewhere");
  command
      ->add_option("--exclude", arguments->exclude,
                   "Regular expression of names of tensors that stay dense")
      ->capture_default_str();
  arguments->json =
      add_json_flag(*command, "Prints JSON: output, format, method, layers with errors");
  command->callback([arguments] { quantize_all(*arguments); });
}

}  // namespace mpq::tool

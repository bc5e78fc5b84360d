// mpq verify: every rule that a checkpoint can break, checked; every layer decoded and run.

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "commands.hpp"
#include "device.hpp"
#include "expected.hpp"
#include "forward.hpp"
#include "mpq/error.hpp"
#include "mpq/pack.hpp"
#include "output.hpp"

namespace mpq::tool {

namespace {

constexpr std::int64_t kRows = 3;

/// One layer's result. Errors are shares of their bound, so that 1 is the limit.
struct Verdict {
  std::string layer, note;
  std::optional<Error> problem;
  double cpu_share = 0, device_share = 0;
};

Verdict verify_layer(const Checkpoint& checkpoint, const LayerInfo& info, Device device) {
  Verdict verdict{.layer = info.name, .note = info.note, .problem = {}};
  try {
    const auto x = make_input(kRows, info.in_features, info.dtype);
    const auto run = [&](const auto& weights, const Expected& expected) {
      const auto share = [&](Device where) {
        return expected.largest_share(forward(weights, where, info.dtype, x, kRows).y,
                                      where.is_cuda());
      };
      verdict.cpu_share = share(Device::cpu());
      if (device.is_cuda()) verdict.device_share = share(device);
    };
    if (!info.mixed_bits.empty()) {
      const MixedWeights weights = checkpoint.read_mixed(info.name);
      run(weights, Expected(weights, dequantize(weights), x, info.dtype));
    } else {
      const AnyQuantizedWeights weights = checkpoint.read(info.name);
      check_values(data_of(weights), info.bits);
      run(weights, Expected(data_of(weights), dequantize(weights), x, info.dtype));
    }
    for (const auto& [where, value] :
         {std::pair{Device::cpu(), verdict.cpu_share}, std::pair{device, verdict.device_share}}) {
      if (value <= 1) continue;
      throw Error(
          ErrorCode::device_failure,
          fmt::format("y on {} is {:.3g} times the allowed error off", to_string(where), value));
    }
  } catch (const Error& error) {
    verdict.problem = error;
  }
  return verdict;
}

void report_json(const std::string& directory, const std::vector<Verdict>& verdicts, Device device,
                 bool good) {
  auto layers = nlohmann::ordered_json::array();
  for (const auto& each : verdicts) {
    nlohmann::ordered_json layer{{"name", each.layer}, {"ok", !each.problem.has_value()}};
    if (each.problem) {
      layer["code"] = to_string(each.problem->code());
      layer["problem"] = each.problem->what();
    } else {
      layer["cpu_error"] = each.cpu_share;
      if (device.is_cuda()) layer["device_error"] = each.device_share;
    }
    if (!each.note.empty()) layer["note"] = each.note;
    layers.push_back(std::move(layer));
  }
  print_json({{"directory", directory},
              {"ok", good},
              {"device", to_string(device)},
              {"layers", std::move(layers)}});
}

void report_text(const std::vector<Verdict>& verdicts, Device device) {
  for (const auto& each : verdicts) {
    if (!each.note.empty()) fmt::print("note: {}: {}\n", printable(each.layer), each.note);
    if (each.problem) {
      fmt::print("BAD   {}: {}\n", printable(each.layer), printable(each.problem->what()));
    } else if (device.is_cuda()) {
      fmt::print("good  {}: cpu {:.0f}%, {} {:.0f}% of the allowed error\n", printable(each.layer),
                 100 * each.cpu_share, to_string(device), 100 * each.device_share);
    } else {
      fmt::print("good  {}: cpu {:.0f}% of the allowed error\n", printable(each.layer),
                 100 * each.cpu_share);
    }
  }
}

void verify(const CheckpointArguments& arguments, const std::string& device_name, bool json) {
  const Device device = parse_device(device_name);
  const Checkpoint checkpoint = arguments.open();  // headers, settings, shapes, index
  std::vector<Verdict> verdicts;
  {
    ProgressBar bar(checkpoint.layers().size());
    for (const auto& info : checkpoint.layers()) {
      bar.show(verdicts.size(), info.name);
      verdicts.push_back(verify_layer(checkpoint, info, device));
    }
  }
  const auto is_bad = [](const Verdict& verdict) { return verdict.problem.has_value(); };
  const auto bad = std::ranges::find_if(verdicts, is_bad);
  if (json) {
    report_json(arguments.directory, verdicts, device, bad == verdicts.end());
  } else {
    report_text(verdicts, device);
  }
  if (bad != verdicts.end()) {
    const auto count = std::ranges::count_if(verdicts, is_bad);
    throw Error(bad->problem->code(), fmt::format("{} of {} layers are bad, the first: {}", count,
                                                  verdicts.size(), bad->problem->what()));
  }
  if (!json) {
    fmt::print("{} layers and {} other tensors are good\n", verdicts.size(),
               checkpoint.dense_tensors().size());
  }
}

}  // namespace

void add_verify(CLI::App& app) {
  auto* command = app.add_subcommand(
      "verify",
      "Checks all rules of the files, decodes every layer, and compares its product with a\n"
      "random input on the CPU, and on a GPU if there is one, with float64");
  const auto arguments = add_checkpoint_arguments(*command);
  const auto device = std::make_shared<std::string>("auto");
  command->add_option("--device", *device, kDeviceHelp)->capture_default_str();
  const auto json = add_json_flag(
      *command, "Prints JSON: directory, ok, device, layers with ok, errors, problem");
  command->callback([arguments, device, json] { verify(*arguments, *device, *json); });
}

}  // namespace mpq::tool

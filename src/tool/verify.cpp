// mpq verify: every rule that a checkpoint can break, checked; every layer decoded and run.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "commands.hpp"
#include "device.hpp"
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

/// x [kRows, K] in [-1, 1), the same each time, rounded to `dtype`.
std::vector<std::uint16_t> make_input(std::int64_t k, DType dtype) {
  std::vector<std::uint16_t> x(static_cast<std::size_t>(kRows * k));
  std::uint32_t state = 12345;
  for (auto& value : x) {
    state = state * 1664525u + 1013904223u;
    value = from_float(static_cast<float>(static_cast<std::int32_t>(state)) * 0x1p-31f, dtype);
  }
  return x;
}

/// y = x w^T + bias in float64 and the sums of magnitudes, [kRows, N].
struct Expected {
  std::vector<double> y, magnitude;

  /// `Weights` are WeightsData or MixedWeights.
  template <class Weights>
  Expected(const Weights& data, const std::vector<float>& dense,
           const std::vector<std::uint16_t>& x, DType dtype) {
    const auto n = static_cast<std::size_t>(data.out_features);
    const auto k = static_cast<std::size_t>(data.in_features);
    std::vector<double> values(x.size());
    std::ranges::transform(x, values.begin(), [&](auto bits) { return to_float(bits, dtype); });
    for (std::size_t row = 0; row < static_cast<std::size_t>(kRows); ++row) {
      for (std::size_t channel = 0; channel < n; ++channel) {
        double sum = data.bias.empty() ? 0 : data.bias[channel], size = std::abs(sum);
        for (std::size_t i = 0; i < k; ++i) {
          const double product = values[row * k + i] * double{dense[channel * k + i]};
          sum += product;
          size += std::abs(product);
        }
        y.push_back(sum);
        magnitude.push_back(size);
      }
    }
  }
};

/// Half the distance between 16-bit floats around `value`.
double half_ulp(double value, DType dtype) {
  const int digits = dtype == DType::f16 ? 11 : 8, least = dtype == DType::f16 ? -14 : -126;
  const int exponent = value == 0 ? least : std::max(std::ilogb(value), least);
  return std::ldexp(0.5, exponent - digits + 1);
}

/// The largest |y - expected| as a share of its bound: float32 accumulation, one rounding of y, and
/// where the device has tensor cores one of each weight.
double largest_share(const std::vector<std::uint16_t>& y, const Expected& expected, DType dtype,
                     std::int64_t k, bool weights_rounded, bool mixed) {
  const double largest = dtype == DType::f16 ? 65504.0 : 0x1.fep127;
  double share = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    const double value = to_float(y[i], dtype), reference = expected.y[i];
    double bound = expected.magnitude[i] * 0x1p-17 + half_ulp(reference, dtype);
    if (weights_rounded) {
      bound += expected.magnitude[i] * (dtype == DType::f16 ? 0x1p-11 : 0x1p-8);
      if (dtype == DType::f16) bound += static_cast<double>(k) * 0x1p-25;  // subnormal weights
    }
    // Of pieces each is rounded to 16 bits, and so is x times channel_scale.
    if (mixed) bound += expected.magnitude[i] * (dtype == DType::f16 ? 0x1p-10 : 0x1p-7);
    if (std::isinf(value) && std::abs(reference) + bound >= largest) continue;
    const double each = std::abs(value - reference) / bound;
    if (!(each <= share)) share = std::isnan(each) ? HUGE_VAL : each;
  }
  return share;
}

Verdict verify_layer(const Checkpoint& checkpoint, const LayerInfo& info, Device device) {
  Verdict verdict{.layer = info.name, .note = info.note, .problem = {}};
  try {
    const auto x = make_input(info.in_features, info.dtype);
    const bool mixed = !info.mixed_bits.empty();
    const auto run = [&](const auto& weights, const Expected& expected) {
      const auto share = [&](Device where) {
        return largest_share(forward(weights, where, info.dtype, x, kRows).y, expected, info.dtype,
                             info.in_features, where.is_cuda(), mixed);
      };
      verdict.cpu_share = share(Device::cpu());
      if (device.is_cuda()) verdict.device_share = share(device);
    };
    if (mixed) {
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

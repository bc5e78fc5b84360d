// mpq bench: how long a checkpoint's layers take on a device.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <tuple>

#include "commands.hpp"
#include "device.hpp"
#include "expected.hpp"
#include "mpq/error.hpp"
#include "mpq/model.hpp"
#include "mpq/pack.hpp"
#include "output.hpp"

namespace mpq::tool {

namespace {

struct BenchArguments {
  std::string layer, device = "auto";
  std::vector<std::int64_t> batches{1, 8, 64};
  std::shared_ptr<bool> json;
};

/// A layer and how many of the checkpoint are like it.
struct Kind {
  LayerInfo info;
  int count = 1;
};

struct Row {
  const Kind* kind;
  std::int64_t batch;
  double us, gb_per_s, error_share;
  std::string kernel;
};

bool alike(const LayerInfo& a, const LayerInfo& b) {
  const auto key = [](const LayerInfo& layer) {
    return std::tie(layer.bits, layer.in_features, layer.out_features, layer.group_size,
                    layer.zero_kind, layer.dtype, layer.act_order, layer.bias);
  };
  return key(a) == key(b);
}

std::vector<Kind> kinds_of(const Checkpoint& checkpoint, const std::string& chosen) {
  std::vector<Kind> kinds;
  const std::string only = chosen.empty() ? chosen : checkpoint.layer(chosen).name;
  for (const LayerInfo& info : checkpoint.layers()) {
    if (!only.empty() && info.name != only) continue;
    if (!info.mixed_bits.empty()) {
      if (only.empty()) continue;
      throw Error(ErrorCode::unsupported,
                  fmt::format("{}: layers of several widths are not timed", info.name));
    }
    const auto same =
        std::ranges::find_if(kinds, [&](const Kind& kind) { return alike(kind.info, info); });
    if (same == kinds.end()) {
      kinds.push_back({info});
    } else {
      ++same->count;
    }
  }
  if (kinds.empty()) {
    throw Error(ErrorCode::invalid_file, "there is no quantised layer of one width to time");
  }
  return kinds;
}

/// Copies of one layer on the device, so many that none is in a cache when its turn comes.
class Layers {
 public:
  Layers(const AnyQuantizedWeights& weights, Device device, DType dtype) {
    constexpr std::int64_t kCpuCacheBytes = 256 << 20;
    const WeightsData& data = data_of(weights);
    const auto bytes = static_cast<std::int64_t>(data.qweight.size() * sizeof(std::uint32_t));
    const std::int64_t cache = device.is_cuda() ? 2 * traits_of(device).l2_bytes : kCpuCacheBytes;
    const std::int64_t copies = std::clamp<std::int64_t>(ceil_div(cache, bytes), 2, 1000);
    for (std::int64_t i = 0; i < copies; ++i) {
      layers_.emplace_back(weights, device, dtype);
      if (i == 0) layers_.front().check_parameters();
      layers_.back().prepare_params();
    }
  }
  const AnyLinear& first() const { return layers_.front(); }
  const AnyLinear& next() { return layers_[next_++ % layers_.size()]; }

 private:
  std::vector<AnyLinear> layers_;
  std::size_t next_ = 0;
};

/// Seconds of one call: rounds of calls back to back, the median round.
template <class Call>
double seconds_of(const Call& call, Device device) {
  using Clock = std::chrono::steady_clock;
  constexpr double kRoundSeconds = 0.02;
  constexpr int kRounds = 7;
  const auto round = [&](int calls) {
    const auto begin = Clock::now();
    for (int i = 0; i < calls; ++i) call();
    if (device.is_cuda()) StreamRef().synchronize(device);
    return std::chrono::duration<double>(Clock::now() - begin).count();
  };
  round(3);  // the clocks go up
  const int calls =
      std::clamp(static_cast<int>(kRoundSeconds / std::max(round(3) / 3, 1e-7)), 3, 100'000);
  std::vector<double> rounds;
  for (int i = 0; i < kRounds; ++i) rounds.push_back(round(calls) / calls);
  std::ranges::nth_element(rounds, rounds.begin() + kRounds / 2);
  return rounds[kRounds / 2];
}

/// Runs every batch once and compares it with float64, then times it.
void bench_kind(const Checkpoint& checkpoint, const Kind& kind, Device device,
                const std::vector<std::int64_t>& batches, std::vector<Row>& rows) {
  const LayerInfo& info = kind.info;
  const AnyQuantizedWeights weights = checkpoint.read(info.name);
  const std::int64_t k = info.in_features, n = info.out_features;
  const std::int64_t most = std::ranges::max(batches);
  const auto x = make_input(most, k, info.dtype);
  constexpr std::int64_t kCheckedRows = 8;
  const auto checked = static_cast<std::ptrdiff_t>(std::min(most, kCheckedRows) * k);
  const Expected expected(data_of(weights), dequantize(weights), {x.begin(), x.begin() + checked},
                          info.dtype);

  Layers layers(weights, device, info.dtype);
  DeviceBuffer x_device(device, 2 * x.size());
  x_device.copy_from_host(x.data(), 2 * x.size());
  DeviceBuffer y_device(device, static_cast<std::size_t>(2 * most * n));
  const DeviceBuffer workspace(device, layers.first().workspace_bytes(most));
  for (const std::int64_t batch : batches) {
    const auto call = [&] {
      layers.next().forward({x_device.data(), info.dtype, batch, k},
                            {y_device.data(), info.dtype, batch, n}, workspace);
    };
    call();
    std::vector<std::uint16_t> y(static_cast<std::size_t>(batch * n));
    y_device.copy_to_host(y.data(), 2 * y.size());
    const double share = expected.largest_share(y, device.is_cuda());
    if (!(share <= 1)) {
      throw Error(ErrorCode::device_failure,
                  fmt::format("{}, batch {}: y on {} is {:.3g} times the allowed error off",
                              info.name, batch, to_string(device), share));
    }
    const double seconds = seconds_of(call, device);
    const double bytes = static_cast<double>(data_of(weights).qweight.size() * 4);
    rows.push_back({.kind = &kind,
                    .batch = batch,
                    .us = seconds * 1e6,
                    .gb_per_s = bytes / seconds * 1e-9,
                    .error_share = share,
                    .kernel = layers.first().describe(batch)});
  }
}

void report_json(const std::string& directory, Device device, const std::vector<Row>& rows) {
  auto list = nlohmann::ordered_json::array();
  for (const Row& row : rows) {
    const LayerInfo& info = row.kind->info;
    list.push_back({{"layer", info.name},
                    {"count", row.kind->count},
                    {"bits", info.bits},
                    {"in", info.in_features},
                    {"out", info.out_features},
                    {"group", info.group_size},
                    {"dtype", to_string(info.dtype)},
                    {"batch", row.batch},
                    {"us", row.us},
                    {"gb_per_s", row.gb_per_s},
                    {"error", row.error_share},
                    {"kernel", row.kernel}});
  }
  print_json({{"directory", directory},
              {"device", to_string(device)},
              {"name", name_of(device)},
              {"rows", std::move(list)}});
}

void report_text(Device device, const std::vector<std::int64_t>& batches,
                 const std::vector<Row>& rows) {
  fmt::print("{} ({}); times of single calls, weights not in cache, every result checked\n",
             to_string(device), name_of(device));
  fmt::print("{:>5} {:>4} {:>16} {:>6} {:>6} {:>11} {:>9}  {}\n", "count", "bits", "in -> out",
             "group", "batch", "us", "GB/s", "layer: kernel");
  for (const Row& row : rows) {
    const LayerInfo& info = row.kind->info;
    fmt::print("{:>5} {:>4} {:>16} {:>6} {:>6} {:>11.2f} {:>9.1f}  {}: {}\n", row.kind->count,
               info.bits, fmt::format("{} -> {}", info.in_features, info.out_features),
               info.group_size, row.batch, row.us, row.gb_per_s, printable(info.name), row.kernel);
  }
  for (const std::int64_t batch : batches) {
    double us = 0;
    for (const Row& row : rows) us += row.batch == batch ? row.us * row.kind->count : 0;
    fmt::print("all layers, batch {}: {:.1f} us\n", batch, us);
  }
}

void bench(const CheckpointArguments& from, const BenchArguments& arguments) {
  const Device device = parse_device(arguments.device);
  const Checkpoint checkpoint = from.open();
  const std::vector<Kind> kinds = kinds_of(checkpoint, arguments.layer);
  std::vector<Row> rows;
  {
    ProgressBar bar(kinds.size());
    std::size_t done = 0;
    for (const Kind& kind : kinds) {
      bar.show(done++, kind.info.name);
      bench_kind(checkpoint, kind, device, arguments.batches, rows);
    }
  }
  if (*arguments.json) {
    report_json(from.directory, device, rows);
  } else {
    report_text(device, arguments.batches, rows);
  }
}

}  // namespace

void add_bench(CLI::App& app) {
  auto* command = app.add_subcommand(
      "bench",
      "Times the checkpoint's layers, one of each kind: single calls back to back, with so many\n"
      "copies of the weights that caches do not help. Every result is compared with float64\n"
      "first. What the device could do at best: mpq_bench");
  const auto checkpoint = add_checkpoint_arguments(*command);
  const auto arguments = std::make_shared<BenchArguments>();
  command->add_option("--layer", arguments->layer, "Only this layer");
  command->add_option("--batch", arguments->batches, "Rows of x, as 1,8,64")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  command->add_option("--device", arguments->device, kDeviceHelp)->capture_default_str();
  arguments->json = add_json_flag(
      *command, "Prints JSON: directory, device, name, rows with us, gb_per_s, error");
  command->callback([checkpoint, arguments] { bench(*checkpoint, *arguments); });
}

}  // namespace mpq::tool

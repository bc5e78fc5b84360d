// mpq_load_bench: how fast QuantizedModel brings a checkpoint to a device, against what reading the
// file and copying to the device allow. Without a directory it makes one of synthetic layers.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "mpq/checkpoint_writer.hpp"
#include "mpq/error.hpp"
#include "mpq/quantized_model.hpp"

namespace {

using namespace mpq;
using Clock = std::chrono::steady_clock;

struct Options {
  std::string directory;
  int layers = 16, bits = 4, group_size = 128, threads = 0, repeats = 3;
  std::int64_t in_features = 8192, out_features = 8192;
  std::uint64_t host_megabytes = 4000;
  bool cuda = Device::cuda_count() > 0;
};

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// Layers of one random content but for a word, so that no two are tied.
void make_model(const std::filesystem::path& directory, const Options& options) {
  WeightsData data;
  data.in_features = options.in_features;
  data.out_features = options.out_features;
  data.group_size = options.group_size;
  data.zero_kind = ZeroKind::integer;
  const auto statistics = static_cast<std::size_t>(data.groups() * data.out_features);
  data.qweight.resize(
      static_cast<std::size_t>(ceil_div(data.in_features * options.bits, 32) * data.out_features));
  std::mt19937 random(1);
  for (auto& word : data.qweight) word = static_cast<std::uint32_t>(random());
  data.scales.assign(statistics, float_to_f16(0.01f));
  data.zeros.assign(statistics, static_cast<std::uint16_t>(1 << (options.bits - 1)));
  data.zeros[0] = 1;
  auto weights = make_quantized_weights(options.bits, std::move(data));
  CheckpointWriterOptions writer_options;
  CheckpointWriter writer(directory, writer_options);
  for (int i = 0; i < options.layers; ++i) {
    data_of(weights).qweight[0] = static_cast<std::uint32_t>(i);
    writer.add(fmt::format("model.layers.{}.proj", i), weights);
  }
  writer.finish();
}

/// The best of some repeats.
template <class Work>
double best_seconds(int repeats, const Work& work) {
  double best = 0;
  for (int i = 0; i < repeats; ++i) {
    const auto begin = Clock::now();
    work();
    const double seconds = seconds_since(begin);
    if (i == 0 || seconds < best) best = seconds;
  }
  return best;
}

/// Bytes a second of reading the whole files, as a program that does nothing else would.
double read_rate(const std::filesystem::path& directory, int repeats) {
  std::uint64_t bytes = 0;
  std::vector<char> buffer(16 << 20);
  const double seconds = best_seconds(repeats, [&] {
    bytes = 0;
    for (const auto& file : std::filesystem::directory_iterator(directory)) {
      if (file.path().extension() != ".safetensors") continue;
      std::FILE* in = std::fopen(file.path().c_str(), "rb");
      if (in == nullptr) throw Error(ErrorCode::io_failure, file.path().string());
      while (const auto got = std::fread(buffer.data(), 1, buffer.size(), in)) bytes += got;
      std::fclose(in);
    }
  });
  return static_cast<double>(bytes) / seconds;
}

/// Bytes a second from host memory to the device.
double copy_rate(Device device, int repeats) {
  const std::vector<char> source(256 << 20, 1);
  DeviceBuffer target(device, source.size());
  const double seconds =
      best_seconds(repeats + 1, [&] { target.copy_from_host(source.data(), source.size()); });
  return static_cast<double>(source.size()) / seconds;
}

void run(const Options& options) {
  const Device device = options.cuda ? Device::cuda() : Device::cpu();
  std::filesystem::path directory = options.directory;
  const bool own = options.directory.empty();
  if (own) {
    directory = std::filesystem::temp_directory_path() /
                fmt::format("mpq-load-bench-{}", Clock::now().time_since_epoch().count());
    make_model(directory, options);
  }
  const Checkpoint checkpoint = Checkpoint::open(directory);
  std::uint64_t bytes = 0;
  for (const auto& layer : checkpoint.layers()) bytes += layer.bytes;
  ModelOptions model_options;
  model_options.threads = options.threads;
  model_options.max_host_bytes = options.host_megabytes * 1'000'000;
  const double seconds = best_seconds(
      options.repeats, [&] { QuantizedModel::load(checkpoint, device, model_options); });
  const double rate = static_cast<double>(bytes) / seconds;
  const double reads = read_rate(directory, options.repeats);
  const double copies = copy_rate(device, options.repeats);
  fmt::print("{} layers, {:.3f} GB to {} ({}): {:.3f} s, {:.2f} GB/s\n", checkpoint.layers().size(),
             static_cast<double>(bytes) * 1e-9, to_string(device), name_of(device), seconds,
             rate * 1e-9);
  fmt::print(
      "reading the files {:.2f} GB/s, copying to the device {:.2f} GB/s: {:.2f} of the limit\n",
      reads * 1e-9, copies * 1e-9, rate / std::min(reads, copies));
  fmt::print("host memory told in advance {:.3f} GB\n",
             static_cast<double>(QuantizedModel::host_bytes(checkpoint, model_options)) * 1e-9);
  if (own) std::filesystem::remove_all(directory);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Loading a checkpoint to a device, against the disk and the bus.", "mpq_load_bench");
  Options options;
  app.add_option("DIR", options.directory, "Checkpoint; default: synthetic layers");
  app.add_option("--layers", options.layers, "Synthetic layers")->capture_default_str();
  app.add_option("--bits", options.bits, "Of synthetic layers")->capture_default_str();
  app.add_option("--in-features", options.in_features)->capture_default_str();
  app.add_option("--out-features", options.out_features)->capture_default_str();
  app.add_option("--threads", options.threads, "0: one for each core")->capture_default_str();
  app.add_option("--host-mb", options.host_megabytes, "Host memory")->capture_default_str();
  app.add_option("--repeats", options.repeats, "The best counts")->capture_default_str();
  app.add_flag_callback(
      "--cpu", [&] { options.cuda = false; }, "Load to the CPU");
  CLI11_PARSE(app, argc, argv);
  try {
    run(options);
  } catch (const Error& error) {
    fmt::print(stderr, "mpq_load_bench: {}\n", error.what());
    return 1;
  }
  return 0;
}

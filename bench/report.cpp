#include "report.hpp"

#include <cublas_v2.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

namespace mpq::bench {
namespace {

// Rows that share all but shape and batch make up a block of the table.
bool same_block(const Case& a, const Case& b) {
  LayerSpec x = a.layer, y = b.layer;
  x.shape = y.shape = {};
  return x == y && a.mode == b.mode;
}

std::string block_title(const Case& c) {
  return fmt::format("w{} {} {} g{} {}", c.layer.bits, mpq::to_string(c.layer.dtype),
                     to_string(c.layer.zeros), c.layer.group_size, to_string(c.mode));
}

std::vector<Case> blocks_of(const std::vector<Row>& rows) {
  std::vector<Case> blocks;
  for (const Row& row : rows) {
    const auto same = [&](const Case& block) { return same_block(block, row.what); };
    if (std::none_of(blocks.begin(), blocks.end(), same)) blocks.push_back(row.what);
  }
  return blocks;
}

std::string shape_text(const Shape& shape) {
  return fmt::format("{}x{}", shape.n, shape.k);
}

// A number in so many columns, or a dash where there is none.
std::string cell(double value, int width, int decimals) {
  return std::isfinite(value) ? fmt::format("{:{}.{}f}", value, width, decimals)
                              : fmt::format("{:>{}}", "-", width);
}

void print_rows(const Case& block, const std::vector<Row>& rows) {
  // A long table is read for its numbers; what ran is in the JSON.
  constexpr std::size_t kRowsWithKernel = 64;
  const bool kernels = rows.size() <= kRowsWithKernel;
  fmt::print("\n{}\n{:>14} {:>5} {:>9} {:>14} {:>6} {:>8} {:>6}  {}\n", block_title(block), "N x K",
             "M", "us", "rate", "share", "x cuBLAS", "error", kernels ? "kernel" : "");
  for (const Row& row : rows) {
    if (!same_block(block, row.what)) continue;
    const std::string place =
        fmt::format("{:>14} {:>5}", shape_text(row.what.layer.shape), row.what.m);
    if (row.failed()) {
      fmt::print("{} FAILED: {}\n", place, row.failure);
      continue;
    }
    const std::string rate = row.read_limited ? fmt::format("{:.2f} TB/s", row.tb_per_s())
                                              : fmt::format("{:.0f} TFLOP/s", row.tflops());
    fmt::print("{} {:9.2f} {:>14} {:6.2f} {} {:6.2f}  {}\n", place, row.us, rate, row.share(),
               cell(row.ratio_cublas(), 8, 2), row.max_error, kernels ? row.kernel : "");
  }
}

// exp(mean(log(value(row)))) over the shapes of a block at one batch; NaN if there is none.
template <class Value>
double geometric_mean(const Case& block, std::int64_t m, const std::vector<Row>& rows,
                      const Value& value) {
  double sum = 0;
  int count = 0;
  for (const Row& row : rows) {
    if (!same_block(block, row.what) || row.what.m != m || row.failed()) continue;
    sum += std::log(value(row));
    ++count;
  }
  return count == 0 ? Row::kNone : std::exp(sum / count);
}

template <class Value>
void print_means(const char* title, const Options& options, const std::vector<Row>& rows,
                 const Value& value) {
  fmt::print("\n{}, geometric mean over {} shapes\n{:28}", title, options.shapes.size(), "M");
  for (const std::int64_t m : options.batches) fmt::print(" {:>6}", m);
  fmt::print("\n");
  for (const Case& block : blocks_of(rows)) {
    fmt::print("{:28}", block_title(block));
    for (const std::int64_t m : options.batches) {
      fmt::print(" {}", cell(geometric_mean(block, m, rows, value), 6, 2));
    }
    fmt::print("\n");
  }
}

void print_layers(const Model& model, const std::vector<LayerSum>& layers) {
  fmt::print("\n{}, the {} linears of a layer, summed\n", model.name, std::size(model.linears));
  for (const LayerSum& sum : layers) {
    fmt::print("{:28} M {:>5} {:9.2f} us {:6.2f} TB/s  share {:.2f}  x cuBLAS {}\n",
               block_title(sum.what), sum.what.m, sum.us, sum.bytes / sum.us * 1e-6,
               sum.limit_us / sum.us, cell(sum.cublas_us / sum.us, 4, 2));
  }
}

void print_host(const std::vector<HostRow>& rows) {
  fmt::print("\nbringing a layer into place\n");
  for (const HostRow& row : rows) {
    fmt::print("w{} {:>14} {:20} {:9.2f} ms {:8.2f} GB/s\n", row.layer.bits,
               shape_text(row.layer.shape), row.stage, row.ms, row.gb_per_s());
  }
}

using Json = nlohmann::ordered_json;

Json spec_json(const LayerSpec& spec) {
  return {{"bits", spec.bits},
          {"dtype", mpq::to_string(spec.dtype)},
          {"zeros", to_string(spec.zeros)},
          {"group", spec.group_size},
          {"N", spec.shape.n},
          {"K", spec.shape.k}};
}

// nlohmann writes NaN as null.
Json row_json(const Row& row) {
  Json json = spec_json(row.what.layer);
  json["M"] = row.what.m;
  json["mode"] = to_string(row.what.mode);
  json["us"] = row.us;
  json["tb_per_s"] = row.tb_per_s();
  json["tflops"] = row.tflops();
  json["limit_us"] = row.limit_us;
  json["share"] = row.share();
  json["cublas_us"] = row.cublas_us;
  json["ratio_cublas"] = row.ratio_cublas();
  json["kernel"] = row.kernel;
  json["max_error"] = row.max_error;
  if (row.failed()) json["failure"] = row.failure;
  return json;
}

Json limits_json(const Limits& limits) {
  Json json = {{"matrix_tflops", Json::object()}, {"read", Json::object()}};
  for (const auto& [dtype, tflops] : limits.matrix_tflops) {
    json["matrix_tflops"][mpq::to_string(dtype)] = tflops;
  }
  for (const auto& [mode, ceiling] : limits.read) {
    Json points = Json::array();
    for (const ReadCeiling::Point& point : ceiling.points()) {
      points.push_back({{"bytes", point.bytes},
                        {"us", point.us},
                        {"tb_per_s", static_cast<double>(point.bytes) / point.us * 1e-6},
                        {"kernel", ReadCeiling::describe(point.variant)}});
    }
    json["read"][to_string(mode)] = std::move(points);
  }
  return json;
}

Json layer_json(const Model& model, const LayerSum& sum) {
  Json json = {{"model", model.name}};
  json.update(spec_json(sum.what.layer));
  json.erase("N");
  json.erase("K");
  json["M"] = sum.what.m;
  json["mode"] = to_string(sum.what.mode);
  json["us"] = sum.us;
  json["tb_per_s"] = sum.bytes / sum.us * 1e-6;
  json["limit_us"] = sum.limit_us;
  json["share"] = sum.limit_us / sum.us;
  json["cublas_us"] = sum.cublas_us;
  json["ratio_cublas"] = sum.cublas_us / sum.us;
  return json;
}

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

}  // namespace

DeviceInfo query_device() {
  DeviceInfo info;
  int device = 0, driver = 0, runtime = 0, cublas_major = 0, cublas_minor = 0, cublas_patch = 0;
  check(cudaGetDevice(&device));
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device));
  check(cudaDriverGetVersion(&driver));
  check(cudaRuntimeGetVersion(&runtime));
  check(cublasGetProperty(MAJOR_VERSION, &cublas_major));
  check(cublasGetProperty(MINOR_VERSION, &cublas_minor));
  check(cublasGetProperty(PATCH_LEVEL, &cublas_patch));
  info.name = properties.name;
  info.compute_capability = 10 * properties.major + properties.minor;
  info.sm_count = properties.multiProcessorCount;
  info.l2_mb = properties.l2CacheSize / 1048576.0;
  info.memory_gb = static_cast<double>(properties.totalGlobalMem) * 1e-9;
  info.driver = version_text(driver);
  info.runtime = version_text(runtime);
  info.cublas = fmt::format("{}.{}.{}", cublas_major, cublas_minor, cublas_patch);
  return info;
}

std::vector<LayerSum> sum_layers(const Options& options, const std::vector<Row>& rows) {
  std::vector<LayerSum> sums;
  if (options.model == nullptr) return sums;
  for (const Case& block : blocks_of(rows)) {
    for (const std::int64_t m : options.batches) {
      LayerSum sum;
      std::size_t found = 0;
      for (const Row& row : rows) {
        if (!same_block(block, row.what) || row.what.m != m || row.failed()) continue;
        sum.what = row.what;
        sum.us += row.us;
        sum.limit_us += row.limit_us;
        sum.cublas_us += row.cublas_us;
        sum.bytes += row.what.bytes();
        ++found;
      }
      if (found == options.shapes.size()) sums.push_back(sum);
    }
  }
  return sums;
}

void print_report(const Options& options, const Limits* limits, const Results& results) {
  const DeviceInfo& d = results.device;
  fmt::print("{}, {} SMs, {:.0f} MB L2, driver CUDA {}, runtime {}, cuBLAS {}\n", d.name,
             d.sm_count, d.l2_mb, d.driver, d.runtime, d.cublas);
  if (limits != nullptr) {
    for (const auto& [dtype, tflops] : limits->matrix_tflops) {
      fmt::print("matrix rate {}: {:.0f} TFLOP/s\n", mpq::to_string(dtype), tflops);
    }
    for (const auto& [mode, ceiling] : limits->read) {
      fmt::print("read ceiling, {}, MiB: us", to_string(mode));
      for (const ReadCeiling::Point& point : ceiling.points()) {
        const std::size_t mib = point.bytes >> 20;
        if (mib << 20 != point.bytes || (mib & (mib - 1)) != 0) continue;
        fmt::print("  {}: {:.2f}", mib, point.us);
      }
      fmt::print("\n");
    }
  }
  for (const Case& block : blocks_of(results.rows)) print_rows(block, results.rows);
  if (options.shapes.size() > 1 && !results.rows.empty()) {
    print_means("share of the limit", options, results.rows,
                [](const Row& row) { return row.share(); });
    print_means("ratio to cuBLAS", options, results.rows,
                [](const Row& row) { return row.ratio_cublas(); });
  }
  if (!results.layers.empty()) print_layers(*options.model, results.layers);
  if (!results.host.empty()) print_host(results.host);
}

void write_json(const Options& options, const Limits* limits, const Results& results) {
  const DeviceInfo& d = results.device;
  Json json;
  json["device"] = {{"name", d.name},           {"compute_capability", d.compute_capability},
                    {"sm_count", d.sm_count},   {"l2_mb", d.l2_mb},
                    {"memory_gb", d.memory_gb}, {"driver", d.driver},
                    {"runtime", d.runtime},     {"cublas", d.cublas}};
  json["limits"] = limits == nullptr ? Json::object() : limits_json(*limits);
  json["rows"] = Json::array();
  for (const Row& row : results.rows) json["rows"].push_back(row_json(row));
  if (!results.layers.empty()) {
    for (const LayerSum& sum : results.layers) {
      json["layers"].push_back(layer_json(*options.model, sum));
    }
  }
  for (const HostRow& row : results.host) {
    Json host = spec_json(row.layer);
    host["stage"] = row.stage;
    host["ms"] = row.ms;
    host["gb_per_s"] = row.gb_per_s();
    json["host"].push_back(std::move(host));
  }
  json["conditions"] = {{"repetitions", options.repetitions},
                        {"min_bytes", options.min_bytes},
                        {"act_order", options.act_order},
                        {"bias", options.bias},
                        {"forced_kernel", options.kernel}};
  std::ofstream file(options.json);
  file << json.dump(1) << '\n';
  file.close();
  if (!file) throw std::runtime_error(fmt::format("cannot write {}", options.json));
}

}  // namespace mpq::bench

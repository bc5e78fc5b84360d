// mpq_bench: mpq::Linear on a CUDA device beside what bounds it, the time to read its bytes and the
// rate of the matrix units, and beside cuBLAS on dense weights; all measured in one run.
//
// A case is a CUDA graph of forward calls over rotating copies of a layer, at least 400 MB of them,
// so that weights come from memory and not from L2. Its replays alternate with those of cuBLAS and
// of the read kernel, because a card's clocks drift with its temperature and power. Every result is
// verified against float64 before it is timed.

#include <benchmark/benchmark.h>
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "case_runner.hpp"
#include "host_throughput.hpp"
#include "options.hpp"
#include "report.hpp"

namespace mpq::bench {
namespace {

constexpr int kNoDevice = 77;  // what test drivers take for "skipped"

// One line to stderr after each case; the table follows at the end.
class ProgressReporter : public benchmark::BenchmarkReporter {
 public:
  explicit ProgressReporter(std::size_t total) : total_(total) {}
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      if (run.run_type != Run::RT_Iteration) continue;
      const auto outcome = [&] {
        if (run.error_occurred) return "FAILED: " + run.error_message;
        return fmt::format("{:.2f} us, share {:.2f}", run.GetAdjustedRealTime(),
                           run.counters.at("share").value);
      };
      fmt::print(stderr, "[{}/{}] {}  {}\n", ++done_, total_, run.run_name.function_name,
                 outcome());
    }
  }

 private:
  std::size_t total_, done_ = 0;
};

// A case as Google Benchmark sees it: one iteration, whose time the graph replays give. A failed
// device fails every case after it without another try.
void run_case(benchmark::State& state, CaseRunner& runner, const Case& c, std::vector<Row>& rows,
              std::string& device_failure) {
  Row row;
  row.what = c;
  if (device_failure.empty()) {
    try {
      row = runner.run(c);
    } catch (const std::exception& error) {
      device_failure = error.what();
    }
  }
  if (!device_failure.empty()) row.failure = device_failure;
  rows.push_back(row);
  if (row.failed()) {
    state.SkipWithError(row.failure.c_str());
    return;
  }
  for ([[maybe_unused]] auto _ : state) state.SetIterationTime(row.us * 1e-6);
  state.counters["share"] = row.share();
  state.counters["ratio_cublas"] = row.ratio_cublas();
  state.counters["max_error"] = row.max_error;
}

void run_cases(CaseRunner& runner, const std::vector<Case>& cases, std::vector<Row>& rows) {
  std::string device_failure;
  for (const Case& c : cases) {
    benchmark::RegisterBenchmark(to_string(c).c_str(),
                                 [&runner, &rows, &device_failure, c](benchmark::State& state) {
                                   run_case(state, runner, c, rows, device_failure);
                                 })
        ->UseManualTime()
        ->Iterations(1)
        ->Unit(benchmark::kMicrosecond);
  }
  // Our own options are parsed already; its are not offered.
  std::string name = "mpq_bench";
  char* arguments[] = {name.data(), nullptr};
  int count = 1;
  benchmark::Initialize(&count, arguments);
  ProgressReporter reporter(cases.size());
  benchmark::RunSpecifiedBenchmarks(&reporter);
  benchmark::Shutdown();
}

int run(int argc, char** argv) {
  const ParsedOptions parsed = parse_options(argc, argv);
  if (parsed.exit_code >= 0) return parsed.exit_code;
  const Options& options = parsed.options;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    fmt::print("mpq_bench: no CUDA device\n");
    return kNoDevice;
  }

  const auto begin = std::chrono::steady_clock::now();
  Results results;
  results.device = query_device();
  if (options.host) results.host = measure_host_throughput(options);
  const std::vector<Case> cases = enumerate_cases(options);
  std::unique_ptr<CaseRunner> runner;
  if (!cases.empty()) {
    runner = std::make_unique<CaseRunner>(
        options, [](const char* what) { fmt::print(stderr, "measuring: {}\n", what); });
    run_cases(*runner, cases, results.rows);
  }
  results.layers = sum_layers(options, results.rows);

  const Limits* limits = runner == nullptr ? nullptr : &runner->limits();
  print_report(options, limits, results);
  if (!options.json.empty()) write_json(options, limits, results);
  const auto failures = std::count_if(results.rows.begin(), results.rows.end(),
                                      [](const Row& row) { return row.failed(); });
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  fmt::print("\n{} cases, {} failed, {:.1f} s\n", cases.size(), failures, seconds);
  if (results.rows.size() != cases.size()) {
    fmt::print(stderr, "mpq_bench: {} cases did not run\n", cases.size() - results.rows.size());
    return 1;
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace mpq::bench

int main(int argc, char** argv) {
  try {
    return mpq::bench::run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "mpq_bench: {}\n", error.what());
    return 1;
  }
}

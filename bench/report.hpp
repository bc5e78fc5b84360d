#pragma once
// What came out: a table for people and JSON for programs.

#include <string>
#include <vector>

#include "case_runner.hpp"
#include "cases.hpp"
#include "options.hpp"

namespace mpq::bench {

/// The device and the software that a run met.
struct DeviceInfo {
  std::string name;
  int compute_capability = 0;  ///< 10 * major + minor
  int sm_count = 0;
  double l2_mb = 0, memory_gb = 0;
  std::string driver, runtime, cublas;  ///< versions
};

DeviceInfo query_device();

/// The linears of one decoder layer, summed; only where all of them were measured.
struct LayerSum {
  Case what;  ///< all but the shape
  double us = 0, limit_us = 0, cublas_us = 0, bytes = 0;
};

struct Results {
  DeviceInfo device;
  std::vector<Row> rows;
  std::vector<LayerSum> layers;
  std::vector<HostRow> host;
};

/// Sums of a model's linears, for every width, kind, mode and batch.
std::vector<LayerSum> sum_layers(const Options& options, const std::vector<Row>& rows);

/// To stdout.
void print_report(const Options& options, const Limits* limits, const Results& results);

/// Throws std::runtime_error if the file cannot be written.
void write_json(const Options& options, const Limits* limits, const Results& results);

}  // namespace mpq::bench

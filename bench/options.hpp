#pragma once
// The command line.

#include <cstdint>
#include <string>
#include <vector>

#include "cases.hpp"

namespace mpq::bench {

struct Options {
  std::vector<Shape> shapes;
  const Model* model = nullptr;  ///< whose linears `shapes` are, in order; null: --shapes
  std::vector<std::int64_t> batches;
  std::vector<int> bits;
  std::vector<int> groups;
  std::vector<Zeros> zeros;
  std::vector<DType> dtypes;
  std::vector<Mode> modes;
  bool act_order = false;
  bool bias = false;
  bool host = false;             ///< also the throughput of pack, load and prepare_params
  int kernel = -1;               ///< row of kKernelTable; -1: the plan chooses
  int cluster = -1;              ///< ForwardOptions::cluster
  int warps_n = -1;              ///< ForwardOptions::warps_n
  int multicast = -1;            ///< ForwardOptions::multicast
  bool one_launch = false;       ///< ForwardOptions::one_launch
  bool batch_invariant = false;  ///< ForwardOptions::batch_invariant
  double min_bytes = 0;          ///< weights that rotate, so that L2 is cold
  int repetitions = 5;
  std::string filter;  ///< regular expression on to_string(Case); empty: all
  std::string json;    ///< file to write; empty: none
};

/// What parsing came to: options to run with, or an exit code (after --help or an error).
struct ParsedOptions {
  Options options;
  int exit_code = -1;  ///< -1: run
};

ParsedOptions parse_options(int argc, char** argv);

/// Every case that the options ask for, in an order that builds each layer once.
std::vector<Case> enumerate_cases(const Options& options);

}  // namespace mpq::bench

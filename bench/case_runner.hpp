#pragma once
// Measures one case: builds the layer, verifies its result, times it beside its rivals.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "cases.hpp"
#include "cuda_support.hpp"
#include "dense_baseline.hpp"
#include "mpq/model.hpp"
#include "options.hpp"
#include "random_pool.hpp"
#include "read_ceiling.hpp"
#include "verify.hpp"

namespace mpq::bench {

/// What bounds every case, measured once at the start of a run.
struct Limits {
  std::map<Mode, ReadCeiling> read;
  std::map<DType, double> matrix_tflops;
};

class CaseRunner {
 public:
  /// Measures the limits that the options need.
  CaseRunner(const Options& options, const std::function<void(const char*)>& progress);

  /// The row's `failure` is set if the result is wrong or the library refuses; throws CudaFailure
  /// when the device is of no more use.
  Row run(const Case& c);

  const Limits& limits() const noexcept { return limits_; }

 private:
  void build(const LayerSpec& spec);
  void forward(std::size_t copy, const Case& c);
  void measure(const Case& c, Row& row);

  const Options& options_;
  Stream stream_;
  StreamTimer timer_{stream_};
  RandomPool pool_{stream_};
  DenseBaseline dense_{timer_, pool_};
  Limits limits_;

  std::optional<LayerSpec> built_;
  std::vector<AnyLinear> copies_;  // of one layer; as many as it takes to keep L2 cold
  std::unique_ptr<Verifier> verifier_;
  ResultScanner scanner_{stream_};
  DeviceArray x_, y_, dense_y_, workspace_;
};

}  // namespace mpq::bench

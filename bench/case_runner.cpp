#include "case_runner.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "mpq/error.hpp"
#include "random_weights.hpp"

namespace mpq::bench {
namespace {

constexpr std::size_t kMostCopies = 256;
constexpr int kLeastForwards = 20;   // in one graph, so that its start weighs little
constexpr double kGraphUs = 50'000;  // and no more than this of any candidate
constexpr std::uint64_t kWeightsSeed = 1, kInputSeed = 0x1'0000'0000'0000;

// What the library is asked for. Every wish that a mode makes of a forward call goes here.
ForwardOptions forward_options(const Options& options, Mode mode) {
  return {.programmatic = mode == Mode::chained,
          .batch_invariant = options.batch_invariant,
          .kernel = options.kernel,
          .cluster = options.cluster,
          .warps_n = options.warps_n,
          .multicast = options.multicast,
          .one_launch = options.one_launch};
}

PrepareOptions prepare_options(const LayerSpec& spec) {
  if (spec.zeros == Zeros::gba_packed) return {.packed_statistics = true};
  if (spec.zeros == Zeros::gba_plain) return {.packed_statistics = false};
  return {};
}

// Device bytes of one prepared copy, from above: padding, and statistics that the kernels' layout
// may hold wider than the checkpoint does.
std::size_t copy_bytes(const LayerSpec& spec) {
  const double statistics =
      16.0 * static_cast<double>(spec.groups()) * static_cast<double>(spec.shape.n);
  return static_cast<std::size_t>(1.1 * spec.packed_bytes() + statistics) + (std::size_t{4} << 20);
}

// Prefill kernels multiply weights rounded to 16 bits; decode kernels are exact.
bool rounds_weights(const std::string& kernel) {
  return kernel.find(to_string(KernelFamily::decode)) == std::string::npos;
}

// Empty if a result is whole, nothing behind it was touched, and its bits are those of `expected`.
std::string fault_of(const ScanResult& scan, const ScanResult& expected) {
  if (scan.not_finite != 0) {
    return fmt::format("{} elements of y are unwritten or not finite", scan.not_finite);
  }
  if (scan.overwritten != 0) {
    return fmt::format("{} elements behind y were overwritten", scan.overwritten);
  }
  return scan.checksum == expected.checksum ? "" : "other bits than the verified result";
}

}  // namespace

CaseRunner::CaseRunner(const Options& options, const std::function<void(const char*)>& progress)
    : options_(options) {
  progress("matrix rate");
  for (const DType dtype : options.dtypes) {
    limits_.matrix_tflops[dtype] = dense_.matrix_tflops(dtype, options.repetitions);
  }
  // Half of what there is on a small card.
  pool_.reserve(std::min(ReadCeiling::kPoolBytes, (available_bytes() + pool_.size()) / 2),
                options.dtypes.front());
  for (const Mode mode : options.modes) {
    progress(mode == Mode::isolated ? "read ceiling, isolated" : "read ceiling, chained");
    limits_.read.try_emplace(mode, timer_, pool_, mode, options.repetitions);
  }
}

Row CaseRunner::run(const Case& c) {
  Row row;
  row.what = c;
  const double compute_us = c.flops() / limits_.matrix_tflops.at(c.layer.dtype) * 1e-6;
  const double read_us = limits_.read.at(c.mode).us(c.bytes());
  row.read_limited = read_us >= compute_us;
  row.limit_us = std::max(read_us, compute_us);
  try {
    build(c.layer);
    measure(c, row);
  } catch (const Error& error) {
    // A refusal concerns this case; a device that fails concerns them all.
    if (error.code() == ErrorCode::device_failure) throw CudaFailure(error.what());
    row.failure = error.what();
  } catch (const MemoryShortage& error) {
    row.failure = error.what();
  }
  return row;
}

void CaseRunner::build(const LayerSpec& spec) {
  if (built_ == spec) return;
  built_.reset();
  verifier_.reset();
  copies_.clear();

  const AnyQuantizedWeights weights =
      make_random_weights(spec, options_.act_order, options_.bias, kWeightsSeed);
  verifier_ = std::make_unique<Verifier>(weights, stream_);

  // One copy more than is kept: while it is prepared, a layer exists in both of its layouts.
  const std::size_t available = available_bytes(), each = copy_bytes(spec);
  require_memory("a layer", 2 * each, available);
  const std::size_t fit = available / each;
  const auto wanted = static_cast<std::size_t>(std::ceil(options_.min_bytes / spec.packed_bytes()));
  // Two at least: forward calls that overlap must not find each other's weights in L2.
  const std::size_t count = std::min({std::max<std::size_t>(wanted, 2), kMostCopies, fit - 1});
  int device = 0;
  check(cudaGetDevice(&device));
  for (std::size_t i = 0; i < count; ++i) {
    copies_.emplace_back(weights, Device::cuda(device), spec.dtype, stream_.get());
    copies_.back().prepare_params(prepare_options(spec), stream_.get());
  }
  stream_.synchronize();
  built_ = spec;
}

void CaseRunner::forward(std::size_t copy, const Case& c) {
  const Shape& shape = c.layer.shape;
  copies_[copy].forward(ConstMatrix(x_.data(), c.layer.dtype, c.m, shape.k),
                        Matrix(y_.data(), c.layer.dtype, c.m, shape.n),
                        Workspace(workspace_.data(), workspace_.size()),
                        forward_options(options_, c.mode), stream_.get());
}

void CaseRunner::measure(const Case& c, Row& row) {
  const Shape& shape = c.layer.shape;
  const DType dtype = c.layer.dtype;
  const std::int64_t outputs = c.m * shape.n;
  x_.reserve(2 * static_cast<std::size_t>(c.m * shape.k));
  y_.reserve(result_bytes(c.m, shape.n));
  workspace_.reserve(copies_[0].workspace_bytes(c.m));
  fill_random(x_.data(), c.m * shape.k, dtype, kInputSeed, stream_.get());
  // Values left in the workspace by somebody else must not matter.
  if (workspace_.size() != 0) {
    check(cudaMemsetAsync(workspace_.data(), kPoisonByte, workspace_.size(), stream_.get()));
  }

  // Verified first: nothing is known of the time of a wrong result.
  row.kernel = copies_[0].describe(c.m, forward_options(options_, c.mode));
  scanner_.reset(1);
  poison(y_.data(), outputs, stream_);
  forward(0, c);
  scanner_.add(0, y_.data(), outputs, dtype);
  const ScanResult verified = scanner_.results()[0];
  row.failure = fault_of(verified, verified);
  if (row.failed()) return;
  row.max_error =
      verifier_->max_error(x_.data(), y_.data(), c.m, dtype, rounds_weights(row.kernel));
  if (!(row.max_error <= 1)) {
    row.failure = fmt::format("wrong: an error of {:.3g} times the bound", row.max_error);
    return;
  }

  // The other copies that will be timed must agree with it bit for bit.
  const double us_each = timer_.time_us([&] { forward(0, c); });
  const int forwards = forwards_within(kGraphUs, us_each, copies_.size(), kLeastForwards);
  const std::size_t used = std::min(copies_.size(), static_cast<std::size_t>(forwards));
  scanner_.reset(used);
  for (std::size_t copy = 0; copy < used; ++copy) {
    poison(y_.data(), outputs, stream_);
    forward(copy, c);
    scanner_.add(copy, y_.data(), outputs, dtype);
  }
  for (std::size_t copy = 0; const ScanResult& scan : scanner_.results()) {
    if (const std::string fault = fault_of(scan, verified); !fault.empty()) {
      row.failure = fmt::format("copy {} of {}: {}", copy, used, fault);
      return;
    }
    ++copy;
  }

  std::vector<Candidate> candidates;
  candidates.push_back({Graph::capture(stream_,
                                       [&] {
                                         for (int i = 0; i < forwards; ++i) {
                                           forward(static_cast<std::size_t>(i) % used, c);
                                         }
                                       }),
                        forwards});
  dense_y_.reserve(result_bytes(c.m, shape.n));
  const bool dense = dense_.add_candidate({.m = c.m,
                                           .n = shape.n,
                                           .k = shape.k,
                                           .dtype = dtype,
                                           .x = x_.data(),
                                           .y = dense_y_.data(),
                                           .min_bytes = options_.min_bytes,
                                           .budget_us = kGraphUs,
                                           .least_forwards = kLeastForwards},
                                          candidates);
  // The read of exactly these bytes in turn with the rest, where it is the limit. After cuBLAS,
  // which may have made the pool anew.
  const auto bytes = static_cast<std::size_t>(c.bytes());
  const bool read = row.read_limited && pool_.windows(bytes) >= 1;
  if (read) {
    const auto windows = std::min(
        pool_.windows(bytes), static_cast<std::size_t>(std::ceil(options_.min_bytes / c.bytes())));
    candidates.push_back(limits_.read.at(c.mode).candidate(
        bytes, forwards_within(kGraphUs, row.limit_us, windows, kLeastForwards)));
  }

  // And so must what the timed replays leave behind.
  poison(y_.data(), outputs, stream_);
  time_interleaved(timer_, candidates, options_.repetitions);
  scanner_.reset(1);
  scanner_.add(0, y_.data(), outputs, dtype);
  const std::string fault = fault_of(scanner_.results()[0], verified);
  if (!fault.empty()) {
    row.failure = fmt::format("after timing: {}", fault);
    return;
  }

  row.us = median(candidates[0].us);
  if (dense) row.cublas_us = median(candidates[1].us);
  if (read) {
    // The faster of the two readings: a limit should be one.
    const double compute_us = c.flops() / limits_.matrix_tflops.at(dtype) * 1e-6;
    row.limit_us = std::max(compute_us, std::min(row.limit_us, median(candidates.back().us)));
  }
}

}  // namespace mpq::bench

#pragma once
// The dense rival: cuBLAS on 16-bit weights, accumulating in float32.

#include <cublas_v2.h>

#include <cstdint>
#include <source_location>

#include "cases.hpp"
#include "cuda_support.hpp"
#include "random_pool.hpp"

namespace mpq::bench {

void check(cublasStatus_t status, std::source_location where = std::source_location::current());

class DenseBaseline {
 public:
  DenseBaseline(const StreamTimer& timer, RandomPool& pool);
  ~DenseBaseline();
  DenseBaseline(const DenseBaseline&) = delete;
  DenseBaseline& operator=(const DenseBaseline&) = delete;

  /// y [m, n] = x [m, k] w^T with w [n, k] on rotating random weights, `min_bytes` of them and two
  /// copies at least where they fit; `least_forwards` times at least, if `budget_us` allows that.
  struct Plan {
    std::int64_t m, n, k;
    DType dtype;
    const void* x;
    void* y;
    double min_bytes, budget_us;
    int least_forwards;
  };
  /// Adds it to those that are timed in turn. False if not one copy of the weights fits.
  bool add_candidate(const Plan& plan, std::vector<Candidate>& candidates);

  /// The best rate at 8192 x 8192 x 8192, TFLOP/s.
  double matrix_tflops(DType dtype, int repetitions);

 private:
  void gemm(const Plan& plan, const void* weights);

  const StreamTimer& timer_;
  RandomPool& pool_;
  DeviceArray workspace_;
  cublasHandle_t handle_ = nullptr;
};

/// How often to run something in one graph: every copy of its weights once, `least` times at least,
/// whole rounds of the copies, but no longer than `budget_us` at `us_each` (and once in any case).
int forwards_within(double budget_us, double us_each, std::size_t copies, int least);

}  // namespace mpq::bench

#include "dense_baseline.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

namespace mpq::bench {

void check(cublasStatus_t status, std::source_location where) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw CudaFailure(fmt::format("cuBLAS: {} ({}:{})", cublasGetStatusString(status),
                                where.file_name(), where.line()));
}

DenseBaseline::DenseBaseline(const StreamTimer& timer, RandomPool& pool)
    : timer_(timer), pool_(pool) {
  // Its own recommendation for Hopper. Set by hand because cuBLAS would otherwise allocate during
  // capture, and after the stream because setting the stream drops it.
  constexpr std::size_t kWorkspaceBytes = std::size_t{64} << 20;
  workspace_.reserve(kWorkspaceBytes);
  check(cublasCreate(&handle_));
  check(cublasSetStream(handle_, timer.stream().get()));
  check(cublasSetWorkspace(handle_, workspace_.data(), workspace_.size()));
}

DenseBaseline::~DenseBaseline() {
  cublasDestroy(handle_);
}

void DenseBaseline::gemm(const Plan& p, const void* weights) {
  // cuBLAS counts columns first: y^T [n, m] = w [n, k] x^T, with w stored as [k, n], transposed.
  const float one = 1, zero = 0;
  const cudaDataType_t type = p.dtype == DType::f16 ? CUDA_R_16F : CUDA_R_16BF;
  const auto m = static_cast<int>(p.m), n = static_cast<int>(p.n), k = static_cast<int>(p.k);
  check(cublasGemmEx(handle_, CUBLAS_OP_T, CUBLAS_OP_N, n, m, k, &one, weights, type, k, p.x, type,
                     k, &zero, p.y, type, n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

bool DenseBaseline::add_candidate(const Plan& plan, std::vector<Candidate>& candidates) {
  const std::size_t bytes = 2 * static_cast<std::size_t>(plan.n) * static_cast<std::size_t>(plan.k);
  const auto copies = std::max<std::size_t>(
      2, static_cast<std::size_t>(std::ceil(plan.min_bytes / static_cast<double>(bytes))));
  // Windows are spaced by whole multiples of 256 bytes.
  const std::size_t wanted = copies * (bytes + 256);
  if (wanted > pool_.size()) {
    const std::size_t most = available_bytes() + pool_.size();
    pool_.reserve(std::min(wanted, most), plan.dtype);
  }
  pool_.reserve(pool_.size(), plan.dtype);
  const std::size_t windows = std::min(copies, pool_.windows(bytes));
  if (windows == 0) return false;

  gemm(plan, pool_.window(0, bytes));  // chooses and loads the kernel
  const double us_each = timer_.time_us([&] { gemm(plan, pool_.window(1, bytes)); });
  const int forwards = forwards_within(plan.budget_us, us_each, windows, plan.least_forwards);
  candidates.push_back({Graph::capture(timer_.stream(),
                                       [&] {
                                         for (int i = 0; i < forwards; ++i) {
                                           const auto window =
                                               static_cast<std::size_t>(i) % windows;
                                           gemm(plan, pool_.window(window, bytes));
                                         }
                                       }),
                        forwards});
  return true;
}

double DenseBaseline::matrix_tflops(DType dtype, int repetitions) {
  constexpr std::int64_t kSize = 8192;
  constexpr std::size_t kBytes = 2 * kSize * kSize;
  constexpr int kForwards = 8;  // long enough for the card to meet its power limit
  pool_.reserve(3 * kBytes, dtype);
  DeviceArray y(kBytes);
  const Plan plan{kSize, kSize, kSize, dtype, pool_.window(2, kBytes), y.data(), 0, 0, 0};
  gemm(plan, pool_.window(0, kBytes));
  std::vector<Candidate> candidates;
  candidates.push_back(
      {Graph::capture(timer_.stream(),
                      [&] {
                        for (int i = 0; i < kForwards; ++i) {
                          gemm(plan, pool_.window(static_cast<std::size_t>(i) % 2, kBytes));
                        }
                      }),
       kForwards});
  time_interleaved(timer_, candidates, std::max(repetitions, 5));
  const auto& us = candidates[0].us;
  constexpr double kFlops = 2.0 * kSize * kSize * kSize;
  return kFlops / *std::min_element(us.begin(), us.end()) * 1e-6;
}

int forwards_within(double budget_us, double us_each, std::size_t copies, int least) {
  const auto rounds = ceil_div(std::max<std::int64_t>(least, static_cast<std::int64_t>(copies)),
                               static_cast<std::int64_t>(copies));
  const auto wanted = rounds * static_cast<std::int64_t>(copies);
  const auto most = static_cast<std::int64_t>(budget_us / std::max(us_each, 0.1));
  return static_cast<int>(std::clamp<std::int64_t>(wanted, 1, std::max<std::int64_t>(most, 1)));
}

}  // namespace mpq::bench

#include "cuda_support.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "device_kernels.hpp"

namespace mpq::bench {

void check(cudaError_t status, std::source_location where) {
  if (status == cudaSuccess) return;
  const char* file = std::strrchr(where.file_name(), '/');
  throw CudaFailure(fmt::format("{}: {} ({}:{})", cudaGetErrorName(status),
                                cudaGetErrorString(status),
                                file == nullptr ? where.file_name() : file + 1, where.line()));
}

std::size_t available_bytes() {
  constexpr std::size_t kLeave = std::size_t{2} << 30;
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total));
  return free > kLeave ? free - kLeave : 0;
}

void require_memory(const char* what, std::size_t bytes, std::size_t available) {
  if (bytes <= available) return;
  throw MemoryShortage(fmt::format("{} needs {:.2f} GB of device memory, {:.2f} GB may be taken",
                                   what, static_cast<double>(bytes) * 1e-9,
                                   static_cast<double>(available) * 1e-9));
}

DeviceArray::DeviceArray(DeviceArray&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

DeviceArray& DeviceArray::operator=(DeviceArray&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void DeviceArray::reserve(std::size_t bytes) {
  if (bytes <= bytes_) return;
  release();
  require_memory("a buffer", bytes, available_bytes());
  check(cudaMalloc(&data_, bytes));
  bytes_ = bytes;
}

void DeviceArray::release() noexcept {
  if (data_ != nullptr) cudaFree(data_);
  data_ = nullptr;
  bytes_ = 0;
}

Stream::Stream() {
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}

Stream::~Stream() {
  cudaStreamDestroy(stream_);
}

Graph Graph::capture(const Stream& stream, const std::function<void()>& work) {
  cudaGraph_t graph = nullptr;
  // Global: a call that capture forbids anywhere in this program is an error worth seeing.
  check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal));
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(stream.get(), &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  check(cudaStreamEndCapture(stream.get(), &graph));
  cudaGraphExec_t exec = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  check(status);
  Graph result(exec);
  check(cudaGraphUpload(exec, stream.get()));
  return result;
}

Graph::Graph(Graph&& other) noexcept : exec_(std::exchange(other.exec_, nullptr)) {}

Graph& Graph::operator=(Graph&& other) noexcept {
  std::swap(exec_, other.exec_);
  return *this;
}

Graph::~Graph() {
  if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
}

StreamTimer::StreamTimer(const Stream& stream) : stream_(stream) {
  check(cudaEventCreate(&begin_));
  check(cudaEventCreate(&end_));
}

StreamTimer::~StreamTimer() {
  cudaEventDestroy(begin_);
  cudaEventDestroy(end_);
}

double StreamTimer::time_us(const std::function<void()>& work) const {
  hold_stream(stream_.get());
  check(cudaEventRecord(begin_, stream_.get()));
  work();
  check(cudaEventRecord(end_, stream_.get()));
  check(cudaEventSynchronize(end_));
  float ms = 0;
  check(cudaEventElapsedTime(&ms, begin_, end_));
  return static_cast<double>(ms) * 1e3;
}

void time_interleaved(const StreamTimer& timer, std::vector<Candidate>& candidates,
                      int repetitions) {
  // Enough work before the first figure for the clocks to rise and the instruction caches to fill.
  constexpr double kWarmUpUs = 3000;
  constexpr int kWarmUpLaunches = 10;
  const auto replay = [&](const Candidate& c) {
    return timer.time_us([&] { c.graph.launch(timer.stream()); });
  };
  for (const Candidate& candidate : candidates) {
    double spent = 0;
    for (int i = 0; i < kWarmUpLaunches && spent < kWarmUpUs; ++i) spent += replay(candidate);
  }
  for (int repetition = 0; repetition < repetitions; ++repetition) {
    for (Candidate& candidate : candidates) {
      candidate.us.push_back(replay(candidate) / candidate.forwards);
    }
  }
}

double median(std::vector<double> values) {
  if (values.empty()) throw std::logic_error("median of nothing");
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : 0.5 * (values[middle - 1] + values[middle]);
}

}  // namespace mpq::bench

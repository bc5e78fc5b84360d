#pragma once
// CUDA objects that clean up after themselves, checked calls, and graph replays timed by events.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

#include "mpq/types.hpp"

namespace mpq::bench {

/// A CUDA or cuBLAS call failed: the run cannot go on.
class CudaFailure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Something does not fit the device's memory: a case less, nothing worse.
class MemoryShortage : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Throws MemoryShortage, naming `what`, if more than `available` bytes are needed.
void require_memory(const char* what, std::size_t bytes, std::size_t available);

/// Throws CudaFailure with the error's name and the caller's place.
void check(cudaError_t status, std::source_location where = std::source_location::current());

/// Bytes that may still be allocated: what is free, less 2 GB for everybody else.
std::size_t available_bytes();

/// Device memory that only grows. Contents are lost when it does.
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(std::size_t bytes) { reserve(bytes); }
  ~DeviceArray() { release(); }
  DeviceArray(DeviceArray&& other) noexcept;
  DeviceArray& operator=(DeviceArray&& other) noexcept;

  /// Throws MemoryShortage when available_bytes() do not allow it.
  void reserve(std::size_t bytes);
  void release() noexcept;
  std::size_t size() const noexcept { return bytes_; }
  template <class T = void>
  T* data() const noexcept {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

class Stream {
 public:
  Stream();
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const noexcept { return stream_; }
  void synchronize() const { check(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

/// An instantiated graph of what `work` puts into the stream.
class Graph {
 public:
  static Graph capture(const Stream& stream, const std::function<void()>& work);
  Graph(Graph&& other) noexcept;
  Graph& operator=(Graph&& other) noexcept;
  ~Graph();
  void launch(const Stream& stream) const { check(cudaGraphLaunch(exec_, stream.get())); }

 private:
  explicit Graph(cudaGraphExec_t exec) : exec_(exec) {}
  cudaGraphExec_t exec_ = nullptr;
};

/// Times stretches of a stream with a pair of events.
class StreamTimer {
 public:
  explicit StreamTimer(const Stream& stream);
  ~StreamTimer();
  StreamTimer(const StreamTimer&) = delete;
  StreamTimer& operator=(const StreamTimer&) = delete;

  /// Device time of `work`, us. The stream is held busy while the host enqueues it, so that the
  /// host's launch latency is not in the figure.
  double time_us(const std::function<void()>& work) const;
  const Stream& stream() const noexcept { return stream_; }

 private:
  const Stream& stream_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

/// One of several things timed in turn: a graph that does the same work `forwards` times.
struct Candidate {
  Graph graph;
  int forwards = 1;
  std::vector<double> us{};  ///< of one forward, per repetition
};

/// Warms every candidate up, then times them in turn, A B C A B C, `repetitions` times.
void time_interleaved(const StreamTimer& timer, std::vector<Candidate>& candidates,
                      int repetitions);

/// Throws std::logic_error for no values.
double median(std::vector<double> values);

}  // namespace mpq::bench

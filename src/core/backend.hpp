#pragma once
// What a device must be able to do for Linear. LinearCore has checked arguments and order of calls.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "mpq/linear.hpp"

namespace mpq::detail {

class Backend {
 public:
  virtual ~Backend() = default;

  /// Takes a copy of weights whose structure was checked; drops what was there.
  virtual void load(const WeightsData& weights, StreamRef stream) = 0;
  /// Throws Error(invalid_weights) naming the first value that is not finite.
  virtual void check_values() const = 0;
  virtual void prepare(const PrepareOptions& options, StreamRef stream) = 0;
  /// Of a loaded layer.
  virtual std::size_t prepare_bytes() const = 0;
  virtual std::size_t workspace_bytes(std::int64_t max_batch) const = 0;
  /// Arguments fit; x.rows >= 1.
  virtual void forward(const ConstMatrix& x, const Matrix& y, const Workspace& workspace,
                       const ForwardOptions& options, StreamRef stream) const = 0;
  virtual std::string describe(std::int64_t batch, const ForwardOptions& options) const = 0;

  virtual TensorView qweight() const = 0;
  virtual TensorView scales() const = 0;
  virtual TensorView zeros() const = 0;
  virtual TensorView bias() const = 0;
};

std::unique_ptr<Backend> make_cpu_backend(int bits, const LinearConfig& config);
/// Throws Error(device_unavailable) in a build without CUDA.
std::unique_ptr<Backend> make_cuda_backend(int bits, const LinearConfig& config, Device device);

}  // namespace mpq::detail

#pragma once
// mpq::Linear: a linear layer with packed weights, on a CUDA device or on the CPU.
//
//   Linear<4> linear(weights, Device::cuda(), DType::f16);  // from a checkpoint or quantize()
//   linear.prepare_params();                                // once
//   linear.forward(x, y, workspace, stream);

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "mpq/device.hpp"
#include "mpq/matrix.hpp"
#include "mpq/plan.hpp"
#include "mpq/quantized_weights.hpp"
#include "mpq/types.hpp"
#include "mpq/workspace.hpp"

namespace mpq {

struct LinearConfig {
  std::int64_t in_features = 0;   ///< K >= 1
  std::int64_t out_features = 0;  ///< N >= 1
  int group_size = -1;            ///< >= 1, or -1: one group per output channel
  DType dtype = DType::f16;       ///< activations x and output y
  bool bias = false;              ///< whether the layer adds a bias [N]
  bool operator==(const LinearConfig&) const = default;
};

/// What a caller may ask of prepare_params.
struct PrepareOptions {
  /// Of double-quantised statistics with scales and zeros (GBA), on a CUDA device: true leaves them
  /// packed and kernels decode them where they use them; false decodes them here, once; nothing:
  /// the plan chooses what is faster (keeps_statistics_packed). Results have the same bits where
  /// the plan cuts K alike and one multiply-add makes the decoded layer's weights (Problem::fuses);
  /// else kernels for many rows may round some of its weights the other way.
  /// Statistics can be left packed if they are of the activations' type and dq_group_size is a
  /// multiple of 32; true throws Error(unsupported) otherwise.
  std::optional<bool> packed_statistics;
  /// Rows of x that forward will mostly be called with, for the plan's choice.
  std::int64_t batch = 1;
};

/// The configuration that weights imply.
LinearConfig config_of(const WeightsData& weights, DType dtype);

namespace detail {

class Backend;  // one layer's parameters on one device; src/core/backend.hpp

/// Everything that does not depend on the width at compile time.
class LinearCore {
 public:
  LinearCore(int bits, const LinearConfig& config, Device device);
  ~LinearCore();
  LinearCore(LinearCore&&) noexcept;
  LinearCore& operator=(LinearCore&&) noexcept;

  void load(const WeightsData& weights, StreamRef stream);
  void check_parameters() const;
  void prepare_params(const PrepareOptions& options, StreamRef stream);
  std::size_t prepare_bytes() const;
  std::size_t workspace_bytes(std::int64_t max_batch) const;
  void forward(const ConstMatrix& x, const Matrix& y, const Workspace& workspace,
               const ForwardOptions& options, StreamRef stream) const;
  std::string describe(std::int64_t batch, const ForwardOptions& options) const;

  TensorView qweight() const;
  TensorView scales() const;
  TensorView zeros() const;
  TensorView bias() const;
  const LinearConfig& config() const noexcept { return config_; }
  Device device() const noexcept { return device_; }
  bool prepared() const noexcept { return state_ == State::prepared; }

 private:
  enum class State : std::uint8_t { empty, loaded, prepared };
  const Backend& backend(const char* caller, State least) const;

  int bits_;
  LinearConfig config_;
  Device device_;
  State state_ = State::empty;
  std::unique_ptr<Backend> backend_;
};

}  // namespace detail

/// y = x w^T + bias with w [out_features, in_features] stored in WBits bits. Move-only.
///
/// forward is const and thread-safe; the other members are for one thread at a time.
template <int WBits>
requires SupportedBits<WBits>
class Linear {
 public:
  static constexpr int w_bit = WBits;  ///< bits of a weight
  static constexpr int a_bit = 16;     ///< bits of an activation

  /// An empty layer. Throws Error(invalid_argument) for a bad configuration,
  /// Error(device_unavailable) for a device that is not there.
  Linear(const LinearConfig& config, Device device) : core_(WBits, config, device) {}

  /// A loaded layer.
  Linear(const QuantizedWeights<WBits>& weights, Device device, DType dtype, StreamRef stream = {})
      : core_(WBits, config_of(weights, dtype), device) {
    load(weights, stream);
  }

  /// Checks the weights' structure against the configuration (Error(invalid_weights)) and copies
  /// them to the device; `weights` may be destroyed on return. A second load replaces the first.
  void load(const QuantizedWeights<WBits>& weights, StreamRef stream = {}) {
    core_.load(weights, stream);
  }

  /// Throws Error(invalid_weights), naming the place, when a loaded scale, zero or bias is not
  /// finite; Error(not_prepared) before load. Synchronises; may be called before or after
  /// prepare_params.
  void check_parameters() const { core_.check_parameters(); }

  /// Brings the weights into the kernels' layout on `stream`, once: decompresses double-quantised
  /// statistics or leaves them to the kernels (PrepareOptions), orders act-order columns, repacks
  /// codes, pads. On a CUDA device parameters are kept as what they are as numbers: scales of the
  /// activations' type where all can be, affine zeros as integers or in 16 bits. Frees what was
  /// loaded. Idempotent.
  void prepare_params(StreamRef stream = {}) { core_.prepare_params({}, stream); }
  void prepare_params(const PrepareOptions& options, StreamRef stream) {
    core_.prepare_params(options, stream);
  }

  /// Bytes of device memory that prepare_params takes beside what is loaded, at most; about the
  /// layer's packed size. It frees what was loaded when it has done. After load; 0 when prepared,
  /// and on the CPU.
  std::size_t prepare_bytes() const { return core_.prepare_bytes(); }

  /// Bytes of workspace that forward needs for any batch up to max_batch. Monotone in max_batch.
  /// After load.
  std::size_t workspace_bytes(std::int64_t max_batch) const {
    return core_.workspace_bytes(max_batch);
  }

  /// y = x w^T + bias in stream order. x [batch, in_features] and y [batch, out_features] are on
  /// the layer's device, of its dtype, and must not overlap; batch 0 does nothing. Accumulates in
  /// float32 and rounds once; the same bits every time. No allocation, synchronisation or other
  /// host work, so it can be captured in a CUDA graph. The CPU computes before it returns. On a
  /// CUDA device weights are formed in 16 bits where rows are many, rounded once (of affine zeros
  /// that are no 16-bit numbers, within 0.51 ulp and 2^-25, in bfloat16 0.53 ulp, but for weights
  /// that are a small part of their scale): bfloat16 scales of 2^121 and more then give Inf. Throws
  /// Error(invalid_argument) for shapes, pointers or a workspace that do not fit.
  void forward(const ConstMatrix& x, const Matrix& y, const Workspace& workspace,
               StreamRef stream = {}) const {
    core_.forward(x, y, workspace, {}, stream);
  }
  void forward(const ConstMatrix& x, const Matrix& y, const Workspace& workspace,
               const ForwardOptions& options, StreamRef stream) const {
    core_.forward(x, y, workspace, options, stream);
  }

  /// What forward would run for this batch, in words.
  std::string describe(std::int64_t batch, const ForwardOptions& options = {}) const {
    return core_.describe(batch, options);
  }

  /// What the layer owns: as loaded (WeightsData), or after prepare_params in the kernels' layout
  /// (KernelLayout). Empty where there is none. Statistics that stay packed: scales() are the
  /// codes, zeros() the two words of every kStatisticChannels channels, scale | zero << 16 for the
  /// scales and for the zeros.
  TensorView qweight() const { return core_.qweight(); }
  TensorView scales() const { return core_.scales(); }
  TensorView zeros() const { return core_.zeros(); }
  TensorView bias() const { return core_.bias(); }

  const LinearConfig& config() const noexcept { return core_.config(); }
  Device device() const noexcept { return core_.device(); }
  bool prepared() const noexcept { return core_.prepared(); }

 private:
  detail::LinearCore core_;
};

}  // namespace mpq

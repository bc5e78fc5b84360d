#include "mpq/linear.hpp"

#include <limits>

#include "core/backend.hpp"
#include "core/format.hpp"
#include "mpq/error.hpp"

namespace mpq {
namespace {

// Kernels index rows and columns with 32-bit integers; element offsets are 64-bit.
constexpr std::int64_t kMaxExtent = std::numeric_limits<std::int32_t>::max() - 1024;

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorCode::invalid_argument, message);
}

void check_extent(const char* name, std::int64_t value, std::int64_t least) {
  if (value < least || value > kMaxExtent) {
    refuse(detail::format("{} is {}, must be in [{}, {}]", name, value, least, kMaxExtent));
  }
}

void check_config(int bits, const LinearConfig& config) {
  if (!is_supported_bits(bits)) {
    throw Error(ErrorCode::unsupported, detail::format("w_bit is {}, must be 1, 2, 4 or 8", bits));
  }
  check_extent("in_features", config.in_features, 1);
  check_extent("out_features", config.out_features, 1);
  if (config.group_size != -1 && config.group_size < 1) {
    refuse(
        detail::format("group_size is {}, must be >= 1, or -1 for one group", config.group_size));
  }
  if (config.dtype != DType::f16 && config.dtype != DType::bf16) {
    refuse(detail::format("dtype is {}, must be f16 or bf16", static_cast<int>(config.dtype)));
  }
}

void check_matrix(const char* name, const ConstMatrix& matrix, std::int64_t cols,
                  const char* cols_name, DType dtype) {
  if (matrix.dtype != dtype) {
    refuse(detail::format("forward: {} is {}, the layer computes in {}", name,
                          to_string(matrix.dtype), to_string(dtype)));
  }
  check_extent(detail::format("forward: rows of {}", name).c_str(), matrix.rows, 0);
  if (matrix.cols != cols) {
    refuse(
        detail::format("forward: {} has {} columns, {} is {}", name, matrix.cols, cols_name, cols));
  }
  if (matrix.rows > 1 && (matrix.ld < cols || matrix.ld > kMaxExtent)) {
    refuse(detail::format("forward: leading dimension of {} is {}, must be in [{}, {}]", name,
                          matrix.ld, cols, kMaxExtent));
  }
  if (matrix.rows == 0) return;
  if (matrix.data == nullptr) {
    refuse(
        detail::format("forward: {} [{}, {}] is a null pointer", name, matrix.rows, matrix.cols));
  }
  if (reinterpret_cast<std::uintptr_t>(matrix.data) % 2 != 0) {
    refuse(detail::format("forward: {} at {} is not aligned to its 2-byte elements", name,
                          matrix.data));
  }
}

}  // namespace

LinearConfig config_of(const WeightsData& weights, DType dtype) {
  return {.in_features = weights.in_features,
          .out_features = weights.out_features,
          .group_size = weights.group_size,
          .dtype = dtype,
          .bias = !weights.bias.empty()};
}

namespace detail {

LinearCore::LinearCore(int bits, const LinearConfig& config, Device device)
    : bits_(bits), config_(config), device_(device) {
  check_config(bits, config);
  backend_ =
      device.is_cpu() ? make_cpu_backend(bits, config) : make_cuda_backend(bits, config, device);
}

LinearCore::~LinearCore() = default;
LinearCore::LinearCore(LinearCore&&) noexcept = default;
LinearCore& LinearCore::operator=(LinearCore&&) noexcept = default;

const Backend& LinearCore::backend(const char* caller, State least) const {
  if (backend_ == nullptr) {
    throw Error(ErrorCode::not_prepared, detail::format("{}: the layer was moved from", caller));
  }
  if (state_ < least) {
    throw Error(ErrorCode::not_prepared,
                detail::format("{} was called before {}", caller,
                               state_ == State::empty ? "load" : "prepare_params"));
  }
  return *backend_;
}

void LinearCore::load(const WeightsData& weights, StreamRef stream) {
  backend("load", State::empty);
  check_structure(weights, bits_);
  const auto same = [](const char* name, std::int64_t have, std::int64_t want) {
    if (have != want) {
      throw Error(
          ErrorCode::invalid_weights,
          detail::format("load: {} of the weights is {}, the layer's is {}", name, have, want));
    }
  };
  same("in_features", weights.in_features, config_.in_features);
  same("out_features", weights.out_features, config_.out_features);
  same("group_size", weights.group_size, config_.group_size);
  same("number of biases", static_cast<std::int64_t>(weights.bias.size()),
       config_.bias ? config_.out_features : 0);
  state_ = State::empty;
  backend_->load(weights, stream);
  state_ = State::loaded;
}

void LinearCore::check_parameters() const {
  backend("check_parameters", State::loaded).check_values();
}

void LinearCore::prepare_params(const PrepareOptions& options, StreamRef stream) {
  backend("prepare_params", State::loaded);
  check_extent("prepare_params: batch", options.batch, 1);
  if (state_ == State::prepared) return;
  backend_->prepare(options, stream);
  state_ = State::prepared;
}

std::size_t LinearCore::prepare_bytes() const {
  const Backend& backend = this->backend("prepare_bytes", State::loaded);
  return prepared() ? 0 : backend.prepare_bytes();
}

std::size_t LinearCore::workspace_bytes(std::int64_t max_batch) const {
  check_extent("workspace_bytes: max_batch", max_batch, 0);
  return backend("workspace_bytes", State::loaded).workspace_bytes(max_batch);
}

void LinearCore::forward(const ConstMatrix& x, const Matrix& y, const Workspace& workspace,
                         const ForwardOptions& options, StreamRef stream) const {
  const Backend& backend = this->backend("forward", State::prepared);
  check_matrix("x", x, config_.in_features, "in_features", config_.dtype);
  check_matrix("y", y, config_.out_features, "out_features", config_.dtype);
  if (x.rows != y.rows) {
    refuse(detail::format("forward: x has {} rows, y has {}", x.rows, y.rows));
  }
  if (x.rows == 0) return;
  const std::size_t needed = backend.workspace_bytes(x.rows);
  if (workspace.bytes < needed || (needed > 0 && workspace.data == nullptr)) {
    refuse(detail::format("forward: the workspace has {} bytes, batch {} needs {}",
                          workspace.data == nullptr ? 0 : workspace.bytes, x.rows, needed));
  }
  if (needed > 0 && reinterpret_cast<std::uintptr_t>(workspace.data) % kWorkspaceAlignment != 0) {
    refuse(detail::format("forward: the workspace at {} is not aligned to {} bytes", workspace.data,
                          kWorkspaceAlignment));
  }
  backend.forward(x, y, workspace, options, stream);
}

std::string LinearCore::describe(std::int64_t batch, const ForwardOptions& options) const {
  check_extent("describe: batch", batch, 0);
  return backend("describe", State::loaded).describe(batch, options);
}

TensorView LinearCore::qweight() const {
  return backend("qweight", State::loaded).qweight();
}
TensorView LinearCore::scales() const {
  return backend("scales", State::loaded).scales();
}
TensorView LinearCore::zeros() const {
  return backend("zeros", State::loaded).zeros();
}
TensorView LinearCore::bias() const {
  return backend("bias", State::loaded).bias();
}

}  // namespace detail
}  // namespace mpq

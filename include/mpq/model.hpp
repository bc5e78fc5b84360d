#pragma once
// Layers whose width is known at run time, and what is done to a whole model's layers at once.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <ranges>
#include <string>
#include <utility>
#include <variant>

#include "mpq/linear.hpp"

namespace mpq {

/// A Linear of a width known at run time, as mixed-width checkpoints need. Same members, same
/// rules.
class AnyLinear {
 public:
  using Variant = std::variant<Linear<1>, Linear<2>, Linear<4>, Linear<8>>;

  /// An empty layer. Throws Error(unsupported) for a width that has no kernels.
  AnyLinear(int bits, const LinearConfig& config, Device device);
  /// A loaded layer.
  AnyLinear(const AnyQuantizedWeights& weights, Device device, DType dtype, StreamRef stream = {});
  template <int WBits>
  AnyLinear(Linear<WBits>&& linear) : linear_(std::move(linear)) {}

  int w_bit() const noexcept {
    return std::visit([](const auto& l) { return l.w_bit; }, linear_);
  }
  /// Throws Error(invalid_argument) if the weights' width is not the layer's.
  void load(const AnyQuantizedWeights& weights, StreamRef stream = {});
  void check_parameters() const {
    std::visit([](const auto& l) { l.check_parameters(); }, linear_);
  }
  void prepare_params(StreamRef stream = {}) {
    std::visit([&](auto& l) { l.prepare_params(stream); }, linear_);
  }
  void prepare_params(const PrepareOptions& options, StreamRef stream) {
    std::visit([&](auto& l) { l.prepare_params(options, stream); }, linear_);
  }
  std::size_t prepare_bytes() const {
    return std::visit([](const auto& l) { return l.prepare_bytes(); }, linear_);
  }
  std::size_t workspace_bytes(std::int64_t max_batch) const {
    return std::visit([&](const auto& l) { return l.workspace_bytes(max_batch); }, linear_);
  }
  void forward(const ConstMatrix& x, const Matrix& y, const Workspace& workspace,
               StreamRef stream = {}) const {
    std::visit([&](const auto& l) { l.forward(x, y, workspace, stream); }, linear_);
  }
  void forward(const ConstMatrix& x, const Matrix& y, const Workspace& workspace,
               const ForwardOptions& options, StreamRef stream) const {
    std::visit([&](const auto& l) { l.forward(x, y, workspace, options, stream); }, linear_);
  }
  std::string describe(std::int64_t batch, const ForwardOptions& options = {}) const {
    return std::visit([&](const auto& l) { return l.describe(batch, options); }, linear_);
  }
  TensorView qweight() const {
    return std::visit([](const auto& l) { return l.qweight(); }, linear_);
  }
  TensorView scales() const {
    return std::visit([](const auto& l) { return l.scales(); }, linear_);
  }
  TensorView zeros() const {
    return std::visit([](const auto& l) { return l.zeros(); }, linear_);
  }
  TensorView bias() const {
    return std::visit([](const auto& l) { return l.bias(); }, linear_);
  }
  const LinearConfig& config() const noexcept {
    return std::visit([](const auto& l) -> const LinearConfig& { return l.config(); }, linear_);
  }
  Device device() const noexcept {
    return std::visit([](const auto& l) { return l.device(); }, linear_);
  }
  bool prepared() const noexcept {
    return std::visit([](const auto& l) { return l.prepared(); }, linear_);
  }

  /// The layer itself, for code that is specialised by width.
  const Variant& variant() const noexcept { return linear_; }
  Variant& variant() noexcept { return linear_; }

 private:
  Variant linear_;
};

/// Called after each layer: how many are done, of how many.
using Progress = std::function<void(std::size_t done, std::size_t total)>;

/// check_parameters and prepare_params on every layer of a model. `layers` is a range of AnyLinear
/// or Linear<>, of pointers to them, or a map to either. Idempotent: prepared layers are passed
/// over.
template <std::ranges::forward_range Layers>
void prepare_layers(Layers&& layers, StreamRef stream = {}, const Progress& progress = {}) {
  const auto layer_of = [](auto& element) -> auto& {
    if constexpr (requires { element.second.prepare_params(); }) {
      return element.second;
    } else if constexpr (requires { element.second->prepare_params(); }) {
      return *element.second;
    } else if constexpr (requires { element->prepare_params(); }) {
      return *element;
    } else {
      return element;
    }
  };
  const auto total = static_cast<std::size_t>(std::ranges::distance(layers));
  std::size_t done = 0;
  for (auto& element : layers) {
    auto& layer = layer_of(element);
    if (!layer.prepared()) {
      layer.check_parameters();
      layer.prepare_params(stream);
    }
    if (++done; progress) progress(done, total);
  }
}

}  // namespace mpq

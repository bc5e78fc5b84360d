#include "cpu/cpu_backend.hpp"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "core/format.hpp"
#include "cpu/prepare.hpp"
#include "cpu/thread_pool.hpp"
#include "mpq/error.hpp"

namespace mpq::detail {
namespace {

// A thread's scratch for the kernels: it grows to what the largest layer needs and then stays, so
// that forward does not allocate once it has run.
float* thread_scratch(std::size_t floats) {
  thread_local DeviceBuffer buffer;
  const std::size_t bytes = floats * sizeof(float);
  if (buffer.size() < bytes) buffer = DeviceBuffer(Device::cpu(), bytes);
  return static_cast<float*>(buffer.data());
}

template <class T>
TensorView view(const std::vector<T>& values, ElementType element, std::int64_t rows) {
  if (values.empty()) return {};
  return {.data = values.data(),
          .element = element,
          .shape = {rows, static_cast<std::int64_t>(values.size()) / rows},
          .device = Device::cpu()};
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(int bits, const LinearConfig& config, const cpu::KernelSet& kernels)
      : bits_(bits), config_(config), kernels_(kernels) {}

  void load(const WeightsData& weights, StreamRef) override {
    loaded_ = weights;
    prepared_.reset();
    values_error_.reset();
  }

  void check_values() const override {
    if (loaded_) return mpq::check_values(*loaded_, bits_);
    if (values_error_) throw *values_error_;
  }

  void prepare(const PrepareOptions& options, StreamRef) override {
    if (options.packed_statistics.value_or(false)) {
      throw Error(ErrorCode::unsupported,
                  "prepare_params: the CPU does not compute with packed statistics");
    }
    // What check_parameters says afterwards has to be found out while the loaded form is there.
    try {
      mpq::check_values(*loaded_, bits_);
    } catch (const Error& error) {
      values_error_ = error;
    }
    prepared_ = cpu::prepare(*loaded_, bits_);
    loaded_.reset();
  }

  std::size_t prepare_bytes() const override { return 0; }

  // x as floats, in the layer's column order, for the rows that one pass over the weights computes.
  std::size_t workspace_bytes(std::int64_t max_batch) const override {
    const std::int64_t rows = std::min<std::int64_t>(max_batch, cpu::kTileRows);
    return static_cast<std::size_t>(rows * k_padded()) * sizeof(float);
  }

  void forward(const ConstMatrix& x, const Matrix& y, const Workspace& workspace,
               const ForwardOptions& options, StreamRef) const override {
    if (options.kernel != -1) {
      throw Error(
          ErrorCode::invalid_argument,
          detail::format("forward: kernel is {}, the CPU has none to choose from: must be -1",
                         options.kernel));
    }
    const cpu::Layer& layer = prepared_->layer;
    auto* const floats = static_cast<float*>(workspace.data);
    for (std::int64_t row = 0; row < x.rows; row += cpu::kTileRows) {
      const cpu::Activations activations{
          .rows = std::min<std::int64_t>(cpu::kTileRows, x.rows - row),
          .x = floats,
          .y = static_cast<std::uint16_t*>(y.data) + row * y.ld,
          .ld_y = y.ld,
          .dtype = config_.dtype};
      const auto* source = static_cast<const std::uint16_t*>(x.data) + row * x.ld;
      // Below some ten thousand values waking a thread takes longer than converting them.
      const std::int64_t grain = std::max<std::int64_t>(1, 32768 / layer.k_padded);
      parallel_for(activations.rows, grain, [&](Range range) {
        for (std::int64_t r = range.begin; r < range.end; ++r) {
          convert_row(source + r * x.ld, floats + r * layer.k_padded);
        }
      });
      parallel_for(layer.tiles(), cpu::kBlockTiles, [&](Range range) {
        kernels_.forward(layer, activations, range.begin, range.end,
                         thread_scratch(cpu::scratch_floats(layer)));
      });
    }
  }

  std::string describe(std::int64_t, const ForwardOptions&) const override {
    const int threads = thread_count();
    return detail::format("cpu {} {} thread{}", kernels_.name, threads, threads == 1 ? "" : "s");
  }

  TensorView qweight() const override {
    if (loaded_) {
      return view(loaded_->qweight, ElementType::u32, ceil_div(config_.in_features * bits_, 32));
    }
    return {.data = prepared_->layer.codes,
            .element = ElementType::u32,
            .shape = {prepared_->layer.tiles(), prepared_->layer.tile_words()},
            .device = Device::cpu()};
  }
  TensorView scales() const override {
    const DType dtype = loaded_ ? loaded_->dtype : prepared_->layer.scale_dtype;
    return view(loaded_ ? loaded_->scales : prepared_->scales,
                dtype == DType::f16 ? ElementType::f16 : ElementType::bf16, statistics_rows());
  }
  TensorView zeros() const override {
    const auto& affine = loaded_ ? loaded_->affine_zeros : prepared_->affine_zeros;
    if (!affine.empty()) return view(affine, ElementType::f32, statistics_rows());
    return view(loaded_ ? loaded_->zeros : prepared_->zeros, ElementType::u16, statistics_rows());
  }
  TensorView bias() const override {
    return view(loaded_ ? loaded_->bias : prepared_->bias, ElementType::f32, 1);
  }

 private:
  std::int64_t k_padded() const { return round_up(config_.in_features, cpu::chunk_columns(bits_)); }

  std::int64_t statistics_rows() const {
    return loaded_ ? loaded_->groups() : prepared_->layer.tiles();
  }

  void convert_row(const std::uint16_t* source, float* target) const {
    const std::vector<std::int32_t>& order = prepared_->source;
    const std::int64_t k = config_.in_features;
    if (order.empty()) {
      kernels_.convert(source, k, config_.dtype, target);
    } else {
      constexpr std::int64_t kBatch = 256;
      std::uint16_t gathered[kBatch];
      for (std::int64_t begin = 0; begin < k; begin += kBatch) {
        const std::int64_t count = std::min(kBatch, k - begin);
        for (std::int64_t i = 0; i < count; ++i) {
          gathered[i] = source[order[static_cast<std::size_t>(begin + i)]];
        }
        kernels_.convert(gathered, count, config_.dtype, target + begin);
      }
    }
    std::fill(target + k, target + prepared_->layer.k_padded, 0.0f);
  }

  int bits_;
  LinearConfig config_;
  const cpu::KernelSet& kernels_;
  std::optional<WeightsData> loaded_;
  std::optional<cpu::PreparedLayer> prepared_;
  std::optional<Error> values_error_;  // of what is prepared
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(int bits, const LinearConfig& config,
                                          const cpu::KernelSet& kernels) {
  return std::make_unique<CpuBackend>(bits, config, kernels);
}

std::unique_ptr<Backend> make_cpu_backend(int bits, const LinearConfig& config) {
  return make_cpu_backend(bits, config, *cpu::available_kernels().front());
}

}  // namespace mpq::detail

#pragma once
// A layer on a CUDA device.

#include <bit>
#include <cstdint>
#include <optional>
#include <string>

#include "arguments.hpp"
#include "core/backend.hpp"
#include "cuda/device_arrays.hpp"
#include "instances.hpp"
#include "mpq/column_order.hpp"
#include "mpq/layout.hpp"
#include "prepare.hpp"

namespace mpq::detail {

/// The functions of a row of kKernelTable that there is code for.
const kernels::KernelEntry& kernel_entry(int row, int bits, DType dtype);

/// Its buffers and their preparation (prepare.cpp), and the launches of forward (cuda_backend.cpp).
class CudaBackend final : public Backend {
 public:
  CudaBackend(int bits, const LinearConfig& config, Device device)
      : bits_(bits), config_(config), device_(device), traits_(traits_of(device)) {}

  void load(const WeightsData& weights, StreamRef stream) override;
  void check_values() const override;
  void prepare(const PrepareOptions& options, StreamRef stream) override;
  std::size_t prepare_bytes() const override;
  std::size_t workspace_bytes(std::int64_t max_batch) const override {
    return mpq::workspace_bytes(problem(max_batch), max_batch);
  }
  void forward(const ConstMatrix& x, const Matrix& y, const Workspace& workspace,
               const ForwardOptions& options, StreamRef stream) const override;
  std::string describe(std::int64_t batch, const ForwardOptions& options) const override {
    return to_string(plan(problem(batch), traits_, options));
  }

  TensorView qweight() const override { return parameters_.qweight.view(); }
  TensorView scales() const override {
    return parameters_.statistics.empty() ? parameters_.scales.view()
                                          : parameters_.statistics.view();
  }
  TensorView zeros() const override {
    if (!parameters_.bases.empty()) return parameters_.bases.view();
    if (!parameters_.affine_zeros.empty()) return parameters_.affine_zeros.view();
    if (!parameters_.narrow_affine_zeros.empty()) return parameters_.narrow_affine_zeros.view();
    if (!parameters_.narrow_zeros.empty()) return parameters_.narrow_zeros.view();
    return parameters_.zeros.view();
  }
  TensorView bias() const override { return parameters_.bias.view(); }

 private:
  // As loaded: WeightsData's shapes. Prepared: KernelLayout, [kernel groups, n_padded]; integer
  // zeros are then ZeroCodes, in zeros or narrow_zeros, shared_zero_rows() where there were none.
  struct Parameters {
    DeviceArray<std::uint32_t> qweight;
    DeviceArray<std::uint16_t> scales, zeros;
    DeviceArray<std::uint8_t> narrow_zeros;
    DeviceArray<float> affine_zeros, bias;
    // Prepared only, where all are numbers of the activations' type; in place of affine_zeros with
    // the widths of reads_narrow_zeros.
    DeviceArray<std::uint16_t> narrow_affine_zeros;
    // Prepared only, in place of scales and affine zeros: packed statistics. Bases are two words.
    DeviceArray<std::uint8_t> statistics;
    DeviceArray<std::uint32_t> bases;
  };
  // Double-quantised statistics as loaded.
  struct Compressed {
    DoubleQuantized::Kind kind;
    bool per_channel;
    std::int64_t dq_group_size;
    bool scales_are_small;  // below general_scale_limit
    DeviceArray<std::uint8_t> codes;
    DeviceArray<std::uint16_t> scale_scales, scale_zeros, zero_scales, zero_zeros;
  };

  std::int64_t k() const { return config_.in_features; }
  std::int64_t n() const { return config_.out_features; }
  std::int64_t n_padded() const { return round_up(n(), layout_align_n(bits_)); }
  std::int64_t groups() const {
    return config_.group_size == -1 ? 1 : ceil_div(k(), config_.group_size);
  }
  // log2 of a kernel group's columns; 31: one group.
  int group_shift() const {
    if (order_.group_columns >= order_.k_padded) return 31;
    return std::countr_zero(static_cast<std::uint64_t>(order_.group_columns));
  }
  Problem problem(std::int64_t m) const {
    return {.bits = bits_,
            .dtype = config_.dtype,
            .zeros = zero_kind_,
            .m = m,
            .n = n(),
            .k = k(),
            .n_padded = n_padded(),
            .k_padded = order_.k_padded,
            .group_columns = order_.group_columns,
            .gathers = order_.gathers(),
            .fuses = fused_shift_.has_value(),
            .scales_are_large = scales_are_large_};
  }
  kernels::Statistics statistics() const;
  static constexpr std::size_t kFusedPartsBytes =
      kernels::kFusedParts * sizeof(kernels::FusedParameters);
  // Whether integer zeros become affine ones, which the kernels of other scales then need not ask:
  // where these are few.
  bool keeps_affine_zeros_only() const {
    return config_.dtype == DType::f16 && scale_dtype_ != config_.dtype;
  }
  // Finds out what plain parameters, as loaded, are as numbers: scales that are of the activations'
  // type whatever they are stored as, and affine zeros that are integers, become that. Returns
  // whether zeros are still affine and, like scales, numbers of the activations' type, and kernels
  // of this width are the better for it. Sets scales_are_large_.
  bool find_numbers(StreamRef stream);
  // How far scales have to be lowered where one multiply-add makes the layer's weights.
  std::optional<int> find_fused_shift(const Parameters& ready, StreamRef stream) const;
  // Why the statistics cannot stay packed; null if they can.
  const char* why_not_packed() const;
  bool packs_statistics(const PrepareOptions& options) const;
  void decompress(DeviceArray<std::uint16_t>& scales, DeviceArray<float>& affine_zeros,
                  StreamRef stream) const;
  kernels::ForwardArguments arguments(const ConstMatrix& x, const Matrix& y,
                                      const Plan& plan) const;

  int bits_;
  LinearConfig config_;
  Device device_;
  DeviceTraits traits_;
  DType scale_dtype_ = DType::f16;
  ZeroKind zero_kind_ = ZeroKind::none;
  bool prepared_ = false;
  std::optional<int> fused_shift_;  // none: it could not
  bool scales_are_large_ = false;   // of a layer whose weights are general ones
  ColumnOrder order_;
  Parameters parameters_;
  std::optional<Compressed> compressed_;
  DeviceArray<std::int32_t> source_;  // order_.source, where x is gathered
};

}  // namespace mpq::detail

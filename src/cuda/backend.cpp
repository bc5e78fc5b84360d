// A layer on a CUDA device: its buffers, their preparation, and the launches of forward.

#include "core/backend.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <optional>

#include "arguments.hpp"
#include "core/remembered_plan.hpp"
#include "cuda/cuda_error.hpp"
#include "cuda/device_arrays.hpp"
#include "fused_weights.hpp"
#include "gather.hpp"
#include "instances.hpp"
#include "mpq/layout.hpp"
#include "prepare.hpp"

namespace mpq::detail {
namespace {

template <KernelFamily Family, Isa Set, DType T>
const kernels::KernelEntries& entries_of(int bits) {
  switch (bits) {
    case 1:
      return kernels::kernel_entries<Family, Set, 1, T>();
    case 2:
      return kernels::kernel_entries<Family, Set, 2, T>();
    case 4:
      return kernels::kernel_entries<Family, Set, 4, T>();
    default:
      return kernels::kernel_entries<Family, Set, 8, T>();
  }
}

template <KernelFamily Family, Isa Set>
const kernels::KernelEntries& entries_of(int bits, DType dtype) {
  return dtype == DType::f16 ? entries_of<Family, Set, DType::f16>(bits)
                             : entries_of<Family, Set, DType::bf16>(bits);
}

const kernels::KernelEntry& kernel_entry(int row, int bits, DType dtype) {
  const auto index = static_cast<std::size_t>(row);
  const KernelConfig& config = kKernelTable[index];
  if (config.family == KernelFamily::decode) {
    return entries_of<KernelFamily::decode, Isa::sm80>(bits, dtype)[index];
  }
  return config.isa == Isa::sm80
             ? entries_of<KernelFamily::prefill, Isa::sm80>(bits, dtype)[index]
             : entries_of<KernelFamily::prefill, Isa::sm90a>(bits, dtype)[index];
}

constexpr std::size_t kFusedPartsBytes = kernels::kFusedParts * sizeof(kernels::FusedParameters);

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
    // Prepared only, in place of scales and affine zeros: packed statistics. Bases are two words.
    DeviceArray<std::uint8_t> statistics;
    DeviceArray<std::uint32_t> bases;
  };
  // Double-quantised statistics as loaded.
  struct Compressed {
    DoubleQuantized::Kind kind;
    bool per_channel;
    std::int64_t dq_group_size;
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
            .fuses = fused_shift_.has_value()};
  }
  kernels::Statistics statistics() const;
  // Whether one multiply-add could make its weights, as far as the kinds of its parameters tell.
  bool may_fuse_weights() const {
    return zero_kind_ != ZeroKind::affine && scale_dtype_ == config_.dtype;
  }
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
  ColumnOrder order_;
  Parameters parameters_;
  std::optional<Compressed> compressed_;
  DeviceArray<std::int32_t> source_;  // order_.source, where x is gathered
};

void CudaBackend::load(const WeightsData& weights, StreamRef stream) {
  ColumnOrder order = order_columns(bits_, k(), weights.group_size, weights.g_idx);
  // The kernels count a layer's parameters with 32 bits.
  constexpr std::int64_t kMostParameters = std::numeric_limits<std::uint32_t>::max();
  if (order.kernel_groups() > kMostParameters / n_padded()) {
    throw Error(ErrorCode::unsupported,
                detail::format("{} groups of {} output channels are more than {} scales",
                               order.kernel_groups(), n_padded(), kMostParameters));
  }
  const CurrentDevice current(device_);
  const auto put = [&](const auto& host, std::int64_t rows, std::int64_t cols) {
    return upload(device_, host, rows, cols, stream);
  };
  Parameters loaded;
  loaded.qweight = put(weights.qweight, ceil_div(k() * bits_, 32), n());
  loaded.scales = put(weights.scales, groups(), n());
  loaded.zeros = put(weights.zeros, groups(), n());
  loaded.affine_zeros = put(weights.affine_zeros, groups(), n());
  loaded.bias = put(weights.bias, 1, n());
  std::optional<Compressed> compressed;
  if (weights.double_quantized) {
    const DoubleQuantized& dq = *weights.double_quantized;
    const std::int64_t rows = dq.per_channel ? 1 : groups();
    const std::int64_t cols = dq.per_channel ? n() : n() / dq.dq_group_size;
    compressed = Compressed{.kind = dq.kind,
                            .per_channel = dq.per_channel,
                            .dq_group_size = dq.dq_group_size,
                            .codes = put(dq.codes, groups(), n()),
                            .scale_scales = put(dq.scale_scales, rows, cols),
                            .scale_zeros = put(dq.scale_zeros, rows, cols),
                            .zero_scales = put(dq.zero_scales, rows, cols),
                            .zero_zeros = put(dq.zero_zeros, rows, cols)};
  }
  order_ = std::move(order);
  scale_dtype_ = weights.dtype;
  zero_kind_ = weights.zero_kind;
  source_ = {};
  parameters_ = std::move(loaded);
  compressed_ = std::move(compressed);
  prepared_ = false;
}

void CudaBackend::decompress(DeviceArray<std::uint16_t>& scales, DeviceArray<float>& affine_zeros,
                             StreamRef stream) const {
  const kernels::Statistics source = statistics();
  scales = DeviceArray<std::uint16_t>(device_, groups(), n());
  if (source.zero_scales != nullptr) affine_zeros = DeviceArray<float>(device_, groups(), n());
  check_cuda(kernels::decompress_statistics(source, scale_dtype_, scales.data(),
                                            affine_zeros.data(), stream.get()),
             "decompress_statistics");
}

kernels::Statistics CudaBackend::statistics() const {
  const Compressed& c = *compressed_;
  const bool with_zeros = c.kind == DoubleQuantized::Kind::scale_and_zero;
  return {.codes = c.codes.data(),
          .scale_scales = c.scale_scales.data(),
          .scale_zeros = c.scale_zeros.data(),
          .zero_scales = with_zeros ? c.zero_scales.data() : nullptr,
          .zero_zeros = with_zeros ? c.zero_zeros.data() : nullptr,
          .groups = groups(),
          .n = n(),
          .dq_group_size = c.dq_group_size,
          .per_channel = c.per_channel};
}

const char* CudaBackend::why_not_packed() const {
  if (!compressed_) return "they are not double-quantised";
  if (compressed_->kind != DoubleQuantized::Kind::scale_and_zero) return "zeros are integers";
  if (scale_dtype_ != config_.dtype) return "they are not of the activations' type";
  if (compressed_->per_channel || compressed_->dq_group_size % kStatisticChannels != 0) {
    return "dq_group_size is not a multiple of 32";
  }
  return nullptr;
}

bool CudaBackend::packs_statistics(const PrepareOptions& options) const {
  const char* obstacle = why_not_packed();
  if (options.packed_statistics.value_or(false) && obstacle != nullptr) {
    throw Error(ErrorCode::unsupported,
                detail::format("prepare_params: statistics cannot stay packed, {}", obstacle));
  }
  return obstacle == nullptr && options.packed_statistics.value_or(
                                    keeps_statistics_packed(problem(options.batch), traits_));
}

void CudaBackend::check_values() const {
  const CurrentDevice current(device_);
  const auto refuse = [&](const char* what, std::int64_t index, std::int64_t columns) {
    std::int64_t row = index / columns, column = index % columns;
    if (prepared_) {
      row = order_.group[static_cast<std::size_t>(row)];
      column = parameter_channel(column);
    }
    throw Error(
        ErrorCode::invalid_weights,
        detail::format("{} of group {}, output channel {} is not finite", what, row, column));
  };
  const auto check = [&](const char* what, const auto& array) {
    const auto bad = find_non_finite(array, scale_dtype_);
    if (bad) refuse(what, *bad, array.cols());
  };
  if (compressed_) {
    DeviceArray<std::uint16_t> scales;
    DeviceArray<float> affine_zeros;
    decompress(scales, affine_zeros, {});
    check("the decompressed scale", scales);
    check("the decompressed zero", affine_zeros);
  }
  if (!parameters_.statistics.empty()) {
    const auto& codes = parameters_.statistics;
    DeviceArray<std::uint16_t> scales(device_, codes.rows(), codes.cols());
    DeviceArray<float> affine_zeros(device_, codes.rows(), codes.cols());
    check_cuda(kernels::unpack_statistics(
                   codes.data(), reinterpret_cast<const uint2*>(parameters_.bases.data()),
                   scale_dtype_, codes.size(), scales.data(), affine_zeros.data(), nullptr),
               "unpack_statistics");
    check("the decompressed scale", scales);
    check("the decompressed zero", affine_zeros);
  }
  check("the scale", parameters_.scales);
  check("the zero", parameters_.affine_zeros);
  if (const auto bad = find_non_finite(parameters_.bias, scale_dtype_)) {
    throw Error(ErrorCode::invalid_weights,
                detail::format("the bias of output channel {} is not finite", *bad));
  }
}

std::size_t CudaBackend::prepare_bytes() const {
  const bool affine = zero_kind_ == ZeroKind::affine;
  const std::int64_t statistics = order_.kernel_groups() * n_padded();
  const std::int64_t zero_rows = zero_kind_ == ZeroKind::integer
                                     ? order_.kernel_groups()
                                     : shared_zero_rows(bits_, order_.group_columns);
  std::int64_t bytes = order_.k_padded * bits_ / 8 * n_padded() + 2 * statistics +
                       (affine ? 4 * statistics : zero_rows * n_padded() * (bits_ < 8 ? 1 : 2)) +
                       4 * (order_.k_padded + order_.kernel_groups()) +
                       (may_fuse_weights() ? static_cast<std::int64_t>(kFusedPartsBytes) : 0);
  if (compressed_) bytes += groups() * n() * (affine ? 6 : 2);  // decoded, not yet in order
  return static_cast<std::size_t>(bytes);
}

std::optional<int> CudaBackend::find_fused_shift(const Parameters& ready, StreamRef stream) const {
  if (!may_fuse_weights()) return std::nullopt;
  std::vector<kernels::FusedParameters> parts(kernels::kFusedParts);
  DeviceBuffer buffer(device_, kFusedPartsBytes);
  const auto find = [&](const auto& zeros) {
    const auto* each = zero_kind_ == ZeroKind::integer ? zeros.data() : nullptr;
    check_cuda(kernels::find_fused_parameters(
                   ready.scales.data(), scale_dtype_, each, ready.scales.size(),
                   static_cast<kernels::FusedParameters*>(buffer.data()), stream.get()),
               "find_fused_parameters");
  };
  if (bits_ < 8) {
    find(ready.narrow_zeros);
  } else {
    find(ready.zeros);
  }
  buffer.copy_to_host(parts.data(), kFusedPartsBytes, 0, stream);
  kernels::FusedParameters all;
  for (const kernels::FusedParameters& part : parts) {
    all.largest = std::max(all.largest, part.largest);
    all.least = std::min(all.least, part.least);
    all.inexact |= part.inexact;
  }
  if (all.inexact != 0) return std::nullopt;
  return kernels::fused_shift(bits_, scale_dtype_, all.largest, all.least);
}

void CudaBackend::prepare(const PrepareOptions& options, StreamRef stream) {
  const bool packed = packs_statistics(options);
  const CurrentDevice current(device_);
  for (int row = 0; row < kKernelCount; ++row) {
    if (is_available(kKernelTable[static_cast<std::size_t>(row)], bits_, traits_)) {
      check_cuda(kernel_entry(row, bits_, config_.dtype)
                     .prepare(static_cast<int>(traits_.shared_bytes_per_block)),
                 "cudaFuncSetAttribute");
    }
  }
  if (order_.gathers()) {
    check_cuda(kernels::prepare_gather(static_cast<int>(traits_.shared_bytes_per_block)),
               "cudaFuncSetAttribute");
  }
  if (compressed_ && !packed) decompress(parameters_.scales, parameters_.affine_zeros, stream);

  Parameters ready;
  auto source = upload(device_, order_.source, 1, order_.k_padded, stream);
  const auto group = upload(device_, order_.group, 1, order_.kernel_groups(), stream);
  const auto spread = [&](const auto& from, auto& to) {
    if (from.empty()) return;
    to = {device_, order_.kernel_groups(), n_padded()};
    check_cuda(kernels::spread_groups(from.data(), n(), group.data(), order_.kernel_groups(),
                                      n_padded(), to.data(), stream.get()),
               "spread_groups");
  };
  if (packed) {
    spread(compressed_->codes, ready.statistics);
    ready.bases = {device_, order_.kernel_groups(), n_padded() / kStatisticChannels * 2};
    check_cuda(kernels::pack_statistic_bases(
                   statistics(), group.data(), order_.kernel_groups(), n_padded(),
                   reinterpret_cast<uint2*>(ready.bases.data()), stream.get()),
               "pack_statistic_bases");
  }
  spread(parameters_.scales, ready.scales);
  spread(parameters_.affine_zeros, ready.affine_zeros);
  const auto middle = static_cast<std::uint16_t>(1u << (bits_ - 1));
  const std::int64_t zero_rows = shared_zero_rows(bits_, order_.group_columns);
  const auto count = static_cast<std::size_t>(zero_rows * n_padded());
  if (bits_ < 8) {
    spread(parameters_.zeros, ready.narrow_zeros);
    if (zero_kind_ == ZeroKind::none) {
      const std::vector same(count, static_cast<std::uint8_t>(middle));
      ready.narrow_zeros = upload(device_, same, zero_rows, n_padded(), stream);
    }
  } else {
    spread(parameters_.zeros, ready.zeros);
    if (zero_kind_ == ZeroKind::none) {
      ready.zeros = upload(device_, std::vector(count, middle), zero_rows, n_padded(), stream);
    }
  }
  // Codes depend on zeros there (is_stored_complemented).
  const bool complemented = bits_ == 2 && zero_kind_ == ZeroKind::integer;
  ready.qweight = DeviceArray<std::uint32_t>(device_, order_.k_padded * bits_ / 32, n_padded());
  check_cuda(kernels::repack_codes(bits_, parameters_.qweight.data(), k(), n(), source.data(),
                                   order_.k_padded, n_padded(),
                                   complemented ? ready.narrow_zeros.data() : nullptr,
                                   group_shift(), ready.qweight.data(), stream.get()),
             "repack_codes");
  if (complemented) {
    check_cuda(kernels::negate_complemented(ready.scales.size(), ready.scales.data(),
                                            ready.narrow_zeros.data(), stream.get()),
               "negate_complemented");
  }
  const auto fused_shift = find_fused_shift(ready, stream);
  // What was loaded is freed below: the kernels must have read it.
  check_cuda(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
  ready.bias = std::move(parameters_.bias);
  parameters_ = std::move(ready);
  source_ = std::move(source);
  compressed_.reset();
  fused_shift_ = fused_shift;
  prepared_ = true;
}

kernels::ForwardArguments CudaBackend::arguments(const ConstMatrix& x, const Matrix& y,
                                                 const Plan& plan) const {
  const KernelConfig& config = plan.config();
  const auto split = KSplit::of(static_cast<int>(order_.k_padded) / decode_unit_k(config, bits_),
                                config.warps() / plan.warps_n, plan.chunks, plan.cluster);
  const int tile_rows = decode_tile_rows(config, bits_, order_.group_columns);
  const auto log2 = [](int power) { return std::countr_zero(static_cast<unsigned>(power)); };
  return {.x = x.data,
          .ldx = x.ld,
          .y = y.data,
          .ldy = y.ld,
          .qweight = reinterpret_cast<const uint4*>(parameters_.qweight.data()),
          .scales = parameters_.scales.data(),
          .zeros = parameters_.narrow_zeros.empty()
                       ? static_cast<const void*>(parameters_.zeros.data())
                       : parameters_.narrow_zeros.data(),
          .affine_zeros = parameters_.affine_zeros.data(),
          .statistics = parameters_.statistics.data(),
          .statistic_bases = reinterpret_cast<const uint2*>(parameters_.bases.data()),
          .bias = parameters_.bias.data(),
          .zeros_stride = zero_kind_ == ZeroKind::none ? 0 : static_cast<int>(n_padded()),
          .m = static_cast<int>(x.rows),
          .n = static_cast<int>(n()),
          .k = static_cast<int>(k()),
          .k_padded = static_cast<int>(order_.k_padded),
          .n_padded = static_cast<int>(n_padded()),
          .group_shift = group_shift(),
          .scales_are_bf16 = scale_dtype_ == DType::bf16,
          .fused_shift = static_cast<std::int8_t>(fused_shift_.value_or(-1)),
          .programmatic = false,
          .chunks = plan.chunks,
          .part = split.part,
          .x_pitch = decode_x_pitch(config, bits_, split),
          .cluster_shift = log2(plan.cluster),
          .warps_n_shift = log2(plan.warps_n),
          .slots_shift = log2(decode_row_slots(
              config, static_cast<int>(std::min<std::int64_t>(x.rows, tile_rows)))),
          .tile_rows = tile_rows,
          .column_stride = static_cast<int>(plan.grid_n) / plan.cluster * plan.warps_n};
}

void CudaBackend::forward(const ConstMatrix& x, const Matrix& y, const Workspace& workspace,
                          const ForwardOptions& options, StreamRef stream) const {
  const CurrentDevice current(device_);
  const Plan chosen = remembered_plan(problem(x.rows), device_, traits_, options);
  kernels::ForwardArguments args = arguments(x, y, chosen);
  kernels::Launch launch{.grid_n = chosen.grid_n,
                         .grid_m = chosen.grid_m,
                         .cluster = chosen.cluster,
                         .multicast = chosen.multicast,
                         .clusters = chosen.clusters,
                         .shared_bytes = static_cast<std::size_t>(chosen.shared_bytes),
                         .programmatic = chosen.programmatic,
                         .stream = stream.get()};
  if (chosen.gathers) {
    auto* gathered = static_cast<std::uint16_t*>(workspace.data);
    const kernels::Gather gather{.x = static_cast<const std::uint16_t*>(x.data),
                                 .ldx = x.ld,
                                 .m = static_cast<int>(x.rows),
                                 .k = static_cast<int>(k()),
                                 .source = source_.data(),
                                 .k_padded = static_cast<int>(order_.k_padded),
                                 .out = gathered};
    check_cuda(kernels::gather_columns(gather, traits_.sm_count,
                                       static_cast<int>(traits_.shared_bytes_per_block),
                                       chosen.programmatic, stream.get()),
               "gather_columns");
    args.x = gathered;
    args.ldx = order_.k_padded;
    args.k = args.k_padded;
    // The kernel waits for the gather in any case, so it may always start beside it.
    launch.programmatic = runs_sm90a_code(traits_);
  }
  args.programmatic = launch.programmatic;
  const PlanTail& tail = chosen.tail;
  launch.followed = tail.kernel != -1;
  check_cuda(kernel_entry(chosen.kernel, bits_, config_.dtype).launch(args, launch),
             "forward kernel launch");
  if (tail.kernel == -1) return;
  const kernels::Launch rest{.grid_n = tail.grid_n,
                             .grid_m = tail.grid_m,
                             .cluster = tail.cluster,
                             .multicast = tail.multicast,
                             .clusters = tail.clusters,
                             .first_channel = static_cast<int>(tail.first_channel),
                             .follows = true,
                             .programmatic = true,
                             .stream = stream.get()};
  check_cuda(kernel_entry(tail.kernel, bits_, config_.dtype).launch(args, rest),
             "forward kernel launch");
}

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(int bits, const LinearConfig& config, Device device) {
  return std::make_unique<CudaBackend>(bits, config, device);
}

}  // namespace mpq::detail

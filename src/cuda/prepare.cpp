// What a layer is loaded with, and how it becomes what the kernels read.

#include "prepare.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "cuda/cuda_backend.hpp"
#include "cuda/cuda_error.hpp"
#include "gather.hpp"
#include "general_weights.hpp"
#include "mpq/error.hpp"

namespace mpq::detail {

namespace {

// Whether whatever the codes are scales are below general_scale_limit.
bool has_small_scales(const DoubleQuantized& statistics, DType dtype) {
  for (std::size_t i = 0; i < statistics.scale_scales.size(); ++i) {
    const float zero = to_float(statistics.scale_zeros[i], dtype);
    const float most = std::max(std::fabs(zero), std::fabs(15 - zero));
    const float scale = std::fabs(to_float(statistics.scale_scales[i], dtype)) * most;
    // (Half of the limit, for products are rounded; check_parameters is who finds what is no
    // number.)
    if (scale >= kernels::general_scale_limit(dtype) / 2) return false;
  }
  return true;
}

}  // namespace

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
                            .scales_are_small = has_small_scales(dq, weights.dtype),
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
  fused_shift_.reset();
  scales_are_large_ = false;
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
  if (!compressed_->scales_are_small) return "scales may be too large";
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
  check("the zero", parameters_.narrow_affine_zeros);
  if (const auto bad = find_non_finite(parameters_.bias, scale_dtype_)) {
    throw Error(ErrorCode::invalid_weights,
                detail::format("the bias of output channel {} is not finite", *bad));
  }
}

std::size_t CudaBackend::prepare_bytes() const {
  const bool becomes_affine = zero_kind_ != ZeroKind::affine && keeps_affine_zeros_only();
  const bool affine = zero_kind_ == ZeroKind::affine || becomes_affine;
  const std::int64_t statistics = order_.kernel_groups() * n_padded();
  const std::int64_t zero_rows = zero_kind_ == ZeroKind::integer
                                     ? order_.kernel_groups()
                                     : shared_zero_rows(bits_, order_.group_columns);
  std::int64_t bytes = order_.k_padded * bits_ / 8 * n_padded() + 2 * statistics +
                       (affine ? 6 * statistics : zero_rows * n_padded() * (bits_ < 8 ? 1 : 2)) +
                       4 * (order_.k_padded + order_.kernel_groups()) +
                       static_cast<std::int64_t>(kFusedPartsBytes);
  if (becomes_affine) bytes += 4 * groups() * n();              // not yet in order
  if (compressed_) bytes += groups() * n() * (affine ? 6 : 2);  // decoded, not yet in order
  return static_cast<std::size_t>(bytes);
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
  const bool narrow = !packed && find_numbers(stream);

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
  if (narrow) {
    ready.narrow_affine_zeros = {device_, order_.kernel_groups(), n_padded()};
    check_cuda(
        kernels::round_values(ready.affine_zeros.data(), config_.dtype, ready.affine_zeros.size(),
                              ready.narrow_affine_zeros.data(), stream.get()),
        "round_values");
  }
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
  if (!fused_shift) ready.narrow_affine_zeros = {};
  if (!ready.narrow_affine_zeros.empty() && reads_narrow_zeros(bits_)) ready.affine_zeros = {};
  ready.bias = std::move(parameters_.bias);
  parameters_ = std::move(ready);
  source_ = std::move(source);
  compressed_.reset();
  fused_shift_ = fused_shift;
  prepared_ = true;
}

}  // namespace mpq::detail

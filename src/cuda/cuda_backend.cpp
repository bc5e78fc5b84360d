// The launches of forward.

#include "cuda/cuda_backend.hpp"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <memory>

#include "core/remembered_plan.hpp"
#include "cuda/cuda_error.hpp"
#include "gather.hpp"

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

}  // namespace

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
          .affine_zeros = parameters_.affine_zeros.empty()
                              ? static_cast<const void*>(parameters_.narrow_affine_zeros.data())
                              : parameters_.affine_zeros.data(),
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
          .x_is_aligned = false,
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
                         .affine_zeros = parameters_.narrow_affine_zeros.data(),
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
  args.x_is_aligned = kernels::rows_are_aligned(args.x, args.ldx, args.m);
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
                             .affine_zeros = parameters_.narrow_affine_zeros.data(),
                             .programmatic = true,
                             .stream = stream.get()};
  check_cuda(kernel_entry(tail.kernel, bits_, config_.dtype).launch(args, rest),
             "forward kernel launch");
}

std::unique_ptr<Backend> make_cuda_backend(int bits, const LinearConfig& config, Device device) {
  return std::make_unique<CudaBackend>(bits, config, device);
}

}  // namespace mpq::detail

// What a layer's parameters are as numbers, and how its weights can be made of them.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "cuda/cuda_backend.hpp"
#include "cuda/cuda_error.hpp"
#include "fused_weights.hpp"

namespace mpq::detail {

bool CudaBackend::find_numbers(StreamRef stream) {
  const bool affine = zero_kind_ == ZeroKind::affine;
  if (!affine && scale_dtype_ == config_.dtype) return false;
  const std::int64_t count = parameters_.scales.size();
  std::uint32_t other = 0;
  DeviceBuffer found(device_, sizeof(other));
  found.copy_from_host(&other, sizeof(other), 0, stream);
  check_cuda(kernels::find_other_numbers(bits_, parameters_.scales.data(), scale_dtype_,
                                         parameters_.affine_zeros.data(), config_.dtype, count,
                                         static_cast<std::uint32_t*>(found.data()), stream.get()),
             "find_other_numbers");
  found.copy_to_host(&other, sizeof(other), 0, stream);
  compressed_.reset();  // what it held is plain now, and may not stay of its type or kind
  if (scale_dtype_ != config_.dtype && (other & kernels::kScaleOfOtherType) == 0) {
    check_cuda(kernels::convert_scales(parameters_.scales.data(), scale_dtype_, config_.dtype,
                                       count, stream.get()),
               "convert_scales");
    scale_dtype_ = config_.dtype;
  }
  if (affine && (other & kernels::kZeroNoInteger) == 0 && !keeps_affine_zeros_only()) {
    DeviceArray<std::uint16_t> zeros(device_, groups(), n());
    check_cuda(kernels::find_integer_zeros(parameters_.scales.data(), scale_dtype_,
                                           parameters_.affine_zeros.data(), count, zeros.data(),
                                           stream.get()),
               "find_integer_zeros");
    check_cuda(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
    parameters_.zeros = std::move(zeros);
    parameters_.affine_zeros = {};
    zero_kind_ = ZeroKind::integer;
  }
  if (zero_kind_ != ZeroKind::affine && keeps_affine_zeros_only()) {
    DeviceArray<float> zeros(device_, groups(), n());
    check_cuda(kernels::find_affine_zeros(parameters_.scales.data(), scale_dtype_,
                                          parameters_.zeros.data(), 1 << (bits_ - 1), count,
                                          zeros.data(), stream.get()),
               "find_affine_zeros");
    check_cuda(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
    parameters_.zeros = {};
    parameters_.affine_zeros = std::move(zeros);
    zero_kind_ = ZeroKind::affine;
  }
  const bool general = zero_kind_ == ZeroKind::affine || scale_dtype_ != config_.dtype;
  scales_are_large_ = general && (other & kernels::kScaleTooLarge) != 0;
  return zero_kind_ == ZeroKind::affine && fuses_affine_zeros(bits_) &&
         scale_dtype_ == config_.dtype && (other & kernels::kZeroOfOtherType) == 0;
}

std::optional<int> CudaBackend::find_fused_shift(const Parameters& ready, StreamRef stream) const {
  if (scale_dtype_ != config_.dtype) return std::nullopt;
  if (zero_kind_ == ZeroKind::affine && ready.narrow_affine_zeros.empty()) return std::nullopt;
  std::vector<kernels::FusedParameters> parts(kernels::kFusedParts);
  DeviceBuffer buffer(device_, kFusedPartsBytes);
  const auto find = [&](const auto& zeros) {
    const auto* each = zero_kind_ == ZeroKind::integer ? zeros.data() : nullptr;
    check_cuda(kernels::find_fused_parameters(ready.scales.data(), scale_dtype_, each,
                                              ready.narrow_affine_zeros.data(), ready.scales.size(),
                                              static_cast<kernels::FusedParameters*>(buffer.data()),
                                              stream.get()),
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
  const auto shift = kernels::fused_shift(bits_, scale_dtype_, all.largest, all.least);
  const bool affine = zero_kind_ == ZeroKind::affine;
  if (affine && shift.value_or(0) > kernels::most_affine_shift(scale_dtype_)) return std::nullopt;
  return shift;
}

}  // namespace mpq::detail

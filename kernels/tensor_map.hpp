#pragma once
// Tensor maps for TMA, made on the host: arithmetic only, no call to the device. The driver's
// function is found through the runtime, so that nothing links to the driver's library.

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>

namespace mpq::kernels {

using TensorMapEncoder = decltype(&cuTensorMapEncodeTiled);

/// Null where the driver has none.
inline TensorMapEncoder tensor_map_encoder() {
  static const TensorMapEncoder encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
    const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                                12000, cudaEnableDefault, &found);
#else
    const cudaError_t status =
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
    if (status != cudaSuccess) (void)cudaGetLastError();
    const bool usable = status == cudaSuccess && found == cudaDriverEntryPointSuccess;
    return usable ? reinterpret_cast<TensorMapEncoder>(function) : nullptr;
  }();
  return encoder;
}

/// A tensor, and the box of it that one copy moves. The first dimension is the innermost; data and
/// strides are multiples of 16 bytes.
template <std::size_t kRank>
struct TensorMapSpec {
  CUtensorMapDataType type;
  const void* data;
  std::array<cuuint64_t, kRank> extent;
  std::array<cuuint64_t, kRank - 1> stride_bytes;  ///< of all dimensions but the first
  std::array<cuuint32_t, kRank> box;
  CUtensorMapSwizzle swizzle;
};

template <std::size_t kRank>
cudaError_t encode_tensor_map(CUtensorMap& map, const TensorMapSpec<kRank>& spec) {
  const TensorMapEncoder encoder = tensor_map_encoder();
  if (encoder == nullptr) return cudaErrorNotSupported;
  std::array<cuuint32_t, kRank> step;
  step.fill(1);
  // The runtime's error codes have the driver's values.
  return static_cast<cudaError_t>(
      encoder(&map, spec.type, kRank, const_cast<void*>(spec.data), spec.extent.data(),
              spec.stride_bytes.data(), spec.box.data(), step.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
              spec.swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
}

}  // namespace mpq::kernels

// kernels/check_values.cu, whose reduction is the CUDA toolkit's, in plain loops.

#include <cmath>

#include "prepare.hpp"

namespace mpq::kernels {
namespace {

template <class IsBad>
cudaError_t find_first(std::int64_t count, void* temporary, std::size_t& temporary_bytes,
                       std::int64_t* result, IsBad&& is_bad) {
  if (temporary == nullptr) {
    temporary_bytes = 1;
    return cudaSuccess;
  }
  *result = 0;
  while (*result < count && !is_bad(*result)) ++*result;
  return cudaSuccess;
}

}  // namespace

cudaError_t first_non_finite(const std::uint16_t* values, DType dtype, std::int64_t count,
                             void* temporary, std::size_t& temporary_bytes, std::int64_t* result,
                             cudaStream_t) {
  const int exponent = dtype == DType::f16 ? 0x7c00 : 0x7f80;
  return find_first(count, temporary, temporary_bytes, result,
                    [&](std::int64_t i) { return (values[i] & exponent) == exponent; });
}

cudaError_t first_non_finite(const float* values, std::int64_t count, void* temporary,
                             std::size_t& temporary_bytes, std::int64_t* result, cudaStream_t) {
  return find_first(count, temporary, temporary_bytes, result,
                    [&](std::int64_t i) { return !std::isfinite(values[i]); });
}

}  // namespace mpq::kernels

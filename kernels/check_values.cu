#include <cuda_runtime.h>
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>

#include <cstdint>
#include <cub/device/device_reduce.cuh>

#include "prepare.hpp"

namespace mpq::kernels {
namespace {

struct Minimum {
  __host__ __device__ std::int64_t operator()(std::int64_t a, std::int64_t b) const {
    return a < b ? a : b;
  }
};

// Maps an index to itself if the value there has all the bits of `exponent`, else to count.
template <class Value>
struct IndexOfNonFinite {
  const Value* values;
  Value exponent;
  std::int64_t count;
  __host__ __device__ std::int64_t operator()(std::int64_t i) const {
    return (values[i] & exponent) == exponent ? i : count;
  }
};

template <class Value>
cudaError_t reduce_non_finite(const Value* values, Value exponent, std::int64_t count,
                              void* temporary, std::size_t& temporary_bytes, std::int64_t* result,
                              cudaStream_t stream) {
  const auto indices =
      thrust::make_transform_iterator(thrust::make_counting_iterator(std::int64_t{0}),
                                      IndexOfNonFinite<Value>{values, exponent, count});
  return cub::DeviceReduce::Reduce(temporary, temporary_bytes, indices, result, count, Minimum{},
                                   count, stream);
}

}  // namespace

cudaError_t first_non_finite(const std::uint16_t* values, DType dtype, std::int64_t count,
                             void* temporary, std::size_t& temporary_bytes, std::int64_t* result,
                             cudaStream_t stream) {
  const auto exponent = static_cast<std::uint16_t>(dtype == DType::f16 ? 0x7c00 : 0x7f80);
  return reduce_non_finite(values, exponent, count, temporary, temporary_bytes, result, stream);
}

cudaError_t first_non_finite(const float* values, std::int64_t count, void* temporary,
                             std::size_t& temporary_bytes, std::int64_t* result,
                             cudaStream_t stream) {
  return reduce_non_finite(reinterpret_cast<const std::uint32_t*>(values), 0x7f800000u, count,
                           temporary, temporary_bytes, result, stream);
}

}  // namespace mpq::kernels

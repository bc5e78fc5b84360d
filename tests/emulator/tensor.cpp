#include "tensor.hpp"

#include <cstring>

namespace mpq::emulator {

static_assert(sizeof(Tensor) <= sizeof(CUtensorMap));

Tensor tensor_of(const void* map) {
  Tensor tensor;
  std::memcpy(&tensor, map, sizeof(tensor));
  return tensor;
}

namespace {
// function(where an element of the box at `at` lies in shared memory, and in the tensor, or null).
template <class Function>
void for_each_element(const Tensor& tensor, const void* shared, std::array<int, 3> at,
                      Function function) {
  const auto size = static_cast<std::size_t>(tensor.element_bytes);
  std::size_t offset = 0;
  for (std::uint32_t z = 0; z < tensor.box[2]; ++z) {
    for (std::uint32_t y = 0; y < tensor.box[1]; ++y) {
      for (std::uint32_t x = 0; x < tensor.box[0]; ++x, offset += size) {
        const std::uint32_t in_box[3] = {x, y, z};
        unsigned char* element = tensor.data;
        bool inside = true;
        for (int i = 0; i < 3; ++i) {
          const std::int64_t place = at[static_cast<std::size_t>(i)] + std::int64_t{in_box[i]};
          inside = inside && place >= 0 && place < static_cast<std::int64_t>(tensor.extent[i]);
          element += place * static_cast<std::int64_t>(tensor.stride[i]);
        }
        // The swizzle permutes the 16-byte pieces of rows of 128 bytes by the address.
        auto place = reinterpret_cast<std::uintptr_t>(shared) + offset;
        if (tensor.swizzle_128) place ^= (place >> 7 & 7u) << 4;
        function(reinterpret_cast<unsigned char*>(place), inside ? element : nullptr);
      }
    }
  }
}
}  // namespace

std::int64_t copy_box(const Tensor& tensor, void* shared, std::array<int, 3> at) {
  const auto size = static_cast<std::size_t>(tensor.element_bytes);
  std::int64_t bytes = 0;
  for_each_element(tensor, shared, at, [&](unsigned char* to, const unsigned char* element) {
    if (element != nullptr) {
      std::memcpy(to, element, size);
    } else {
      std::memset(to, 0, size);
    }
    bytes += tensor.element_bytes;
  });
  return bytes;
}

void store_box(const Tensor& tensor, const void* shared, std::array<int, 3> at) {
  const auto size = static_cast<std::size_t>(tensor.element_bytes);
  for_each_element(tensor, shared, at, [&](const unsigned char* from, unsigned char* element) {
    if (element != nullptr) std::memcpy(element, from, size);
  });
}

CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* data,
                      const cuuint64_t* extent, const cuuint64_t* strides, const cuuint32_t* box,
                      const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                      CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  Tensor tensor{};
  tensor.data = static_cast<unsigned char*>(data);
  tensor.element_bytes = type == CU_TENSOR_MAP_DATA_TYPE_UINT16   ? 2
                         : type == CU_TENSOR_MAP_DATA_TYPE_UINT64 ? 8
                                                                  : 4;
  tensor.swizzle_128 = swizzle == CU_TENSOR_MAP_SWIZZLE_128B;
  if (rank < 2 || rank > 3 || reinterpret_cast<std::uintptr_t>(data) % 16 != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  for (cuuint32_t i = 0; i < 3; ++i) {
    tensor.extent[i] = i < rank ? extent[i] : 1;
    tensor.box[i] = i < rank ? box[i] : 1;
    tensor.stride[i] = i == 0     ? static_cast<std::uint64_t>(tensor.element_bytes)
                       : i < rank ? strides[i - 1]
                                  : 0;
    if (tensor.extent[i] == 0 || tensor.box[i] == 0 || tensor.box[i] > 256 ||
        (i > 0 && tensor.stride[i] % 16 != 0)) {
      return CUDA_ERROR_INVALID_VALUE;
    }
  }
  if (tensor.box[0] * static_cast<unsigned>(tensor.element_bytes) % 16 != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (tensor.swizzle_128 && tensor.box[0] * static_cast<unsigned>(tensor.element_bytes) > 128) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  std::memcpy(map, &tensor, sizeof(tensor));
  return CUDA_SUCCESS;
}

}  // namespace mpq::emulator

#include "tensor.hpp"

#include <cstring>

namespace mpq::emulator {

static_assert(sizeof(Tensor) <= sizeof(CUtensorMap));

Tensor tensor_of(const void* map) {
  Tensor tensor;
  std::memcpy(&tensor, map, sizeof(tensor));
  return tensor;
}

std::int64_t copy_box(const Tensor& tensor, void* shared, std::array<int, 3> at) {
  auto* target = static_cast<unsigned char*>(shared);
  const auto size = static_cast<std::size_t>(tensor.element_bytes);
  std::size_t offset = 0;
  for (std::uint32_t z = 0; z < tensor.box[2]; ++z) {
    for (std::uint32_t y = 0; y < tensor.box[1]; ++y) {
      for (std::uint32_t x = 0; x < tensor.box[0]; ++x, offset += size) {
        const std::uint32_t in_box[3] = {x, y, z};
        const unsigned char* from = tensor.data;
        bool inside = true;
        for (int i = 0; i < 3; ++i) {
          const std::int64_t place = at[static_cast<std::size_t>(i)] + std::int64_t{in_box[i]};
          inside = inside && place >= 0 && place < static_cast<std::int64_t>(tensor.extent[i]);
          from += place * static_cast<std::int64_t>(tensor.stride[i]);
        }
        // The swizzle permutes the 16-byte pieces of rows of 128 bytes by the address.
        auto place = reinterpret_cast<std::uintptr_t>(target) + offset;
        if (tensor.swizzle_128) place ^= (place >> 7 & 7u) << 4;
        auto* to = reinterpret_cast<unsigned char*>(place);
        if (inside) {
          std::memcpy(to, from, size);
        } else {
          std::memset(to, 0, size);
        }
      }
    }
  }
  return static_cast<std::int64_t>(offset);
}

CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* data,
                      const cuuint64_t* extent, const cuuint64_t* strides, const cuuint32_t* box,
                      const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                      CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  Tensor tensor{};
  tensor.data = static_cast<const unsigned char*>(data);
  tensor.element_bytes = type == CU_TENSOR_MAP_DATA_TYPE_UINT16 ? 2 : 4;
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
  if (tensor.swizzle_128 && tensor.box[0] * static_cast<unsigned>(tensor.element_bytes) > 128) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  std::memcpy(map, &tensor, sizeof(tensor));
  return CUDA_SUCCESS;
}

}  // namespace mpq::emulator

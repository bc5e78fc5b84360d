#pragma once
// Tensor maps of the emulated device.

#include <cuda.h>

#include <array>
#include <cstdint>

namespace mpq::emulator {

struct Tensor {
  unsigned char* data;
  std::uint64_t extent[3], stride[3];  ///< strides in bytes
  std::uint32_t box[3];
  int element_bytes;
  bool swizzle_128;
};

Tensor tensor_of(const void* map);

/// Copies the box at `at`, zeros beyond the tensor, as TMA lays it out. Returns its bytes.
std::int64_t copy_box(const Tensor& tensor, void* shared, std::array<int, 3> at);

/// The other way; leaves out what is beyond the tensor.
void store_box(const Tensor& tensor, const void* shared, std::array<int, 3> at);

/// cuTensorMapEncodeTiled, with the driver's checks of what mpq uses.
CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* data,
                      const cuuint64_t* extent, const cuuint64_t* strides, const cuuint32_t* box,
                      const cuuint32_t* steps, CUtensorMapInterleave interleave,
                      CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                      CUtensorMapFloatOOBfill fill);

}  // namespace mpq::emulator

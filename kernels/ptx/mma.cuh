#pragma once
// Products of a warp, mma.sync and mma.sp.sync: one function per shape and type of elements.

#include <cstdint>

#include "mpq/types.hpp"

namespace mpq::kernels::ptx {

/// d [16, 8] += a [16, 16] b [16, 8], f16.
__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const std::uint32_t (&a)[4],
                                                 std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// The same for bf16.
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const std::uint32_t (&a)[4],
                                                  std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// d [16, 8] = a [16, 32] b [32, 8] + c, a unsigned and b signed 8-bit integers.
__device__ __forceinline__ void mma_m16n8k32_u8s8(int (&d)[4], const std::uint32_t (&a)[4],
                                                  std::uint32_t b0, std::uint32_t b1,
                                                  const int (&c)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]),
        "r"(c[2]), "r"(c[3]));
}

/// d [16, 8] += a [16, 64] b [64, 8], signed 8-bit integers b, with 2:4 structured sparsity: in
/// each four columns of a row of a two elements are not zero. These are 1; which they are is said
/// by two bits each, a nibble of metadata. Of four lanes the first and third have those of row lane
/// / 4, the others of row lane / 4 + 8; of columns 0 to 31 the first two, of the others the last
/// two.
__device__ __forceinline__ void mma_sp_m16n8k64_of_ones(int (&d)[4], std::uint32_t metadata,
                                                        const uint4& b) {
// (Metadata are in order here. Without that word some devices would take longer.)
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1205
  asm("mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32.u8.s8.s32 "
#else
  asm("mma.sp.sync.aligned.m16n8k64.row.col.s32.u8.s8.s32 "
#endif
      "{%0, %1, %2, %3}, {%4, %4, %4, %4}, {%5, %6, %7, %8}, {%0, %1, %2, %3}, %9, 0;"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(0x01010101u), "r"(b.x), "r"(b.y), "r"(b.z), "r"(b.w), "r"(metadata));
}

/// d [16, 8] = number of columns in which both bits are set, a [16, 256], b [256, 8].
__device__ __forceinline__ void mma_m16n8k256_and_popc(int (&d)[4], const std::uint32_t (&a)[4],
                                                       std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(0));
}

template <DType T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4],
                                             std::uint32_t b0, std::uint32_t b1) {
  if constexpr (T == DType::f16) {
    mma_m16n8k16_f16(d, a, b0, b1);
  } else {
    mma_m16n8k16_bf16(d, a, b0, b1);
  }
}

}  // namespace mpq::kernels::ptx

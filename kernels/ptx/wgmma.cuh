#pragma once
// wgmma.mma_async with operand A in registers, and what goes with it (sm_90a only; elsewhere the
// functions exist and do nothing, since kernels that use them are never chosen there).

#include <cstdint>

#include "memory.cuh"
#include "mpq/types.hpp"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MPQ_HAS_WGMMA 1
#else
#define MPQ_HAS_WGMMA 0
#endif

namespace mpq::kernels::ptx {

/// Shared-memory matrix descriptor of a K-major operand B in rows of 128 bytes (64 halves of K),
/// 16-byte pieces permuted by the 128-byte swizzle, as TMA writes them; groups of 8 rows follow
/// each other. `shared` is 1024-byte aligned; 16 halves further along K is the descriptor plus 2.
__device__ __forceinline__ std::uint64_t matrix_descriptor_swizzle_128b(const void* shared) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  constexpr std::uint64_t kStrideBytes = 1024;
  return kSwizzle128 | (kStrideBytes >> 4) << 32 | std::uint64_t{1} << 16 |
         (shared_address(shared) & 0x3ffffu) >> 4;
}

/// Orders register and shared-memory accesses before the wgmmas that follow.
__device__ __forceinline__ void wgmma_fence() {
#if MPQ_HAS_WGMMA
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void wgmma_commit_group() {
#if MPQ_HAS_WGMMA
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

/// Waits until at most kPending of the newest groups are in flight.
template <int kPending>
__device__ __forceinline__ void wgmma_wait_group() {
#if MPQ_HAS_WGMMA
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#endif
}

/// Takes registers from, or gives them back to, the CTA's pool; a whole warpgroup does.
template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_inc() {
#if MPQ_HAS_WGMMA
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_dec() {
#if MPQ_HAS_WGMMA
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

/// Pins registers at this point of the program, so that nothing that touches them moves across the
/// start or the end of a group.
template <int kCount>
__device__ __forceinline__ void hold(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

template <int kCount>
__device__ __forceinline__ void hold(std::uint32_t (&fragments)[kCount][4]) {
#pragma unroll
  for (int i = 0; i < 4 * kCount; ++i) asm volatile("" : "+r"(fragments[i / 4][i % 4])::"memory");
}

// The sums d as an instruction's text and as its operands. Both grow by what the next tile adds.
#define MPQ_TEXT_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define MPQ_TEXT_16 MPQ_TEXT_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define MPQ_TEXT_32 \
  MPQ_TEXT_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MPQ_TEXT_48 \
  MPQ_TEXT_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define MPQ_TEXT_64 \
  MPQ_TEXT_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MPQ_TEXT_80 \
  MPQ_TEXT_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define MPQ_TEXT_96 \
  MPQ_TEXT_80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define MPQ_TEXT_128                                                                         \
  MPQ_TEXT_96                                                                                \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, " \
  "%111"                                                                                     \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, "   \
  "%126, %127"
#define MPQ_EIGHT(I)                                                                          \
  "+f"(d[I]), "+f"(d[I + 1]), "+f"(d[I + 2]), "+f"(d[I + 3]), "+f"(d[I + 4]), "+f"(d[I + 5]), \
      "+f"(d[I + 6]), "+f"(d[I + 7])
#define MPQ_SUMS_8 MPQ_EIGHT(0)
#define MPQ_SUMS_16 MPQ_SUMS_8, MPQ_EIGHT(8)
#define MPQ_SUMS_32 MPQ_SUMS_16, MPQ_EIGHT(16), MPQ_EIGHT(24)
#define MPQ_SUMS_48 MPQ_SUMS_32, MPQ_EIGHT(32), MPQ_EIGHT(40)
#define MPQ_SUMS_64 MPQ_SUMS_48, MPQ_EIGHT(48), MPQ_EIGHT(56)
#define MPQ_SUMS_80 MPQ_SUMS_64, MPQ_EIGHT(64), MPQ_EIGHT(72)
#define MPQ_SUMS_96 MPQ_SUMS_80, MPQ_EIGHT(80), MPQ_EIGHT(88)
#define MPQ_SUMS_128 MPQ_SUMS_96, MPQ_EIGHT(96), MPQ_EIGHT(104), MPQ_EIGHT(112), MPQ_EIGHT(120)

#if MPQ_HAS_WGMMA
#define MPQ_WGMMA_OF(TYPE, COLUMNS, COUNT, A_B)                                      \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16.f32." TYPE "." TYPE \
               " {" MPQ_TEXT_##COUNT "}, " A_B ", 1, 1, 1, 0;"                       \
               : MPQ_SUMS_##COUNT                                                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#else
#define MPQ_WGMMA_OF(TYPE, COLUMNS, COUNT, A_B) static_cast<void>(0)
#endif

// d [64, COLUMNS] += a [64, 16] b [16, COLUMNS]; a warp has 16 rows, as in mma.m16n8k16. COUNT is
// half of COLUMNS, A_B the text of what follows the sums.
#define MPQ_WGMMA_K16(COLUMNS, COUNT, A_B)                                                \
  template <DType T>                                                                      \
  __device__ __forceinline__ void wgmma_k16(float(&d)[COUNT], const std::uint32_t(&a)[4], \
                                            std::uint64_t b) {                            \
    if constexpr (T == DType::f16) {                                                      \
      MPQ_WGMMA_OF("f16", COLUMNS, COUNT, A_B);                                           \
    } else {                                                                              \
      MPQ_WGMMA_OF("bf16", COLUMNS, COUNT, A_B);                                          \
    }                                                                                     \
  }
MPQ_WGMMA_K16(16, 8, "{%8, %9, %10, %11}, %12")
MPQ_WGMMA_K16(32, 16, "{%16, %17, %18, %19}, %20")
MPQ_WGMMA_K16(64, 32, "{%32, %33, %34, %35}, %36")
MPQ_WGMMA_K16(96, 48, "{%48, %49, %50, %51}, %52")
MPQ_WGMMA_K16(128, 64, "{%64, %65, %66, %67}, %68")
MPQ_WGMMA_K16(160, 80, "{%80, %81, %82, %83}, %84")
MPQ_WGMMA_K16(192, 96, "{%96, %97, %98, %99}, %100")
MPQ_WGMMA_K16(256, 128, "{%128, %129, %130, %131}, %132")
#undef MPQ_WGMMA_K16
#undef MPQ_WGMMA_OF
#undef MPQ_SUMS_128
#undef MPQ_SUMS_96
#undef MPQ_SUMS_80
#undef MPQ_SUMS_64
#undef MPQ_SUMS_48
#undef MPQ_SUMS_32
#undef MPQ_SUMS_16
#undef MPQ_SUMS_8
#undef MPQ_EIGHT
#undef MPQ_TEXT_128
#undef MPQ_TEXT_96
#undef MPQ_TEXT_80
#undef MPQ_TEXT_64
#undef MPQ_TEXT_48
#undef MPQ_TEXT_32
#undef MPQ_TEXT_16
#undef MPQ_TEXT_8

}  // namespace mpq::kernels::ptx

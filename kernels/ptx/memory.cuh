#pragma once
// Loads that plain C++ cannot express: streaming global loads, cp.async, ldmatrix.

#include <cstdint>
#include <type_traits>

namespace mpq::kernels::ptx {

/// 16 bytes that are read once: through the read-only path, leaving L1 to what is reused.
__device__ __forceinline__ uint4 ld_global_nc_no_allocate(const uint4* address) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}

/// The same value; compilers cannot tell, and compute what depends on it where it stands, not ahead
/// of a loop.
template <class T>
__device__ __forceinline__ T opaque(T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  if constexpr (std::is_same_v<T, float>) {
    asm volatile("" : "+f"(value));
  } else if constexpr (sizeof(T) == 4) {
    asm volatile("" : "+r"(value));
  } else {
    asm volatile("" : "+l"(value));
  }
  return value;
}

/// Whatever a register holds, where nobody reads what comes of it.
__device__ __forceinline__ std::uint32_t any_word() {
  std::uint32_t word;
  asm("" : "=r"(word));
  return word;
}

/// a + b, which the compiler does not make a multiplication of where b is a again: two of them are
/// one IADD3, and that has both pipes.
__device__ __forceinline__ int add(int a, int b) {
  int sum;
  asm("add.s32 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
  return sum;
}

/// Waits for a word of the first kBytes of a kernel's arguments, each warp for another one, 64
/// bytes on. The first access to such a piece takes a hundred cycles; so all of them are under way
/// at once, and not one after the other as they are needed.
template <int kBytes, class Arguments>
__device__ __forceinline__ void fetch_arguments(const Arguments& arguments) {
  static_assert(kBytes <= sizeof(Arguments));
  constexpr int kPieces = (kBytes + 63) / 64;
  const auto* words = reinterpret_cast<const std::uint32_t*>(&arguments);
  const std::uint32_t word = words[threadIdx.x / 32 % kPieces * 16];
  asm volatile(  // a use that compilers cannot leave out
      "{\n.reg .pred p;\n"
      "setp.eq.u32 p, %0, 1;\n"
      "@p nanosleep.u32 0;\n}" ::"r"(word));
}

/// The shared memory that a kernel was launched with.
__device__ __forceinline__ unsigned char* dynamic_shared_memory() {
  extern __shared__ __align__(1024) unsigned char bytes[];
  return bytes;
}

/// The same, in a register: compilers otherwise compute where it lies wherever it is used, which
/// takes 40 cycles.
__device__ __forceinline__ unsigned char* dynamic_shared_memory_held() {
  const int address = opaque(static_cast<int>(__cvta_generic_to_shared(dynamic_shared_memory())));
  return static_cast<unsigned char*>(__cvta_shared_to_generic(static_cast<std::uint32_t>(address)));
}

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// The address of its place in CTA `rank` of the cluster (sm_90).
__device__ __forceinline__ std::uint32_t shared_address_in(const void* pointer, int rank) {
  std::uint32_t there = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(there)
               : "r"(shared_address(pointer)), "r"(rank));
#endif
  return there;
}

/// Copies `bytes` (0 to 16) to 16 aligned bytes of shared memory and fills the rest with zero.
/// `source` must be 16-byte aligned.
__device__ __forceinline__ void cp_async_16_zfill(void* shared, const void* source, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(source), "r"(bytes)
               : "memory");
}

/// Starts the way of a line of memory to the L2 cache.
__device__ __forceinline__ void prefetch_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

/// How long what a copy reads stays in L2: as createpolicy makes them on 9.0, for all of the bytes.
/// (What that instruction returns would be moved to uniform registers for every copy.)
enum class L2Policy : std::uint64_t {
  evict_first = 0x12f0000000000000u,  ///< it is not read again
  evict_normal = 0x1000000000000000u
};

/// Copies 16 bytes.
__device__ __forceinline__ void cp_async_16(void* shared, const void* source) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
               "l"(source)
               : "memory");
}

/// The same of what is not read again.
__device__ __forceinline__ void cp_async_16_evict_first(void* shared, const void* source) {
#if __CUDA_ARCH__ == 900
  asm volatile(
      "cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
      "l"(source), "l"(static_cast<std::uint64_t>(L2Policy::evict_first))
      : "memory");
#else
  cp_async_16(shared, source);
#endif
}

__device__ __forceinline__ void cp_async_commit_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits until at most `kPending` of this thread's newest groups are in flight.
template <int kPending>
__device__ __forceinline__ void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void ldmatrix_x4(std::uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}

}  // namespace mpq::kernels::ptx

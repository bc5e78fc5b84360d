#pragma once
// The bulk copy engine (sm_90): global to shared memory, counted by a transaction barrier, and
// back, by groups; and stmatrix, by which tiles leave registers.

#include <cstdint>

#include "memory.cuh"

namespace mpq::kernels::ptx {

/// `bytes` contiguous bytes; addresses and bytes are multiples of 16.
__device__ __forceinline__ void cp_async_bulk(void* shared, const void* source, int bytes,
                                              std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(source), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

/// The box of a two-dimensional tensor map at element x of row y; zeros beyond the tensor.
__device__ __forceinline__ void cp_async_bulk_tensor_2d(void* shared, const void* map, int x, int y,
                                                        std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(shared)),
      "l"(map), "r"(x), "r"(y), "r"(shared_address(barrier))
      : "memory");
}

/// The same into the same place of every CTA of the cluster whose bit is set in `ctas`, counted by
/// the barriers in the same place.
__device__ __forceinline__ void cp_async_bulk_tensor_2d_multicast(void* shared, const void* map,
                                                                  int x, int y,
                                                                  std::uint64_t* barrier,
                                                                  std::uint16_t ctas) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(shared)),
      "l"(map), "r"(x), "r"(y), "r"(shared_address(barrier)), "h"(ctas)
      : "memory");
}

/// The box of a three-dimensional tensor map.
__device__ __forceinline__ void cp_async_bulk_tensor_3d(void* shared, const void* map, int x, int y,
                                                        int z, std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(shared_address(shared)),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(shared_address(barrier))
      : "memory");
}

/// The same, with a policy.
__device__ __forceinline__ void cp_async_bulk_tensor_3d(void* shared, const void* map, int x, int y,
                                                        int z, std::uint64_t* barrier,
                                                        L2Policy policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(shared_address(shared)),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(shared_address(barrier)),
      "l"(static_cast<std::uint64_t>(policy))
      : "memory");
}

/// The other way: what lies in shared memory to the box of a two-dimensional tensor map, but for
/// what is beyond the tensor. Part of the thread's next group.
__device__ __forceinline__ void cp_async_bulk_tensor_2d_store(const void* map, int x, int y,
                                                              const void* shared) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map),
      "r"(x), "r"(y), "r"(shared_address(shared))
      : "memory");
}
/// Ends a group of copies from shared memory.
__device__ __forceinline__ void cp_async_bulk_commit_group() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/// Until all of this thread's groups but the last kPending have read shared memory.
template <int kPending>
__device__ __forceinline__ void cp_async_bulk_wait_group_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

/// Brings a tensor map (a __grid_constant__ parameter) near.
__device__ __forceinline__ void prefetch_tensormap(const void* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/// Makes this thread's writes to shared memory visible to bulk copies and to wgmma.
__device__ __forceinline__ void fence_proxy_async() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/// Four 8x8 matrices of 16-bit elements, transposed on the way: a lane's register holds elements
/// (2 * (lane % 4), lane / 4) and the one below it; lane i gives the address of row i % 8 of
/// matrix i / 8.
__device__ __forceinline__ void stmatrix_trans(void* shared_row, const std::uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   shared_address(shared_row)),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

/// Transposes an 8x8 matrix of 16-bit elements, whose rows are the registers of four lanes each.
__device__ __forceinline__ std::uint32_t movmatrix_trans(std::uint32_t row) {
  std::uint32_t column;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(column) : "r"(row));
  return column;
}

}  // namespace mpq::kernels::ptx

#pragma once
// Thread-block clusters and programmatic dependent launch: sm_90 and later; elsewhere a cluster is
// one CTA and a launch depends on all of its predecessor.

#include <cstdint>

#include "ptx/memory.cuh"

namespace mpq::kernels::ptx {

/// Arrives at the cluster's barrier without ordering memory.
__device__ __forceinline__ void barrier_cluster_arrive_relaxed() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}

/// Waits for the arrival of all threads of the cluster.
__device__ __forceinline__ void barrier_cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/// A barrier in shared memory that `count` arrivals complete a phase of, with all bytes expected.
__device__ __forceinline__ void mbarrier_init(std::uint64_t* barrier, unsigned count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
               : "memory");
}

/// Makes initialised mbarriers visible to the cluster that arrives after this.
__device__ __forceinline__ void fence_mbarrier_init() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

/// Arrives and expects `bytes` more from asynchronous stores.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(std::uint64_t* barrier, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
#endif
}

/// Waits until the phase of the given parity is complete, and acquires what it waited for.
__device__ __forceinline__ void mbarrier_wait(std::uint64_t* barrier, unsigned parity) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#endif
}

/// Stores `value` at the place of `local` in CTA `rank` of the cluster, where the mbarrier at the
/// place of `barrier` counts its bytes.
__device__ __forceinline__ void st_async(float* local, float value, std::uint64_t* barrier,
                                         int rank) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .b32 target, counter;\n"
      "mapa.shared::cluster.u32 target, %0, %3;\n"
      "mapa.shared::cluster.u32 counter, %2, %3;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [target], %1, [counter];\n}" ::"r"(
          shared_address(local)),
      "r"(__float_as_uint(value)), "r"(shared_address(barrier)), "r"(rank)
      : "memory");
#endif
}

/// Lets the next kernel in the stream start, if it was launched to depend programmatically.
__device__ __forceinline__ void griddepcontrol_launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/// Waits until the kernels before this one are complete and their writes visible.
__device__ __forceinline__ void griddepcontrol_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace mpq::kernels::ptx

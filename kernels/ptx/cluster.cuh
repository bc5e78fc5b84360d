#pragma once
// Thread-block clusters and programmatic dependent launch: sm_90 and later; elsewhere a cluster is
// one CTA and a launch depends on all of its predecessor.

#include <cstdint>

#include "memory.cuh"

namespace mpq::kernels::ptx {

/// This CTA's rank in its cluster.
__device__ __forceinline__ int cluster_rank() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

/// The same, read where it stands: not worth a register in between, but it takes a while.
__device__ __forceinline__ int cluster_rank_anew() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

/// The cluster's index in a grid of one dimension.
__device__ __forceinline__ int cluster_index() {
  int index;
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(index));
  return index;
}

/// The clusters of such a grid.
__device__ __forceinline__ int cluster_count() {
  int count;
  asm("mov.u32 %0, %%nclusterid.x;" : "=r"(count));
  return count;
}

/// True in one lane of a warp, all of whose lanes are here. Compilers know that what follows runs
/// in one lane, and put operands of copies into uniform registers without a loop over lanes.
__device__ __forceinline__ bool elect_one() {
#if __CUDA_ARCH__ >= 900
  std::uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(elected));
  return elected != 0;
#else
  return threadIdx.x % 32 == 0;
#endif
}

/// Releases this thread's writes to shared memory to the cluster.
__device__ __forceinline__ void barrier_cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

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

/// The place of `local` in CTA `rank` of the cluster, and the mbarrier in the place of `barrier`
/// there, which counts the bytes that are stored.
class ClusterTarget {
 public:
  ClusterTarget() = default;
  __device__ __forceinline__ ClusterTarget(const float* local, const std::uint64_t* barrier,
                                           int rank)
      : place_(shared_address_in(local, rank)), counter_(shared_address_in(barrier, rank)) {}
  /// So many floats and mbarriers further.
  __device__ __forceinline__ ClusterTarget moved(int floats, int barriers) const {
    ClusterTarget to = *this;
    to.place_ += static_cast<std::uint32_t>(floats) * 4u;
    to.counter_ += static_cast<std::uint32_t>(barriers) * 8u;
    return to;
  }
  /// Found here, not where it is needed.
  __device__ __forceinline__ void hold() { place_ = opaque(place_), counter_ = opaque(counter_); }
  __device__ __forceinline__ std::uint32_t place() const { return place_; }
  __device__ __forceinline__ std::uint32_t counter() const { return counter_; }

 private:
  std::uint32_t place_, counter_;
};

/// Stores one float, or four, 16-byte aligned.
template <int kCount>
__device__ __forceinline__ void st_async(const ClusterTarget& to, const float (&values)[kCount]) {
  static_assert(kCount == 1 || kCount == 4);
#if __CUDA_ARCH__ >= 900
  if constexpr (kCount == 4) {
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
        "[%5];" ::"r"(to.place()),
        "f"(values[0]), "f"(values[1]), "f"(values[2]), "f"(values[3]), "r"(to.counter())
        : "memory");
  } else {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(
                     to.place()),
                 "f"(values[0]), "r"(to.counter())
                 : "memory");
  }
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

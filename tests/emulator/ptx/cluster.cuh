#pragma once
// Emulated: clusters. Launches are never programmatic here: a kernel's predecessor has ended.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "engine.hpp"

namespace mpq::kernels::ptx {

inline int cluster_rank() {
  return emulator::cta().rank;
}
inline int cluster_rank_anew() {
  return cluster_rank();
}
inline int cluster_index() {
  return static_cast<int>(emulator::block_index().x / emulator::cta().cluster->ctas.size());
}
inline int cluster_count() {
  return static_cast<int>(emulator::grid_dimensions().x / emulator::cta().cluster->ctas.size());
}

inline bool elect_one() {
  return emulator::lane() == 0;
}

inline void barrier_cluster_arrive() {
  auto& cluster = *emulator::cta().cluster;
  emulator::arrived_generation() = cluster.barrier.generation;
  cluster.barrier.arrive(cluster.threads_per_cta * static_cast<int>(cluster.ctas.size()));
}
inline void barrier_cluster_arrive_relaxed() {
  barrier_cluster_arrive();
}
inline void barrier_cluster_wait() {
  emulator::wait_while("barrier.cluster", emulator::cta().cluster->barrier.generation,
                       emulator::arrived_generation());
}

class ClusterTarget {
 public:
  ClusterTarget() = default;
  ClusterTarget(const float* local, const std::uint64_t* barrier, int rank)
      : local_(local), barrier_(barrier), rank_(rank) {}
  ClusterTarget moved(int floats, int barriers) const {
    return {local_ + floats, barrier_ + barriers, rank_};
  }
  void hold() {}
  unsigned char* place() const { return emulator::in_cta(local_, rank_); }
  emulator::TransactionBarrier& counter() const {
    return emulator::transaction_barrier(barrier_, rank_);
  }

 private:
  const float* local_;
  const std::uint64_t* barrier_;
  int rank_;
};

template <int kCount>
inline void st_async(const ClusterTarget& to, const float (&values)[kCount]) {
  auto* target = to.place();
  auto& b = to.counter();
  std::array<float, kCount> copy;
  std::copy_n(values, kCount, copy.begin());
  emulator::do_later([=, &b] {
    std::memcpy(target, copy.data(), sizeof(copy));
    b.bytes -= static_cast<int>(sizeof(copy));
    b.check();
  });
}
inline void griddepcontrol_launch_dependents() {}
inline void griddepcontrol_wait() {}

}  // namespace mpq::kernels::ptx

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

template <int kCount>
inline void st_async(float* local, const float (&values)[kCount], std::uint64_t* barrier,
                     int rank) {
  auto* target = emulator::in_cta(local, rank);
  auto& b = emulator::transaction_barrier(barrier, rank);
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

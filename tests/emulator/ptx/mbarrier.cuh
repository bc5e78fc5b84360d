#pragma once
// Emulated: mbarriers and named barriers.

#include <cstdint>

#include "engine.hpp"

namespace mpq::kernels::ptx {

inline void mbarrier_init(std::uint64_t* barrier, int arrivals) {
  emulator::cta().transaction_barriers[barrier] = {.expected = arrivals, .pending = arrivals};
}
inline void fence_mbarrier_init() {}

inline void mbarrier_arrive_expect_tx(std::uint64_t* barrier, int bytes) {
  auto& b = emulator::transaction_barrier(barrier);
  b.bytes += bytes;
  --b.pending;
  b.check();
}
inline void mbarrier_arrive(std::uint64_t* barrier) {
  mbarrier_arrive_expect_tx(barrier, 0);
}
inline void mbarrier_arrive_cluster(std::uint64_t* barrier, int rank) {
  auto& b = emulator::transaction_barrier(barrier, rank);
  --b.pending;
  b.check();
}
inline void mbarrier_wait(std::uint64_t* barrier, std::uint32_t parity) {
  auto& b = emulator::transaction_barrier(barrier);
  if ((b.phase & 1u) == parity) emulator::wait_while("mbarrier", b.phase, b.phase);
}

inline void bar_arrive(int id, int threads) {
  emulator::arrive(id, threads);
}
inline void bar_sync(int id, int threads) {
  emulator::sync(id, threads);
}

}  // namespace mpq::kernels::ptx

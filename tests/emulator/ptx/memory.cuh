#pragma once
// Emulated: cp.async and ldmatrix.

#include <cstdint>
#include <cstring>

#include "engine.hpp"

namespace mpq::kernels::ptx {

inline uint4 ld_global_nc_no_allocate(const uint4* address) {
  return *address;
}

template <class T>
T opaque(T value) {
  return value;
}

inline std::uint32_t any_word() {
  return 0xb5b5b5b5u;  // large, should somebody read it
}

inline int add(int a, int b) {
  return a + b;
}

template <int kBytes, class Arguments>
void fetch_arguments(const Arguments&) {}

inline unsigned char* dynamic_shared_memory() {
  return emulator::cta().shared.begin();
}
inline unsigned char* dynamic_shared_memory_held() {
  return dynamic_shared_memory();
}

inline void cp_async_16_zfill(void* shared, const void* source, int bytes) {
  emulator::add_copy([=] {
    std::memset(shared, 0, 16);
    if (bytes > 0) std::memcpy(shared, source, static_cast<std::size_t>(bytes));
  });
}
inline void prefetch_l2(const void*) {}
inline void cp_async_16(void* shared, const void* source) {
  cp_async_16_zfill(shared, source, 16);
}
inline void cp_async_16_evict_first(void* shared, const void* source) {
  cp_async_16(shared, source);
}
enum class L2Policy { evict_first, evict_normal };
inline void cp_async_commit_group() {
  emulator::commit_copies();
}
template <int kPending>
void cp_async_wait_group() {
  emulator::wait_for_copies(kPending);
}

inline void ldmatrix_x4(std::uint32_t (&r)[4], const void* shared_row) {
  struct Lane {
    const unsigned char* row;
    std::uint32_t* r;
  } lane{static_cast<const unsigned char*>(shared_row), r};
  emulator::collective("ldmatrix", lane, [](const auto& all) {
    for (int i = 0; i < 32; ++i) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        std::memcpy(all[i]->r + matrix, all[8 * matrix + i / 4]->row + 4 * (i % 4), 4);
      }
    }
  });
}

}  // namespace mpq::kernels::ptx

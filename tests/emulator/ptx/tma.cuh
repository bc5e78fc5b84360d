#pragma once
// Emulated: bulk copies and stmatrix.

#include <cstdint>
#include <cstring>

#include "engine.hpp"
#include "memory.cuh"
#include "tensor.hpp"

namespace mpq::kernels::ptx {

inline void cp_async_bulk(void* shared, const void* source, int bytes, std::uint64_t* barrier) {
  const auto misaligned = reinterpret_cast<std::uintptr_t>(shared) |
                          reinterpret_cast<std::uintptr_t>(source) |
                          static_cast<std::uintptr_t>(bytes);
  if (misaligned % 16 != 0) throw std::logic_error("emulator: a bulk copy is not aligned to 16");
  auto& b = emulator::transaction_barrier(barrier);
  emulator::do_later([=, &b] {
    std::memcpy(shared, source, static_cast<std::size_t>(bytes));
    b.bytes -= bytes;
    b.check();
  });
}

inline void cp_async_bulk_tensor_2d_multicast(void* shared, const void* map, int x, int y,
                                              std::uint64_t* barrier, std::uint16_t ctas) {
  for (int rank = 0; rank < 16; ++rank) {
    if ((ctas >> rank & 1) == 0) continue;
    auto* target = emulator::in_cta(shared, rank);
    auto& b = emulator::transaction_barrier(barrier, rank);
    const auto tensor = emulator::tensor_of(map);
    emulator::do_later([=, &b] {
      b.bytes -= emulator::copy_box(tensor, target, {x, y, 0});
      b.check();
    });
  }
}
inline void cp_async_bulk_tensor_2d(void* shared, const void* map, int x, int y,
                                    std::uint64_t* barrier) {
  cp_async_bulk_tensor_2d_multicast(shared, map, x, y, barrier,
                                    static_cast<std::uint16_t>(1u << emulator::cta().rank));
}
inline void cp_async_bulk_tensor_3d(void* shared, const void* map, int x, int y, int z,
                                    std::uint64_t* barrier, L2Policy = L2Policy::evict_normal) {
  auto& b = emulator::transaction_barrier(barrier);
  const auto tensor = emulator::tensor_of(map);
  emulator::do_later([=, &b] {
    b.bytes -= emulator::copy_box(tensor, shared, {x, y, z});
    b.check();
  });
}
inline void cp_async_bulk_tensor_2d_store(const void* map, int x, int y, const void* shared) {
  const auto tensor = emulator::tensor_of(map);
  emulator::add_copy([=] { emulator::store_box(tensor, shared, {x, y, 0}); });
}
inline void cp_async_bulk_commit_group() {
  emulator::commit_copies();
}
template <int kPending>
void cp_async_bulk_wait_group_read() {
  emulator::wait_for_copies(kPending);
}
inline void prefetch_tensormap(const void*) {}
inline void fence_proxy_async() {}

template <std::size_t kCount>
inline void stmatrix_trans(void* shared_row, const std::uint32_t (&r)[kCount]) {
  struct Lane {
    unsigned char* row;
    const std::uint32_t* r;
  } lane{static_cast<unsigned char*>(shared_row), r};
  emulator::collective("stmatrix", lane, [](const auto& all) {
    for (int i = 0; i < 32; ++i) {
      for (int matrix = 0; matrix < static_cast<int>(kCount); ++matrix) {
        for (int h = 0; h < 2; ++h) {
          const auto half = static_cast<std::uint16_t>(all[i]->r[matrix] >> (16 * h));
          std::memcpy(all[8 * matrix + 2 * (i % 4) + h]->row + 2 * (i / 4), &half, 2);
        }
      }
    }
  });
}

inline std::uint32_t movmatrix_trans(std::uint32_t row) {
  struct Lane {
    std::uint32_t row, column;
  } lane{row, 0};
  emulator::collective("movmatrix", lane, [](const auto& all) {
    for (int i = 0; i < 32; ++i) {
      for (int h = 0; h < 2; ++h) {
        const int from = 4 * (2 * (i % 4) + h) + i / 4 / 2;
        const std::uint32_t half = all[from]->row >> (16 * (i / 4 % 2)) & 0xffffu;
        all[i]->column |= half << (16 * h);
      }
    }
  });
  return lane.column;
}

}  // namespace mpq::kernels::ptx

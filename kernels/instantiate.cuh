#pragma once
// Turns kernel templates into rows of a KernelEntries table.

#include <cstddef>
#include <utility>

#include "instances.hpp"

namespace mpq::kernels {

/// Fills the rows of `Family` and `Set` that there are for a width; Kernel<Row> gives the
/// functions.
template <KernelFamily Family, Isa Set, int WBits, template <int> class Kernel>
constexpr KernelEntries make_kernel_entries() {
  KernelEntries entries{};
  [&]<std::size_t... I>(std::index_sequence<I...>) {
    (
        [&] {
          if constexpr (kKernelTable[I].family == Family && kKernelTable[I].isa == Set &&
                        is_compiled(kKernelTable[I], WBits)) {
            entries[I] = {Kernel<static_cast<int>(I)>::prepare,
                          Kernel<static_cast<int>(I)>::launch};
          }
        }(),
        ...);
  }
  (std::make_index_sequence<kKernelTable.size()>{});
  return entries;
}

}  // namespace mpq::kernels

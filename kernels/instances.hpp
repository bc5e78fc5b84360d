#pragma once
// Entry points of the compiled kernels, parallel to kKernelTable. Each function template below is
// instantiated for one family, width and type by one translation unit (kernels/instances), so a row
// that the plan can choose and nobody compiled does not link.

#include <cuda_runtime_api.h>

#include <array>

#include "arguments.hpp"
#include "mpq/plan.hpp"

namespace mpq::kernels {

struct KernelEntry {
  /// Sets what the kernel needs on the current device (its shared memory), once.
  cudaError_t (*prepare)() = nullptr;
  cudaError_t (*launch)(const ForwardArguments& args, unsigned grid_n, unsigned grid_m,
                        cudaStream_t stream) = nullptr;
};

/// Entries of one family; null in other families' rows.
using KernelEntries = std::array<KernelEntry, kKernelTable.size()>;

template <KernelFamily Family, int WBits, DType T>
const KernelEntries& kernel_entries();

}  // namespace mpq::kernels

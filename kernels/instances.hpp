#pragma once
// Entry points of the compiled kernels, parallel to kKernelTable. Each function template below is
// instantiated for one family, width and type by one translation unit (kernels/instances), so a row
// that the plan can choose and nobody compiled does not link.

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>

#include "arguments.hpp"
#include "mpq/kernel_shape.hpp"

namespace mpq::kernels {

/// Where and how a kernel is launched.
struct Launch {
  unsigned grid_n = 1, grid_m = 1;
  int cluster = 1;                  ///< along grid_n
  int multicast = 1, clusters = 0;  ///< as in Plan, of the sm90a prefill kernels
  int first_channel = 0;            ///< of the tiles, in sm90a prefill kernels
  bool followed = false;            ///< has a PlanTail, to be launched next
  bool follows = false;             ///< is one
  /// Affine zeros of the activations' type, where one multiply-add makes weights: as in
  /// ForwardArguments; null: none.
  const std::uint16_t* affine_zeros = nullptr;
  std::size_t shared_bytes = 0;  ///< of kernels whose shared memory depends on the plan
  bool programmatic = false;     ///< may start before its predecessor in the stream has ended
  cudaStream_t stream = nullptr;
};

struct KernelEntry {
  /// Lets the kernel have its shared memory on the current device, of which a CTA may take
  /// most_shared_bytes; once.
  cudaError_t (*prepare)(int most_shared_bytes) = nullptr;
  cudaError_t (*launch)(const ForwardArguments& args, const Launch& launch) = nullptr;
};

/// Entries of one family and instruction set; null in other rows.
using KernelEntries = std::array<KernelEntry, kKernelTable.size()>;

template <KernelFamily Family, Isa Set, int WBits, DType T>
const KernelEntries& kernel_entries();

}  // namespace mpq::kernels

#pragma once
// Columns of x in the order of the kernel layout, for checkpoints with act-order.

#include <cuda_runtime_api.h>

#include <cstdint>

namespace mpq::kernels {

/// x [m, k], row r at x + r * ldx, and where its columns go.
struct Gather {
  const std::uint16_t* x;
  std::int64_t ldx;
  int m, k;
  /// out [m, k_padded]: column i is column source[i] of x, or 0 where that is -1. k_padded is a
  /// multiple of 64.
  const std::int32_t* source;
  int k_padded;
  std::uint16_t* out;
};

/// Lets the kernels have their shared memory on the current device, of which a CTA may take
/// most_shared_bytes; once.
cudaError_t prepare_gather(int most_shared_bytes);

/// For a device of sm_count multiprocessors. programmatic: may start before its predecessor in the
/// stream has ended; what comes after it always may.
cudaError_t gather_columns(const Gather& gather, int sm_count, int most_shared_bytes,
                           bool programmatic, cudaStream_t stream);

}  // namespace mpq::kernels

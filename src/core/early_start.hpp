#pragma once
// Kernels that may start before their predecessor in the stream has ended: only in code for 9.0.

#include <cstdint>

#include "mpq/device.hpp"
#include "mpq/plan.hpp"

namespace mpq::detail {

/// By the caller's wish, before whatever the predecessor is.
inline bool in_chain(const DeviceTraits& device, const ForwardOptions& options) {
  return options.programmatic && runs_sm90a_code(device);
}

/// Or before the gather of x, which always lets it.
inline bool begins_early(const Problem& problem, const DeviceTraits& device,
                         const ForwardOptions& options) {
  return (options.programmatic || problem.gathers) && runs_sm90a_code(device);
}

/// Shared memory that keeps every other CTA like it off a CTA's multiprocessor.
inline std::int64_t alone_shared_bytes(const DeviceTraits& device) {
  return pair_shared_bytes(device) + 1;
}

}  // namespace mpq::detail

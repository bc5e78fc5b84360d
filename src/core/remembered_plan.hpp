#pragma once
// Plans are pure functions that take the host up to 15 us, more than a launch: a thread remembers
// its last ones.

#include <array>
#include <cstddef>
#include <cstdint>

#include "mpq/device.hpp"
#include "mpq/plan.hpp"

namespace mpq::detail {

/// plan(problem, traits, options). traits: those of `device`, whenever it is asked for.
inline Plan remembered_plan(const Problem& problem, Device device, const DeviceTraits& traits,
                            const ForwardOptions& options) {
  struct Entry {
    Problem problem{.bits = 0};  // nobody's
    Device device = Device::cpu();
    ForwardOptions options;
    Plan plan;
  };
  static thread_local std::array<Entry, 64> entries;
  std::uint64_t hash = 0;
  for (const std::int64_t value : {problem.m, problem.n, problem.k, std::int64_t{problem.bits},
                                   std::int64_t{options.programmatic}}) {
    hash = (hash ^ static_cast<std::uint64_t>(value)) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
  }
  Entry& entry = entries[static_cast<std::size_t>(hash % entries.size())];
  if (entry.problem != problem || entry.device != device || entry.options != options) {
    const Plan plan = mpq::plan(problem, traits, options);  // may throw
    entry = {problem, device, options, plan};
  }
  return entry.plan;
}

}  // namespace mpq::detail

#pragma once
// How fast a layer is brought into place: packing on the host, loading, preparing on the device.

#include <vector>

#include "cases.hpp"
#include "options.hpp"

namespace mpq::bench {

/// pack_kernel_layout, Linear::load and prepare_params of the options' first shape, at every width:
/// wall-clock time to completion, median of the repetitions. Throughput counts the layer's bytes
/// once.
std::vector<HostRow> measure_host_throughput(const Options& options);

}  // namespace mpq::bench

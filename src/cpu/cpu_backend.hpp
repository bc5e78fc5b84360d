#pragma once
// The CPU back end with a choice of instruction set, for tests; make_cpu_backend takes the best.

#include <memory>

#include "core/backend.hpp"
#include "cpu/kernel_set.hpp"

namespace mpq::detail {

std::unique_ptr<Backend> make_cpu_backend(int bits, const LinearConfig& config,
                                          const cpu::KernelSet& kernels);

}  // namespace mpq::detail

#pragma once
// The timers behind make_timer.

#include "device_timer.hpp"

namespace example {

std::unique_ptr<DeviceTimer> make_cpu_timer();
/// Only in builds with CUDA.
std::unique_ptr<DeviceTimer> make_cuda_timer(mpq::Device device);

}  // namespace example

#include "device_timer.hpp"

#include "timers.hpp"

namespace example {

std::unique_ptr<DeviceTimer> make_timer(mpq::Device device) {
#if MPQ_WITH_CUDA
  if (device.is_cuda()) return make_cuda_timer(device);
#endif
  static_cast<void>(device);
  return make_cpu_timer();
}

}  // namespace example

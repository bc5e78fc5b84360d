#pragma once
// Stands for kernels/launch.cuh: launches go to the emulator, or into the graph that the stream is
// capturing.

#include <cstddef>

#include "engine.hpp"
#include "instances.hpp"
#include "streams.hpp"

namespace mpq::kernels {

template <class... Parameters, class... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), dim3 grid, int threads,
                          std::size_t shared_bytes, const Launch& launch,
                          const Arguments&... arguments) {
  const emulator::LaunchShape shape{.grid = {grid.x, grid.y, grid.z},
                                    .threads = static_cast<unsigned>(threads),
                                    .cluster = static_cast<unsigned>(launch.cluster),
                                    .shared_bytes = shared_bytes};
  emulator::enqueue(launch.stream, [=] { emulator::run(shape, [&] { kernel(arguments...); }); });
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), dim3 grid, int threads,
                          std::size_t shared_bytes, cudaStream_t stream,
                          const Arguments&... arguments) {
  return launch_kernel(kernel, grid, threads, shared_bytes, Launch{.stream = stream}, arguments...);
}

}  // namespace mpq::kernels

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

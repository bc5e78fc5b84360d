#pragma once
// Streams of the emulated device: what is put into one happens at once, unless it is being
// captured.

#include <cuda_runtime_api.h>

#include <functional>

namespace mpq::emulator {

void enqueue(cudaStream_t stream, std::function<void()> work);

}  // namespace mpq::emulator

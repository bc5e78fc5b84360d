// Captures one forward call in a CUDA graph and replays it with inputs that change in place. Every
// replay must give the bits of an ordinary call.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>
#include <mpq/mpq.hpp>
#include <random>
#include <stdexcept>
#include <vector>

namespace {

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

}  // namespace

int main() try {
  if (mpq::Device::cuda_count() == 0) {
    std::puts("no CUDA device");
    return 0;
  }
  constexpr std::int64_t kIn = 2048, kOut = 2048, kBatch = 8;
  constexpr int kReplays = 1000;
  const mpq::Device device = mpq::Device::cuda(0);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> dense(kOut * kIn);
  for (float& w : dense) w = 0.02f * normal(random);

  cudaStream_t stream = nullptr;
  check(cudaSetDevice(device.index()));
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  mpq::AnyLinear linear(mpq::quantize(dense, kOut, kIn, {.bits = 4, .group_size = 128}), device,
                        mpq::DType::f16, stream);
  linear.prepare_params(stream);
  const mpq::DeviceBuffer workspace(device, linear.workspace_bytes(kBatch));
  mpq::DeviceBuffer x(device, 2 * kBatch * kIn), y(device, 2 * kBatch * kOut);
  const auto forward = [&] {
    linear.forward({x.data(), mpq::DType::f16, kBatch, kIn},
                   {y.data(), mpq::DType::f16, kBatch, kOut}, workspace, stream);
  };

  // Capture refuses anything that allocates, synchronises or touches another stream.
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  forward();
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&replay, graph, 0));

  std::vector<std::uint16_t> input(kBatch * kIn), eager(kBatch * kOut), replayed(kBatch * kOut);
  for (int i = 0; i < kReplays; ++i) {
    for (std::uint16_t& value : input) value = mpq::float_to_f16(normal(random));
    x.copy_from_host(input.data(), x.size(), 0, stream);
    forward();
    y.copy_to_host(eager.data(), y.size(), 0, stream);
    check(cudaMemsetAsync(y.data(), 0xff, y.size(), stream));
    check(cudaGraphLaunch(replay, stream));
    y.copy_to_host(replayed.data(), y.size(), 0, stream);
    if (std::memcmp(eager.data(), replayed.data(), y.size()) != 0) {
      std::printf("replay %d differs from an ordinary call\n", i);
      return 1;
    }
  }
  std::printf("%s: %d replays of %s, all equal to ordinary calls bit for bit\n",
              mpq::name_of(device).c_str(), kReplays, linear.describe(kBatch).c_str());
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
} catch (const std::exception& e) {
  std::fprintf(stderr, "cuda_graph: %s\n", e.what());
  return 1;
}

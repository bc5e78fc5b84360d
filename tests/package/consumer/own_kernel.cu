// A decode kernel compiled into this program from mpq::headers, without the library. Checked with
// weights of one: 4-bit codes 9 with zero 8 and scale 1, so y is the sum of x.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <mpq/kernels/decode.cuh>
#include <mpq/kernels/launch.cuh>
#include <vector>

namespace {

template <class T>
T* to_device(const std::vector<T>& host) {
  void* device = nullptr;
  cudaMalloc(&device, host.size() * sizeof(T));
  cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice);
  return static_cast<T*>(device);
}

}  // namespace

int main() {
  using namespace mpq;
  constexpr int kRow = 0;  // of kKernelTable: the smallest decode kernel
  static_assert(kKernelTable[kRow].family == KernelFamily::decode);
  constexpr int kIn = 256, kOut = 128;
  const auto kernel = kernels::decode<4, DType::f16, kRow>;

  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("compiled and linked; no CUDA device to run on");
    return 0;
  }
  const std::vector<std::uint32_t> qweight(
      static_cast<std::size_t>(KernelLayout<4>::words(kIn, kOut)), 0x99999999u);
  const std::vector<std::uint16_t> x(kIn, float_to_f16(0.5f));
  const std::vector<std::uint16_t> scales(kOut, float_to_f16(1.f));
  std::vector<std::uint16_t> y(kOut, 0);
  kernels::ForwardArguments args{};
  args.x = to_device(x);
  args.ldx = kIn;
  auto* y_device = to_device(y);
  args.y = y_device;
  args.ldy = kOut;
  args.qweight = reinterpret_cast<const uint4*>(to_device(qweight));
  args.scales = to_device(scales);
  args.m = 1;
  args.n = args.n_padded = kOut;
  args.k = args.k_padded = kIn;
  args.group_shift = 31;
  const cudaError_t status = kernels::launch_kernel(kernel, dim3(kOut / kKernelTable[kRow].tile_n),
                                                    kKernelTable[kRow].threads(), 0, nullptr, args);
  if (status != cudaSuccess || cudaDeviceSynchronize() != cudaSuccess) {
    std::printf("launch failed: %s\n", cudaGetErrorString(status));
    return 1;
  }
  cudaMemcpy(y.data(), y_device, y.size() * sizeof(y[0]), cudaMemcpyDeviceToHost);
  for (const std::uint16_t value : y) {
    if (f16_to_float(value) != 0.5f * kIn) {
      std::printf("y is %g, expected %g\n", f16_to_float(value), 0.5f * kIn);
      return 1;
    }
  }
  std::puts("y is right");
}

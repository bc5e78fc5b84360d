// A decode kernel compiled into this program from mpq::headers, without the library. Checked with
// weights of one: 4-bit codes 9, scale 1, what is added -8; so y is the sum of x.
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
  constexpr KernelConfig kConfig = kKernelTable[kRow];
  static_assert(kConfig.family == KernelFamily::decode);
  constexpr int kBits = 4, kIn = 256, kOut = 128;
  const auto kernel = kernels::decode<kBits, DType::f16, kRow>;

  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("compiled and linked; no CUDA device to run on");
    return 0;
  }
  const std::vector<std::uint32_t> qweight(
      static_cast<std::size_t>(KernelLayout<kBits>::words(kIn, kOut)), 0x99999999u);
  const std::vector<std::uint16_t> x(kIn, float_to_f16(0.5f));
  const std::vector<std::uint16_t> scales(kOut, float_to_f16(1.f));
  const std::vector<float> affine_zeros(kOut, -8.f);
  std::vector<std::uint16_t> y(kOut, 0);
  kernels::ForwardArguments args{};
  args.x = to_device(x);
  args.ldx = kIn;
  args.x_is_aligned = true;
  auto* y_device = to_device(y);
  args.y = y_device;
  args.ldy = kOut;
  args.qweight = reinterpret_cast<const uint4*>(to_device(qweight));
  args.scales = to_device(scales);
  args.affine_zeros = to_device(affine_zeros);
  args.m = 1;
  args.n = args.n_padded = kOut;
  args.k = args.k_padded = kIn;
  args.group_shift = 31;
  // A CTA for each 64 channels, whose warps split K.
  constexpr auto kSplit = KSplit::of(kIn / decode_unit_k(kConfig, kBits), kConfig.warps(), 1, 1);
  args.chunks = 1;
  args.part = kSplit.part;
  args.x_pitch = decode_x_pitch(kConfig, kBits, kSplit);
  args.tile_rows = 1;
  constexpr int kColumns = kOut / kConfig.tile_n;
  args.column_stride = kColumns;
  const auto shared_bytes = static_cast<std::size_t>(
      decode_storage_bytes(kConfig) + decode_slice_bytes(kConfig, kBits, 1, args.x_pitch));
  const cudaError_t allowed = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  const cudaError_t status = kernels::launch_kernel(kernel, dim3(kColumns), kConfig.threads(),
                                                    shared_bytes, nullptr, args);
  if (allowed != cudaSuccess || status != cudaSuccess || cudaDeviceSynchronize() != cudaSuccess) {
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

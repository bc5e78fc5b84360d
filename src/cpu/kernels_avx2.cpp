// Compiled with this instruction set's options (CMakeLists.txt), and called only where
// available_kernels finds it.
#include "cpu/kernel_set.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "cpu/kernels.hpp"
#include "cpu/simd_avx2.hpp"

namespace mpq::detail::cpu {

const KernelSet* kernels_avx2() noexcept {
  static constexpr KernelSet kKernels{
      .name = "avx2", .convert = convert<Avx2>, .forward = forward<Avx2>};
  return &kKernels;
}

}  // namespace mpq::detail::cpu

#else

const mpq::detail::cpu::KernelSet* mpq::detail::cpu::kernels_avx2() noexcept {
  return nullptr;
}

#endif

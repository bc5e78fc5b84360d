// Compiled with this instruction set's options (CMakeLists.txt), and called only where
// available_kernels finds it.
#include "cpu/kernel_set.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)

// GCC takes the deliberately undefined operands of its own intrinsics for a mistake (bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "cpu/kernels.hpp"
#include "cpu/simd_avx512.hpp"

namespace mpq::detail::cpu {

const KernelSet* kernels_avx512() noexcept {
  static constexpr KernelSet kKernels{
      .name = "avx512", .convert = convert<Avx512>, .forward = forward<Avx512>};
  return &kKernels;
}

}  // namespace mpq::detail::cpu

#else

const mpq::detail::cpu::KernelSet* mpq::detail::cpu::kernels_avx512() noexcept {
  return nullptr;
}

#endif

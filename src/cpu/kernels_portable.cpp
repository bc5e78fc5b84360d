#include "cpu/kernels.hpp"
#include "cpu/simd_portable.hpp"

namespace mpq::detail::cpu {

const KernelSet* kernels_portable() noexcept {
  static constexpr KernelSet kKernels{
      .name = "portable", .convert = convert<Portable>, .forward = forward<Portable>};
  return &kKernels;
}

}  // namespace mpq::detail::cpu

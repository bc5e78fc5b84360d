#include "cpu/kernel_set.hpp"

#include <array>

namespace mpq::detail::cpu {
namespace {

struct Available {
  std::array<const KernelSet*, 3> sets{};
  std::size_t count = 0;

  Available() noexcept {
#if defined(__x86_64__) || defined(__i386__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (avx512) add(kernels_avx512());
    if (avx2) add(kernels_avx2());
#endif
    add(kernels_portable());
  }
  void add(const KernelSet* set) noexcept {
    if (set != nullptr) sets[count++] = set;
  }
};

}  // namespace

std::span<const KernelSet* const> available_kernels() noexcept {
  static const Available available;
  return {available.sets.data(), available.count};
}

}  // namespace mpq::detail::cpu

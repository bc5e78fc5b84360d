#pragma once
// A loop whose index is a constant.

#include <utility>

namespace mpq::kernels {

/// Calls f<0>() to f<kCount - 1>().
template <int kCount, class F>
__device__ __forceinline__ void static_for(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) {
    (f.template operator()<I>(), ...);
  }
  (std::make_integer_sequence<int, kCount>{});
}

}  // namespace mpq::kernels

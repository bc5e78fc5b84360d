#pragma once
// What nvcc gives kernels besides C++, for the host's compiler. Included before everything else.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "engine.hpp"

#define __CUDA_ARCH__ 900
#define __CUDA_ARCH_FEAT_SM90_ALL 1
#define __launch_bounds__(...)
// What must be inlined on a device only takes long to compile here.
#undef __forceinline__
#define __forceinline__ inline
#undef __grid_constant__
#define __grid_constant__

#define threadIdx (mpq::emulator::thread_index())
#define blockIdx (mpq::emulator::block_index())
#define gridDim (mpq::emulator::grid_dimensions())
#define blockDim (mpq::emulator::block_dimensions())

using std::max;
using std::min;

template <class Value>
Value __ldg(const Value* address) {
  return *address;
}
template <class Value>
Value __ldcg(const Value* address) {
  return *address;
}

inline void __syncthreads() {
  mpq::emulator::sync(0, static_cast<int>(mpq::emulator::block_dimensions().x));
}
inline void __syncwarp() {
  int nothing = 0;
  mpq::emulator::collective("__syncwarp", nothing, [](const auto&) {});
}

template <class Value>
Value __shfl_sync(unsigned, Value value, int from) {
  Value mine = value;
  mpq::emulator::collective("__shfl_sync", mine, [](const auto&) {});  // all have written theirs
  struct Lane {
    Value value;
    int from;
    Value result;
  } lane{value, from, {}};
  mpq::emulator::collective("__shfl_sync", lane, [](const auto& all) {
    for (auto* each : all) each->result = all[each->from % 32]->value;
  });
  return lane.result;
}
template <class Value>
Value __shfl_xor_sync(unsigned mask, Value value, int bits) {
  return __shfl_sync(mask, value, mpq::emulator::lane() ^ bits);
}

inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
template <class To, class From>
To mpq_bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
inline float __uint_as_float(unsigned bits) {
  return mpq_bits_as<float>(bits);
}
inline unsigned __float_as_uint(float value) {
  return mpq_bits_as<unsigned>(value);
}
inline float __int_as_float(int bits) {
  return mpq_bits_as<float>(bits);
}
inline int __float_as_int(float value) {
  return mpq_bits_as<int>(value);
}

inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(b) << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<unsigned>(bytes >> (8 * (selector >> (4 * i) & 7u)) & 0xffu) << (8 * i);
  }
  return result;
}

// Rounded once, as the hardware does: products and sums of 11 bits are exact in float64 but for
// extreme differences of exponents.
inline __half2 mpq_fma(const __half2& a, const __half2& b, const __half2& c) {
  const auto one = [](__half x, __half y, __half z) {
    return __double2half(std::fma(static_cast<double>(__half2float(x)),
                                  static_cast<double>(__half2float(y)),
                                  static_cast<double>(__half2float(z))));
  };
  return __halves2half2(one(__low2half(a), __low2half(b), __low2half(c)),
                        one(__high2half(a), __high2half(b), __high2half(c)));
}
inline __nv_bfloat162 mpq_fma(const __nv_bfloat162& a, const __nv_bfloat162& b,
                              const __nv_bfloat162& c) {
  const auto one = [](__nv_bfloat16 x, __nv_bfloat16 y, __nv_bfloat16 z) {
    return __double2bfloat16(std::fma(static_cast<double>(__bfloat162float(x)),
                                      static_cast<double>(__bfloat162float(y)),
                                      static_cast<double>(__bfloat162float(z))));
  };
  return __halves2bfloat162(one(__low2bfloat16(a), __low2bfloat16(b), __low2bfloat16(c)),
                            one(__high2bfloat16(a), __high2bfloat16(b), __high2bfloat16(c)));
}
template <class Pair>
Pair __hfma2(const Pair& a, const Pair& b, const Pair& c) {
  return mpq_fma(a, b, c);
}

#pragma once
// What nvcc gives kernels besides C++, for the host's compiler. Included before everything else.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "engine.hpp"

#define __CUDA_ARCH__ 900
#define __CUDA_ARCH_FEAT_SM90_ALL 1
#define __launch_bounds__(...)
// What must be inlined on a device only takes long to compile here.
#undef __forceinline__
#define __forceinline__ inline
#undef __grid_constant__
#define __grid_constant__
// Arrays in shared memory. Only kernels without clusters have some, and their CTAs run one by one.
#undef __shared__
#define __shared__ static

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
template <class Value>
Value __shfl_down_sync(unsigned mask, Value value, int lanes) {
  const int from = mpq::emulator::lane() + lanes;
  return __shfl_sync(mask, value, from < 32 ? from : mpq::emulator::lane());
}

inline unsigned long long atomicMin(unsigned long long* address, unsigned long long value) {
  const unsigned long long old = *address;
  if (value < old) *address = value;
  return old;
}

inline unsigned atomicOr(unsigned* address, unsigned value) {
  const unsigned old = *address;
  *address |= value;
  return old;
}

// What all lanes' values combine to, from 0 on.
template <class Combine>
unsigned reduce_lanes(const char* instruction, unsigned value, const Combine& combine) {
  struct Lane {
    unsigned value, result;
  } lane{value, 0};
  mpq::emulator::collective(instruction, lane, [&](const auto& all) {
    unsigned result = 0;
    for (auto* each : all) result = combine(result, each->value);
    for (auto* each : all) each->result = result;
  });
  return lane.result;
}
inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  return reduce_lanes("__reduce_max_sync", value,
                      [](unsigned a, unsigned b) { return std::max(a, b); });
}
inline unsigned __reduce_or_sync(unsigned, unsigned value) {
  return reduce_lanes("__reduce_or_sync", value, [](unsigned a, unsigned b) { return a | b; });
}
inline unsigned __reduce_add_sync(unsigned, unsigned value) {
  return reduce_lanes("__reduce_add_sync", value, [](unsigned a, unsigned b) { return a + b; });
}
inline int __reduce_add_sync(unsigned mask, int value) {
  return static_cast<int>(__reduce_add_sync(mask, static_cast<unsigned>(value)));
}

inline unsigned __dp2a_lo(unsigned halves, unsigned bytes, unsigned sum) {
  return sum + (halves & 0xffffu) * (bytes & 0xffu) + (halves >> 16) * (bytes >> 8 & 0xffu);
}
inline int __dp2a_lo(int halves, int bytes, int sum) {
  return sum + static_cast<std::int16_t>(halves) * static_cast<std::int8_t>(bytes) +
         static_cast<std::int16_t>(halves >> 16) * static_cast<std::int8_t>(bytes >> 8);
}

inline int __float2int_rn(float value) {  // saturates; 0 for NaN
  if (std::isnan(value)) return 0;
  return static_cast<int>(
      std::clamp(std::nearbyint(static_cast<double>(value)), -0x1p31, 0x1p31 - 1));
}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline float __saturatef(float value) {  // 0 for NaN
  return std::isnan(value) ? 0.f : std::clamp(value, 0.f, 1.f);
}
inline float __uint_as_float(unsigned bits) {
  return std::bit_cast<float>(bits);
}
inline unsigned __float_as_uint(float value) {
  return std::bit_cast<unsigned>(value);
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
template <class Pair>
Pair __hfma2(const Pair& a, const Pair& b, const Pair& c) {
  const auto one = []<class Scalar>(Scalar x, Scalar y, Scalar z) {
    const auto wide = [](Scalar value) { return static_cast<double>(static_cast<float>(value)); };
    return Scalar(std::fma(wide(x), wide(y), wide(z)));
  };
  return Pair(one(a.x, b.x, c.x), one(a.y, b.y, c.y));
}

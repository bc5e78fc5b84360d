#pragma once
// rcp in one instruction.

namespace mpq::kernels::ptx {

/// 1 / value within an ulp, as if subnormal numbers were 0.
__device__ __forceinline__ float reciprocal(float value) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

}  // namespace mpq::kernels::ptx

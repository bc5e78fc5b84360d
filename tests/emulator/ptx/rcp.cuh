#pragma once

#include <cmath>
#include <limits>

namespace mpq::kernels::ptx {

inline float reciprocal(float value) {
  if (std::fabs(value) < std::numeric_limits<float>::min()) {
    return std::copysign(std::numeric_limits<float>::infinity(), value);
  }
  return 1.f / value;
}

}  // namespace mpq::kernels::ptx

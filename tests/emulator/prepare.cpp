// kernels/prepare.hpp in plain loops: on a device these are one kernel each, and their results are
// compared with the host's there (tests/device/prepare_test.cpp).

#include "prepare.hpp"

#include <cstring>

#include "dequant.cuh"
#include "mpq/layout.hpp"
#include "streams.hpp"

namespace mpq::kernels {
namespace {

template <int WBits>
void repack(const std::uint32_t* canonical, std::int64_t k, std::int64_t n,
            const std::int32_t* source, std::int64_t k_padded, std::int64_t n_padded,
            std::uint32_t* out) {
  using Layout = KernelLayout<WBits>;
  constexpr int kCodesPerWord = 32 / WBits;
  std::memset(out, 0, static_cast<std::size_t>(Layout::words(k_padded, n_padded)) * 4);
  for (std::int64_t i = 0; i < k_padded; ++i) {
    const std::int64_t column = source != nullptr ? source[i] : i < k ? i : -1;
    if (column < 0) continue;
    for (std::int64_t channel = 0; channel < n; ++channel) {
      const std::uint32_t word = canonical[column / kCodesPerWord * n + channel];
      const std::uint32_t code = word >> (WBits * (column % kCodesPerWord)) & ((1u << WBits) - 1u);
      const auto at = Layout::position({i, channel}, k_padded);
      out[at.word] |= code << at.shift;
    }
  }
}

float statistic(int code, std::uint16_t zero, std::uint16_t scale, DType dtype) {
  const bool is_bf16 = dtype == DType::bf16;
  const auto rounded = [&](float value) {
    return is_bf16 ? __bfloat162float(__float2bfloat16_rn(value))
                   : __half2float(__float2half_rn(value));
  };
  const float difference = rounded(static_cast<float>(code) - scale_to_float(zero, is_bf16));
  return rounded(difference * scale_to_float(scale, is_bf16));
}

template <class IsBad>
cudaError_t find_first(std::int64_t count, void* temporary, std::size_t& temporary_bytes,
                       std::int64_t* result, IsBad&& is_bad) {
  if (temporary == nullptr) {
    temporary_bytes = 1;
    return cudaSuccess;
  }
  *result = 0;
  while (*result < count && !is_bad(*result)) ++*result;
  return cudaSuccess;
}

}  // namespace

cudaError_t repack_codes(int bits, const std::uint32_t* canonical, std::int64_t k, std::int64_t n,
                         const std::int32_t* source, std::int64_t k_padded, std::int64_t n_padded,
                         std::uint32_t* out, cudaStream_t stream) {
  const auto work = bits == 1   ? repack<1>
                    : bits == 2 ? repack<2>
                    : bits == 4 ? repack<4>
                                : repack<8>;
  emulator::enqueue(stream, [=] { work(canonical, k, n, source, k_padded, n_padded, out); });
  return cudaSuccess;
}

template <class In, class Out>
cudaError_t spread_groups(const In* in, std::int64_t n, const std::int32_t* group,
                          std::int64_t kernel_groups, std::int64_t n_padded, Out* out,
                          cudaStream_t stream) {
  emulator::enqueue(stream, [=] {
    for (std::int64_t i = 0; i < kernel_groups * n_padded; ++i) {
      const std::int64_t from = group[i / n_padded], channel = parameter_channel(i % n_padded);
      out[i] = from >= 0 && channel < n ? static_cast<Out>(in[from * n + channel]) : Out{};
    }
  });
  return cudaSuccess;
}
template cudaError_t spread_groups(const std::uint16_t*, std::int64_t, const std::int32_t*,
                                   std::int64_t, std::int64_t, std::uint16_t*, cudaStream_t);
template cudaError_t spread_groups(const std::uint16_t*, std::int64_t, const std::int32_t*,
                                   std::int64_t, std::int64_t, std::uint8_t*, cudaStream_t);
template cudaError_t spread_groups(const float*, std::int64_t, const std::int32_t*, std::int64_t,
                                   std::int64_t, float*, cudaStream_t);

cudaError_t decompress_statistics(const Statistics& s, DType dtype, std::uint16_t* scales,
                                  float* affine_zeros, cudaStream_t stream) {
  emulator::enqueue(stream, [=] {
    for (std::int64_t i = 0; i < s.groups * s.n; ++i) {
      const std::int64_t g = i / s.n, channel = i % s.n;
      const std::int64_t at =
          s.per_channel ? channel : g * (s.n / s.dq_group_size) + channel / s.dq_group_size;
      const bool with_zero = s.zero_scales != nullptr;
      const float scale = statistic(with_zero ? s.codes[i] >> 4 : s.codes[i], s.scale_zeros[at],
                                    s.scale_scales[at], dtype);
      scales[i] = dtype == DType::bf16 ? bits_as<std::uint16_t>(__float2bfloat16_rn(scale))
                                       : bits_as<std::uint16_t>(__float2half_rn(scale));
      if (with_zero) {
        affine_zeros[i] = -statistic(s.codes[i] & 15, s.zero_zeros[at], s.zero_scales[at], dtype);
      }
    }
  });
  return cudaSuccess;
}

cudaError_t gather_columns(const std::uint16_t* x, std::int64_t ldx, std::int64_t m,
                           const std::int32_t* source, std::int64_t k_padded, std::uint16_t* out,
                           bool, cudaStream_t stream) {
  emulator::enqueue(stream, [=] {
    for (std::int64_t row = 0; row < m; ++row) {
      for (std::int64_t i = 0; i < k_padded; ++i) {
        out[row * k_padded + i] =
            source[i] >= 0 ? x[row * ldx + source[i]] : static_cast<std::uint16_t>(0);
      }
    }
  });
  return cudaSuccess;
}

cudaError_t first_non_finite(const std::uint16_t* values, DType dtype, std::int64_t count,
                             void* temporary, std::size_t& temporary_bytes, std::int64_t* result,
                             cudaStream_t) {
  const int exponent = dtype == DType::f16 ? 0x7c00 : 0x7f80;
  return find_first(count, temporary, temporary_bytes, result,
                    [&](std::int64_t i) { return (values[i] & exponent) == exponent; });
}

cudaError_t first_non_finite(const float* values, std::int64_t count, void* temporary,
                             std::size_t& temporary_bytes, std::int64_t* result, cudaStream_t) {
  return find_first(count, temporary, temporary_bytes, result,
                    [&](std::int64_t i) { return !std::isfinite(values[i]); });
}

}  // namespace mpq::kernels

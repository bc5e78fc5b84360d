#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "dequant.cuh"
#include "elements.cuh"
#include "launch.cuh"
#include "mpq/layout.hpp"
#include "prepare.hpp"
#include "statistics.cuh"

namespace mpq::kernels {
namespace {

constexpr int kThreads = kElementThreads;

// Repacking. A block of the layout is 8 rows of canonical words and 64 channels, whatever the
// width: a CTA brings a few blocks to shared memory in rows of 256 bytes and writes them as the
// layout has them, a thread 16 bytes of each block.
template <int WBits>
struct Repack {
  using Layout = KernelLayout<WBits>;
  static constexpr int kThreads = Layout::kWordsPerBlock / 4;
  static constexpr int kBlocks = 4;  // of a CTA, along K: 16 loads in flight a thread
  static constexpr int kCodesPerWord = 32 / WBits;
  static constexpr int kRows = Layout::kBlockK / kCodesPerWord;  // of canonical words in a block
  static constexpr int kPad = 8;  // 8-bit codes: lanes read 8 channels of two rows at a time
  static_assert(kRows == 8);
  using Tile = std::uint32_t[kBlocks * kRows][Layout::kBlockN + kPad];

  // Channel and first column in the block of the codes of step s in word e of a thread; the second
  // code is of the next column.
  static constexpr int channel(int thread, int e) {
    return thread / 32 * 16 + thread % 32 / 4 + 8 * (e % 2);
  }
  static constexpr int column(int thread, int e, int s) {
    return Layout::kStepK * s + 8 * (e / 2) + 2 * (thread % 4);
  }
  static constexpr bool follows_layout() {
    for (int thread = 0; thread < kThreads; ++thread) {
      for (int e = 0; e < 4; ++e) {
        for (int s = 0; s < Layout::kStepsPerBlock; ++s) {
          for (int p = 0; p < 2; ++p) {
            const auto c =
                Layout::coordinate({4 * thread + e, WBits * s + 16 * p}, Layout::kBlockK);
            if (c.n != channel(thread, e) || c.k != column(thread, e, s) + p) return false;
          }
        }
      }
    }
    return true;
  }

  // Word e of a thread, of block b of the tile.
  static __device__ __forceinline__ std::uint32_t word(const Tile& tile, int b, int thread, int e) {
    constexpr std::uint32_t kMask = (1u << WBits) - 1;
    const int lane_bit = 2 * (thread % 4) * WBits;
    if constexpr (WBits == 1) {
      // Two steps at a time: a row's pairs of steps 2r and 2r + 1 are 16 bits apart. Code by code
      // this width would be bound by arithmetic.
      std::uint32_t pairs = 0;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const std::uint32_t row = tile[b * kRows + r][channel(thread, e)];
        pairs |= (row >> (lane_bit + 8 * (e / 2)) & 0x00030003u) << (2 * r);
      }
      const std::uint32_t even = pairs & 0xffffu, odd = pairs >> 16;  // steps
      return (even & 0x5555u) | (odd & 0x5555u) << 1 | (even & 0xaaaau) << 15 |
             (odd & 0xaaaau) << 16;
    }
    std::uint32_t result = 0;
#pragma unroll
    for (int s = 0; s < Layout::kStepsPerBlock; ++s) {
      const int bit = (Layout::kStepK * s + 8 * (e / 2)) * WBits;
      const std::uint32_t pair = tile[b * kRows + bit / 32 + lane_bit / 32][channel(thread, e)] >>
                                 (lane_bit % 32) >> (bit % 32);
      result |= ((pair & kMask) | (pair & kMask << WBits) << (16 - WBits)) << (WBits * s);
    }
    return result;
  }
};
static_assert(Repack<1>::follows_layout() && Repack<2>::follows_layout() &&
              Repack<4>::follows_layout() && Repack<8>::follows_layout());

// Canonical words [ceil(k * WBits / 32), n] in the layout's order of columns.
template <int WBits, bool kPermuted>
struct CanonicalWords {
  static constexpr int kCodesPerWord = 32 / WBits;
  const std::uint32_t* __restrict__ words;
  const std::int32_t* __restrict__ source;  // [k_padded], if kPermuted
  int k, n;

  // Of columns [row * kCodesPerWord, + kCodesPerWord); row is within the padding.
  __device__ __forceinline__ std::uint32_t operator()(int row, int channel) const {
    if constexpr (kPermuted) {
      if (channel >= n) return 0;
      std::uint32_t result = 0;
#pragma unroll 8
      for (int i = 0; i < kCodesPerWord; ++i) {
        const std::int32_t column = __ldg(source + row * kCodesPerWord + i);
        if (column < 0) continue;
        const std::uint32_t from =
            __ldg(words + static_cast<std::int64_t>(column / kCodesPerWord) * n + channel);
        const std::uint32_t code = from >> (WBits * (column % kCodesPerWord));
        result |= (code & ((1u << WBits) - 1)) << (WBits * i);
      }
      return result;
    } else {
      // No branches, so that a thread's loads can all be in flight.
      const int last = (k - 1) / kCodesPerWord;
      const std::uint32_t word =
          __ldg(words + static_cast<std::int64_t>(min(row, last)) * n + min(channel, n - 1));
      const int valid = k - row * kCodesPerWord;
      const int absent = 32 - WBits * min(valid, kCodesPerWord);
      return channel < n && valid > 0 ? word & 0xffffffffu >> (absent & 31) : 0u;
    }
  }
};

// What a word's codes are flipped with where zeros are 3: see is_stored_complemented.
struct Complements {
  const std::uint8_t* __restrict__ zeros;  // [kernel groups, n_padded]; null: nothing is flipped
  std::int64_t n_padded;
  int group_shift;

  // Of the words of `channel` in block `block_k`.
  __device__ __forceinline__ std::uint32_t operator()(int block_k, std::int64_t channel) const {
    using Layout = KernelLayout<2>;
    if (zeros == nullptr) return 0;
    const std::uint8_t* of_channel = zeros + parameter_position(channel);
    std::uint32_t flipped = 0;
#pragma unroll
    for (int s = 0; s < Layout::kStepsPerBlock; ++s) {
      const std::int64_t row = (block_k * Layout::kBlockK + s * Layout::kStepK) >> group_shift;
      if (is_stored_complemented(2, of_channel[row * n_padded])) flipped |= 0x00030003u << (2 * s);
    }
    return flipped;
  }
};

template <int WBits, bool kPermuted>
__global__ void __launch_bounds__(Repack<WBits>::kThreads)
    repack(const CanonicalWords<WBits, kPermuted> canonical, const Complements complements,
           int blocks_k, int strips, uint4* __restrict__ out) {
  using Repack = Repack<WBits>;
  using Layout = typename Repack::Layout;
  __shared__ typename Repack::Tile tile;
  const int strip = static_cast<int>(blockIdx.x) % strips;  // neighbours read neighbouring channels
  const int first = static_cast<int>(blockIdx.x) / strips * Repack::kBlocks;
  const int thread = static_cast<int>(threadIdx.x);

  constexpr int kRowsPerPass = Repack::kThreads / Layout::kBlockN;
  constexpr int kPasses = Repack::kBlocks * Repack::kRows / kRowsPerPass;
  constexpr int kTogether = kPermuted ? 1 : kPasses;  // a permuted word is many loads by itself
  const int column = thread % Layout::kBlockN;
  for (int i0 = 0; i0 < kPasses; i0 += kTogether) {
    std::uint32_t held[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int row = (i0 + i) * kRowsPerPass + thread / Layout::kBlockN;
      // The last CTA's tile may end after the padding; what is read again there is not written.
      const int from = min(first * Repack::kRows + row, blocks_k * Repack::kRows - 1);
      held[i] = canonical(from, strip * Layout::kBlockN + column);
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      tile[(i0 + i) * kRowsPerPass + thread / Layout::kBlockN][column] = held[i];
    }
  }
  __syncthreads();
#pragma unroll
  for (int b = 0; b < Repack::kBlocks; ++b) {
    if (first + b >= blocks_k) break;
    const std::int64_t block = static_cast<std::int64_t>(strip) * blocks_k + first + b;
    uint4 words = make_uint4(Repack::word(tile, b, thread, 0), Repack::word(tile, b, thread, 1),
                             Repack::word(tile, b, thread, 2), Repack::word(tile, b, thread, 3));
    if constexpr (WBits == 2) {
      const int channel = strip * Layout::kBlockN + Repack::channel(thread, 0);
      const std::uint32_t even = complements(first + b, channel),
                          odd = complements(first + b, channel + 8);
      words.x ^= even, words.y ^= odd, words.z ^= even, words.w ^= odd;
    }
    out[block * Repack::kThreads + thread] = words;
  }
}

__global__ void __launch_bounds__(kThreads)
    negate_complemented_kernel(std::int64_t count, std::uint16_t* __restrict__ scales,
                               std::uint8_t* __restrict__ zeros) {
  const std::int64_t i = thread_index();
  if (i >= count || !is_stored_complemented(2, zeros[i])) return;
  scales[i] ^= 0x8000u;
  zeros[i] = 0;
}

template <class In, class Out>
__global__ void __launch_bounds__(kThreads)
    spread(const In* __restrict__ in, std::int64_t n, const std::int32_t* __restrict__ group,
           std::int64_t kernel_groups, std::int64_t n_padded, Out* __restrict__ out) {
  const std::int64_t i = thread_index();
  if (i >= kernel_groups * n_padded) return;
  const std::int64_t from = group[i / n_padded], channel = parameter_channel(i % n_padded);
  out[i] = from >= 0 && channel < n ? static_cast<Out>(in[from * n + channel]) : Out{};
}

// (code - zero) * scale in the layer's type: each operation rounded.
template <DType T>
__device__ float decode_statistic(int code, std::uint16_t zero, std::uint16_t scale) {
  constexpr bool kIsBf16 = T == DType::bf16;
  const auto difference = round_to<T>(static_cast<float>(code) - scale_to_float(zero, kIsBf16));
  const auto product = round_to<T>(scale_to_float(bits_as<std::uint16_t>(difference), kIsBf16) *
                                   scale_to_float(scale, kIsBf16));
  return scale_to_float(bits_as<std::uint16_t>(product), kIsBf16);
}

template <DType T>
__global__ void __launch_bounds__(kThreads)
    decompress_kernel(const Statistics s, std::uint16_t* __restrict__ scales,
                      float* __restrict__ affine_zeros) {
  const std::int64_t i = thread_index();
  if (i >= s.groups * s.n) return;
  const std::int64_t g = i / s.n, channel = i % s.n;
  const std::int64_t at =
      s.per_channel ? channel : g * (s.n / s.dq_group_size) + channel / s.dq_group_size;
  const int code = s.codes[i];
  const bool with_zero = s.zero_scales != nullptr;
  const float scale =
      decode_statistic<T>(with_zero ? code >> 4 : code, s.scale_zeros[at], s.scale_scales[at]);
  scales[i] = bits_as<std::uint16_t>(round_to<T>(scale));
  if (with_zero) {
    affine_zeros[i] = -decode_statistic<T>(code & 15, s.zero_zeros[at], s.zero_scales[at]);
  }
}

__global__ void __launch_bounds__(kThreads)
    pack_bases(const Statistics s, const std::int32_t* __restrict__ group,
               std::int64_t kernel_groups, std::int64_t blocks, uint2* __restrict__ out) {
  const std::int64_t i = thread_index();
  if (i >= kernel_groups * blocks) return;
  const std::int64_t from = group[i / blocks], channel = i % blocks * kStatisticChannels;
  uint2 base{0, 0};
  if (from >= 0 && channel < s.n) {
    const std::int64_t at = from * (s.n / s.dq_group_size) + channel / s.dq_group_size;
    const auto both = [](std::uint32_t scale, std::uint32_t zero) { return scale | zero << 16; };
    base = {both(s.scale_scales[at], s.scale_zeros[at]), both(s.zero_scales[at], s.zero_zeros[at])};
  }
  out[i] = base;
}

// A thread has two channels.
template <DType T>
__global__ void __launch_bounds__(kThreads)
    unpack_kernel(const std::uint8_t* __restrict__ codes, const uint2* __restrict__ bases,
                  std::int64_t count, std::uint16_t* __restrict__ scales,
                  float* __restrict__ affine_zeros) {
  const std::int64_t at = 2 * thread_index();
  if (at >= count) return;
  const auto pair = StatisticPair<T>::template of<0>(
      *reinterpret_cast<const std::uint16_t*>(codes + at), bases[statistic_base_of(at)]);
  *reinterpret_cast<std::uint32_t*>(scales + at) = pair.scale_bits();
  *reinterpret_cast<float2*>(affine_zeros + at) = pair.affine();
}

template <int WBits, bool kPermuted>
cudaError_t launch_repack_as(const CanonicalWords<WBits, kPermuted>& canonical,
                             const Complements& complements, std::int64_t k_padded,
                             std::int64_t n_padded, std::uint32_t* out, cudaStream_t stream) {
  using Layout = KernelLayout<WBits>;
  const std::int64_t blocks_k = k_padded / Layout::kBlockK, strips = n_padded / Layout::kBlockN;
  const std::int64_t ctas = strips * ceil_div(blocks_k, Repack<WBits>::kBlocks);
  return launch_kernel(repack<WBits, kPermuted>, dim3(static_cast<unsigned>(ctas)),
                       Repack<WBits>::kThreads, 0, stream, canonical, complements,
                       static_cast<int>(blocks_k), static_cast<int>(strips),
                       reinterpret_cast<uint4*>(out));
}

template <int WBits>
cudaError_t launch_repack(const std::uint32_t* canonical, std::int64_t k, std::int64_t n,
                          const std::int32_t* source, const Complements& complements,
                          std::int64_t k_padded, std::int64_t n_padded, std::uint32_t* out,
                          cudaStream_t stream) {
  const int columns = static_cast<int>(k), channels = static_cast<int>(n);
  if (source != nullptr) {
    return launch_repack_as<WBits, true>({canonical, source, columns, channels}, complements,
                                         k_padded, n_padded, out, stream);
  }
  return launch_repack_as<WBits, false>({canonical, source, columns, channels}, complements,
                                        k_padded, n_padded, out, stream);
}

}  // namespace

cudaError_t repack_codes(int bits, const std::uint32_t* canonical, std::int64_t k, std::int64_t n,
                         const std::int32_t* source, std::int64_t k_padded, std::int64_t n_padded,
                         const std::uint8_t* zeros, int group_shift, std::uint32_t* out,
                         cudaStream_t stream) {
  const auto launch = bits == 1   ? launch_repack<1>
                      : bits == 2 ? launch_repack<2>
                      : bits == 4 ? launch_repack<4>
                                  : launch_repack<8>;
  return launch(canonical, k, n, source, {zeros, n_padded, group_shift}, k_padded, n_padded, out,
                stream);
}

cudaError_t negate_complemented(std::int64_t count, std::uint16_t* scales, std::uint8_t* zeros,
                                cudaStream_t stream) {
  return launch_kernel(negate_complemented_kernel, grid_for(count), kThreads, 0, stream, count,
                       scales, zeros);
}

template <class In, class Out>
cudaError_t spread_groups(const In* in, std::int64_t n, const std::int32_t* group,
                          std::int64_t kernel_groups, std::int64_t n_padded, Out* out,
                          cudaStream_t stream) {
  return launch_kernel(spread<In, Out>, grid_for(kernel_groups * n_padded), kThreads, 0, stream, in,
                       n, group, kernel_groups, n_padded, out);
}
template cudaError_t spread_groups(const std::uint16_t*, std::int64_t, const std::int32_t*,
                                   std::int64_t, std::int64_t, std::uint16_t*, cudaStream_t);
template cudaError_t spread_groups(const std::uint16_t*, std::int64_t, const std::int32_t*,
                                   std::int64_t, std::int64_t, std::uint8_t*, cudaStream_t);
template cudaError_t spread_groups(const std::uint8_t*, std::int64_t, const std::int32_t*,
                                   std::int64_t, std::int64_t, std::uint8_t*, cudaStream_t);
template cudaError_t spread_groups(const float*, std::int64_t, const std::int32_t*, std::int64_t,
                                   std::int64_t, float*, cudaStream_t);

cudaError_t decompress_statistics(const Statistics& statistics, DType dtype, std::uint16_t* scales,
                                  float* affine_zeros, cudaStream_t stream) {
  const auto kernel =
      dtype == DType::f16 ? decompress_kernel<DType::f16> : decompress_kernel<DType::bf16>;
  return launch_kernel(kernel, grid_for(statistics.groups * statistics.n), kThreads, 0, stream,
                       statistics, scales, affine_zeros);
}

cudaError_t pack_statistic_bases(const Statistics& statistics, const std::int32_t* group,
                                 std::int64_t kernel_groups, std::int64_t n_padded, uint2* out,
                                 cudaStream_t stream) {
  const std::int64_t blocks = n_padded / kStatisticChannels;
  return launch_kernel(pack_bases, grid_for(kernel_groups * blocks), kThreads, 0, stream,
                       statistics, group, kernel_groups, blocks, out);
}

cudaError_t unpack_statistics(const std::uint8_t* codes, const uint2* bases, DType dtype,
                              std::int64_t count, std::uint16_t* scales, float* affine_zeros,
                              cudaStream_t stream) {
  const auto kernel = dtype == DType::f16 ? unpack_kernel<DType::f16> : unpack_kernel<DType::bf16>;
  return launch_kernel(kernel, grid_for(count / 2), kThreads, 0, stream, codes, bases, count,
                       scales, affine_zeros);
}

}  // namespace mpq::kernels

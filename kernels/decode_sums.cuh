#pragma once
// The arithmetic of the decode kernel: codes to operand A, and what a warp accumulates.

#include <cstdint>

#include "arguments.hpp"
#include "decode_activations.cuh"
#include "decode_storage.cuh"
#include "decode_streams.cuh"
#include "dequant.cuh"
#include "ptx/memory.cuh"
#include "ptx/mma.cuh"
#include "static_for.cuh"

namespace mpq::kernels {

/// Codes as they lie in a word, as exact numbers of the activations' type.
///
/// An integer below 2^(mantissa bits + 1), taken for the bits of a 16-bit float, is so many times
/// the smallest positive number, the quantum. So a word that is masked is a pair of codes times the
/// quantum times 2^(WBits * position): one LOP3 a pair, and nothing to subtract. kPositions steps
/// lie side by side; the rows of x are multiplied by powers of two that make up for positions and
/// for the quantum's smallness.
template <int WBits, DType T>
struct RawCodes {
  static constexpr int kPositions = 8 / WBits < 4 ? 8 / WBits : 4;
  static constexpr int kMantissaBits = Half2Of<T>::kMantissaBits;
  static constexpr int kQuantum = T == DType::f16 ? -24 : -133;  // log2
  /// Steps whose codes are taken from a word before it must be shifted.
  static constexpr int kInPlace = WBits == 8 ? 2 : kPositions;
  static constexpr bool kScalesX = kPositions > 1 || T == DType::bf16;
  /// The exponent, with its bias, to which the largest x of a row is brought if kMostRaise allows
  /// it: high enough to lose nothing of the smaller ones, low enough for the sums of products.
  static constexpr int kTarget = T == DType::f16 ? 30 : 247;
  static constexpr int kMostRaise = T == DType::f16 ? 15 : 126;

  /// The codes of step kStep of those that are lowest in the word.
  template <int kStep>
  static __device__ __forceinline__ std::uint32_t pair(std::uint32_t word) {
    static_assert(kStep < kInPlace);
    if constexpr (kStep < kPositions) {
      return word & (((1u << WBits) - 1) * 0x00010001u << (WBits * kStep));
    } else {
      return __byte_perm(word, 0, 0x4341);  // bytes 1 and 3
    }
  }
};

/// What a warp accumulates of a column: a lane's share of [kWarpN channels, tile_m rows].
template <int WBits, DType T, KernelConfig C, bool kGeneral>
class DecodeAccumulator {
 public:
  using Codes = RawCodes<WBits, T>;
  static constexpr int kTiles = DecodeStorage<C>::kTiles, kTilesM = C.tile_m / 8;
  using Parameters = LaneParameters<WBits, T, kTiles, kGeneral>;
  /// Integer zeros are subtracted from the codes, exactly, where sums of q x and of z x can be
  /// large against their difference (8 bits), or where products with ones would cost more (many
  /// rows). Otherwise zeros take sums of x.
  static constexpr bool kSubtracts = !kGeneral && (WBits == 8 || C.tile_m > 8);

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) total[t][m][i] = 0.f;
      }
    }
  }

  /// For rows of x that are to be read next, `blocks` blocks from x[m] on: by which powers of two
  /// they are multiplied.
  __device__ __forceinline__ void set_scales_of_x(const unsigned char* const (&x)[kTilesM],
                                                  int blocks, int lane) {
    if constexpr (Codes::kScalesX) {
      constexpr int kPairs = KernelLayout<WBits>::kStepsPerBlock / 2, kAtOnce = 4;
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
        Pair<T> most = bits_as<Pair<T>>(0u);
#pragma unroll 1
        for (int i = 0; i < blocks * kPairs; i += kAtOnce) {
          std::uint32_t b[kAtOnce][4];
#pragma unroll
          for (int j = 0; j < kAtOnce; ++j) {
            ptx::ldmatrix_x4(b[j], x[m] + 64 * min(i + j, blocks * kPairs - 1));
          }
#pragma unroll
          for (int j = 0; j < kAtOnce; ++j) {
            const auto abs = [&](int e) { return __habs2(bits_as<Pair<T>>(b[j][e])); };
            most = __hmax2(most, __hmax2(__hmax2(abs(0), abs(1)), __hmax2(abs(2), abs(3))));
          }
        }
        // Of row lane / 4: four lanes have parts of it.
        const auto bits = bits_as<std::uint32_t>(most);
        std::uint32_t largest = max(bits & 0xffffu, bits >> 16);
        largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
        largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
        const int exponent = static_cast<int>(largest >> Codes::kMantissaBits);
        const int raise = min(Codes::kTarget - exponent, Codes::kMostRaise);
#pragma unroll
        for (int p = 0; p < Codes::kPositions; ++p) {
          factor_[m][p] = pair_of_power<T>(raise - WBits * p);
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {  // of rows 2 * (lane % 4) + j, as the sums have them
          raise_[m][j] = __shfl_sync(0xffffffffu, raise, lane % 4 * 8 + 4 * j);
        }
      }
    }
  }

  /// Brings a total whose unit is 1 to the unit of the sums.
  __device__ __forceinline__ void resume() {
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float unit = unit_of(m, j);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) total[t][m][j] *= unit, total[t][m][2 + j] *= unit;
      }
    }
  }

  /// Brings the total to the unit 1.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        // 1 / unit, in two steps where it is beyond float32.
        constexpr int kFirst = T == DType::f16 ? 0 : 69;
        const int raise = Codes::kScalesX ? ptx::opaque(raise_[m][j]) : 0;
        const float second = float_power(-Codes::kQuantum - kFirst - raise);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            float& value = total[t][m][2 * h + j];
            if constexpr (kFirst != 0) value *= 0x1p69f;
            value *= second;
          }
        }
      }
    }
  }

  template <class Stream>
  __device__ __forceinline__ void begin_group(Stream& parameters) {
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum_of_x_[m][i] = 0.f;
#pragma unroll
        for (int t = 0; t < kTiles; ++t) sums_[t][m][i] = 0.f;
      }
    }
    if constexpr (kSubtracts) {
      parameters_ = parameters.ahead();
      parameters.advance();
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          zeros_[t][h] = parameters_.zero_pair(t, h);
        }
      }
    }
  }

  /// Adds the group's sums, scaled, to the total.
  template <class Stream>
  __device__ __forceinline__ void end_group(const ForwardArguments& args, Stream& parameters) {
    const Parameters& own = kSubtracts ? parameters_ : parameters.ahead();
    float x_sum[kTilesM][2];  // in the total's unit
    if constexpr (!kSubtracts) {
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
        for (int j = 0; j < 2; ++j) x_sum[m][j] = sum_of_x_[m][j] * unit_of(m, j);
      }
    }
    if (kGeneral && args.zeros == nullptr) {
      if constexpr (kGeneral) {
        static_for<kTiles>([&]<int kTile>() {
          const AffinePair pair = own.template affine_pair<kTile>(args);
          for_each_sum(kTile, [&](float& value, float sum, int h, int m, int j) {
            value = __fmaf_rn(pair.affine[h], x_sum[m][j], value);
            value = __fmaf_rn(pair.scale[h], sum, value);
          });
        });
      }
    } else {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        for_each_sum(t, [&](float& value, float sum, int h, int m, int j) {
          if constexpr (!kSubtracts) sum = __fmaf_rn(own.minus_zero(t, h), x_sum[m][j], sum);
          value = __fmaf_rn(own.scale(args, t, h), sum, value);
        });
      }
    }
    if constexpr (!kSubtracts) parameters.advance();
  }

  /// Multiplies one k-step: step kStep of those that are lowest in `words`, b: operand B.
  template <int kStep>
  __device__ __forceinline__ void multiply(const uint4 (&words)[kTiles],
                                           const std::uint32_t (&b)[kTilesM][2]) {
    std::uint32_t scaled[kTilesM][2];
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) {
      if constexpr (!kSubtracts) {
        constexpr std::uint32_t kOne = T == DType::f16 ? 0x3c003c00u : 0x3f803f80u;
        const std::uint32_t ones[4] = {kOne, kOne, kOne, kOne};
        ptx::mma_m16n8k16<T>(sum_of_x_[m], ones, b[m][0], b[m][1]);
      }
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        scaled[m][e] = b[m][e];
        if constexpr (Codes::kScalesX) {
          const auto factor = bits_as<Pair<T>>(factor_[m][kStep % Codes::kPositions]);
          scaled[m][e] = bits_as<std::uint32_t>(__hmul2(bits_as<Pair<T>>(b[m][e]), factor));
        }
      }
    }
    // With few rows all of the step's codes before its products: then they lie in registers of
    // their own, and no product waits for another to have read them.
    constexpr int kAtOnce = kTilesM == 1 ? kTiles : 1;
#pragma unroll
    for (int first = 0; first < kTiles; first += kAtOnce) {
      std::uint32_t a[kAtOnce][4];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int t = first + i;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          a[i][e] = Codes::template pair<kStep>(word_of(words[t], e));
          if constexpr (kSubtracts) {
            const std::uint32_t zero = zeros_[t][e % 2] << (WBits * (kStep % Codes::kPositions));
            a[i][e] =
                bits_as<std::uint32_t>(__hsub2(bits_as<Pair<T>>(a[i][e]), bits_as<Pair<T>>(zero)));
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
        for (int m = 0; m < kTilesM; ++m) {
          ptx::mma_m16n8k16<T>(sums_[first + i][m], a[i], scaled[m][0], scaled[m][1]);
        }
      }
    }
  }

  static constexpr int kPitch = DecodeStorage<C>::kPitch;
  /// Of a lane's first total among the warp's [row][channel].
  static __device__ __forceinline__ int place(int lane) {
    return 2 * (lane % 4) * kPitch + lane / 4;
  }
  /// Writes the totals, from there on.
  __device__ __forceinline__ void store(float* sums, int /*lane*/) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sums[(8 * m + i % 2) * kPitch + 16 * t + 8 * (i / 2)] = total[t][m][i];
        }
      }
    }
  }

  float total[kTiles][kTilesM][4];

 private:
  // add(total, sum of the group, h, m, j) for all of a tile.
  template <class Add>
  __device__ __forceinline__ void for_each_sum(int t, const Add& add) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
        for (int j = 0; j < 2; ++j) add(total[t][m][2 * h + j], sums_[t][m][2 * h + j], h, m, j);
      }
    }
  }
  __device__ __forceinline__ float unit_of(int m, int j) const {
    constexpr float kQuantum = T == DType::f16 ? 0x1p-24f : 0x1p-133f;
    return Codes::kScalesX ? float_power(raise_[m][j]) * kQuantum : kQuantum;
  }
  Parameters parameters_;  // of the group, where its zeros are needed before its end
  float sums_[kTiles][kTilesM][4], sum_of_x_[kTilesM][4];
  std::uint32_t zeros_[kTiles][2];                    // pairs
  std::uint32_t factor_[kTilesM][Codes::kPositions];  // pairs, of row lane / 4
  int raise_[kTilesM][2];                             // log2, of rows 2 * (lane % 4) + j
};

}  // namespace mpq::kernels

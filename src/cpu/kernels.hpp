#pragma once
// The CPU's kernels, for a vector type V (simd_*.hpp). Included once per instruction set, by a file
// that is compiled for it. Everything here is a template over V and calls nothing that is not, nor
// the standard library: an inline function shared with the rest of the program could be emitted
// with this file's instructions and then be the copy that the linker keeps for all.

#include <cstddef>
#include <cstdint>

#include "cpu/kernel_set.hpp"

// Sums and weights are small arrays of vectors: only where their loops are gone do they become
// registers.
// Not under sanitizers, which would check each of the thousands of steps by itself: minutes to
// compile.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MPQ_UNROLL
#else
#define MPQ_UNROLL _Pragma("GCC unroll 32")
#endif
#define MPQ_ALWAYS_INLINE __attribute__((always_inline))

namespace mpq::detail::cpu {

/// A tile's scales and offsets as floats, [groups, kTileChannels] each.
struct TileStatistics {
  const float* scale;
  const float* offset;
};

template <class V>
TileStatistics read_statistics(const Layer& layer, std::int64_t tile, float* scratch) {
  const std::int64_t stride = layer.statistics_stride();
  float* scale = scratch;
  float* offset = scratch + stride;
  const auto none = V::set1(-static_cast<float>(1 << (layer.bits - 1)));
  for (std::int64_t i = 0; i < stride; i += V::kLanes) {
    const std::int64_t at = tile * stride + i;
    const auto s = V::load_16bit(layer.scales + at, layer.scale_dtype);
    V::store(scale + i, s);
    switch (layer.zero_kind) {
      case ZeroKind::none:
        V::store(offset + i, V::mul(s, none));
        break;
      case ZeroKind::integer:
        V::store(offset + i, V::mul(s, V::negate(V::load_u16(layer.zeros + at))));
        break;
      case ZeroKind::affine:
        V::store(offset + i, V::load(layer.affine_zeros + at));
        break;
    }
  }
  return {scale, offset};
}

/// Calls sink(column, parity, weights) with the weights of V::kChannels channels, vector by vector,
/// for chunks [begin, end); `column` counts from chunk 0. `parity`, 0 or 1, alternates.
/// `first_words` and `statistics` point to the first of the channels in their tile.
template <class V, int WBits, class Sink>
MPQ_ALWAYS_INLINE inline void for_each_step(const Layer& layer, const std::uint32_t* first_words,
                                            const TileStatistics& statistics, std::int64_t begin,
                                            std::int64_t end, Sink&& sink) {
  using Float = typename V::Float;
  using Floats = typename V::Floats;
  using Words = typename V::Words;
  using Dequantizer = typename V::template Dequantizer<WBits>;
  using Dequantizers = typename V::template Dequantizers<WBits>;
  constexpr int kSteps = 32 / WBits;
  constexpr int kChannels = V::kChannels;
  constexpr int kChunkColumns = kSteps * kStep;

  const auto load_words = [&](std::int64_t chunk, int part, Words& words) MPQ_ALWAYS_INLINE {
    const std::uint32_t* source = first_words + chunk * (kTileChannels * kStep) + part * V::kLanes;
    MPQ_UNROLL
    for (int c = 0; c < kChannels; ++c) {
      words[c] = V::load_words(source + c * kStep);
      V::prefetch(source + c * kStep + V::kPrefetchWords);
    }
  };
  const auto dequantizers = [&](std::int64_t group, Dequantizers& dequantize) MPQ_ALWAYS_INLINE {
    MPQ_UNROLL
    for (int c = 0; c < kChannels; ++c) {
      dequantize[c] = Dequantizer(statistics.scale + group * kTileChannels + c,
                                  statistics.offset + group * kTileChannels + c);
    }
  };
  const auto step = [&](std::int64_t column, int parity, Words& words,
                        const Dequantizers& dequantize) MPQ_ALWAYS_INLINE {
    Floats weights;
    MPQ_UNROLL
    for (int c = 0; c < kChannels; ++c) {
      weights[c] = dequantize[c](words[c]);
      words[c] = V::template shift_right<WBits>(words[c]);
    }
    sink(column, parity, weights);
  };

  if (layer.run_steps == kSteps) {  // a chunk is in one group: all is unrolled
    std::int64_t group = begin / layer.runs_per_group;
    std::int64_t left = layer.runs_per_group - begin % layer.runs_per_group;
    for (std::int64_t chunk = begin; chunk < end; ++chunk) {
      Dequantizers dequantize;
      dequantizers(group, dequantize);
      if (--left == 0) {
        ++group;
        left = layer.runs_per_group;
      }
      for (int part = 0; part < kStep / V::kLanes; ++part) {
        Words words;
        load_words(chunk, part, words);
        const std::int64_t column = chunk * kChunkColumns + part * V::kLanes;
        MPQ_UNROLL
        for (int s = 0; s < kSteps; ++s) step(column + s * kStep, s % 2, words, dequantize);
      }
    }
  } else if (layer.run_steps != 0) {  // several groups in a chunk
    const int run_steps = layer.run_steps, runs = kSteps / run_steps;
    for (std::int64_t chunk = begin; chunk < end; ++chunk) {
      for (int part = 0; part < kStep / V::kLanes; ++part) {
        Words words;
        load_words(chunk, part, words);
        std::int64_t column = chunk * kChunkColumns + part * V::kLanes;
        for (int run = 0; run < runs; ++run) {
          Dequantizers dequantize;
          const std::int64_t group = chunk * runs + run;  // padding may be past the last
          dequantizers(group < layer.groups ? group : layer.groups - 1, dequantize);
          int s = 0;
          for (; s + 2 <= run_steps; s += 2, column += 2 * kStep) {
            step(column, 0, words, dequantize);
            step(column + kStep, 1, words, dequantize);
          }
          if (s < run_steps) {
            step(column, 0, words, dequantize);
            column += kStep;
          }
        }
      }
    }
  } else {  // groups begin anywhere
    for (std::int64_t chunk = begin; chunk < end; ++chunk) {
      for (int part = 0; part < kStep / V::kLanes; ++part) {
        Words words;
        load_words(chunk, part, words);
        for (int s = 0; s < kSteps; ++s) {
          const std::int64_t column = chunk * kChunkColumns + s * kStep + part * V::kLanes;
          const std::int32_t group = layer.step_group[column / kStep];
          Floats weights;
          MPQ_UNROLL
          for (int c = 0; c < kChannels; ++c) {
            Float scale, offset;
            if (group >= 0) {
              scale = V::set1(statistics.scale[group * kTileChannels + c]);
              offset = V::set1(statistics.offset[group * kTileChannels + c]);
            } else {
              const std::int32_t* groups = layer.column_group + column;
              scale = V::template gather<kTileChannels>(statistics.scale + c, groups);
              offset = V::template gather<kTileChannels>(statistics.offset + c, groups);
            }
            weights[c] = V::fma(V::template code<WBits>(words[c]), scale, offset);
            words[c] = V::template shift_right<WBits>(words[c]);
          }
          sink(column, s % 2, weights);
        }
      }
    }
  }
}

template <class V>
inline void write_result(const Layer& layer, const Activations& a, std::int64_t row,
                         std::int64_t channel, float sum) {
  if (channel >= layer.n) return;
  if (layer.bias != nullptr) sum += layer.bias[channel];
  a.y[row * a.ld_y + channel] = V::to_16bit(sum, a.dtype);
}

/// Few rows: weights go from memory through registers into the sums.
template <class V, int WBits, int Rows>
void decode_tile(const Layer& layer, const Activations& a, std::int64_t first_row,
                 std::int64_t tile, const TileStatistics& statistics) {
  // One row has few sums to add to, fewer than the additions that a core has in flight.
  constexpr std::size_t kSums = Rows == 1 ? 2 : 1;
  for (int first = 0; first < kTileChannels; first += V::kChannels) {
    typename V::Floats sums[kSums][static_cast<std::size_t>(Rows)];
    MPQ_UNROLL
    for (std::size_t p = 0; p < kSums; ++p) {
      MPQ_UNROLL
      for (int r = 0; r < Rows; ++r) {
        MPQ_UNROLL
        for (int c = 0; c < V::kChannels; ++c) sums[p][r][c] = V::set1(0.0f);
      }
    }
    const float* rows = a.x + first_row * layer.k_padded;
    for_each_step<V, WBits>(layer, layer.codes + tile * layer.tile_words() + first * kStep,
                            {statistics.scale + first, statistics.offset + first}, 0,
                            layer.k_padded / chunk_columns(WBits),
                            [&](std::int64_t column, int parity, const typename V::Floats& weights)
                                MPQ_ALWAYS_INLINE {
                                  MPQ_UNROLL
                                  for (int r = 0; r < Rows; ++r) {
                                    const auto x = V::load(rows + r * layer.k_padded + column);
                                    MPQ_UNROLL
                                    for (int c = 0; c < V::kChannels; ++c) {
                                      auto& sum = sums[kSums == 2 ? parity : 0][r][c];
                                      sum = V::fma(weights[c], x, sum);
                                    }
                                  }
                                });
    MPQ_UNROLL
    for (int r = 0; r < Rows; ++r) {
      MPQ_UNROLL
      for (int c = 0; c < V::kChannels; ++c) {
        auto sum = sums[0][r][c];
        if constexpr (kSums == 2) sum = V::add(sum, sums[1][r][c]);
        write_result<V>(layer, a, first_row + r, tile * kTileChannels + first + c, V::sum(sum));
      }
    }
  }
}

/// Rows 4 at a time; after the first 4 the tile's codes come from the cache.
template <class V, int WBits>
void decode_tile_rows(const Layer& layer, const Activations& a, std::int64_t tile, float* scratch) {
  const TileStatistics statistics = read_statistics<V>(layer, tile, scratch);
  for (std::int64_t row = 0; row < a.rows; row += 4) {
    switch (a.rows - row) {
      case 1:
        decode_tile<V, WBits, 1>(layer, a, row, tile, statistics);
        break;
      case 2:
        decode_tile<V, WBits, 2>(layer, a, row, tile, statistics);
        break;
      case 3:
        decode_tile<V, WBits, 3>(layer, a, row, tile, statistics);
        break;
      default:
        decode_tile<V, WBits, 4>(layer, a, row, tile, statistics);
        break;
    }
  }
}

/// sums [rows, kTileChannels] += x [rows, columns] weights [kTileChannels, columns]^T; each sum a
/// vector.
template <class V, int Rows>
inline void multiply_rows(const float* x, std::int64_t ld_x, const float* weights, int columns,
                          float* sums) {
  typename V::Float sum[static_cast<std::size_t>(Rows)][kTileChannels];
  MPQ_UNROLL
  for (int r = 0; r < Rows; ++r) {
    MPQ_UNROLL
    for (int c = 0; c < kTileChannels; ++c) {
      sum[r][c] = V::load(sums + (r * kTileChannels + c) * V::kLanes);
    }
  }
  for (int column = 0; column < columns; column += V::kLanes) {
    typename V::Float w[kTileChannels];
    MPQ_UNROLL
    for (int c = 0; c < kTileChannels; ++c) w[c] = V::load(weights + c * kBlockColumns + column);
    MPQ_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const auto value = V::load(x + r * ld_x + column);
      MPQ_UNROLL
      for (int c = 0; c < kTileChannels; ++c) sum[r][c] = V::fma(w[c], value, sum[r][c]);
    }
  }
  MPQ_UNROLL
  for (int r = 0; r < Rows; ++r) {
    MPQ_UNROLL
    for (int c = 0; c < kTileChannels; ++c) {
      V::store(sums + (r * kTileChannels + c) * V::kLanes, sum[r][c]);
    }
  }
}

/// More rows: a block of weights (kBlockTiles tiles, kBlockColumns columns, 32 KiB) is dequantised
/// once and multiplied with all rows of x while it is in the nearest cache.
template <class V, int WBits>
void multiply_tiles(const Layer& layer, const Activations& a, std::int64_t first,
                    std::int64_t tiles, float* scratch) {
  constexpr int kTileWeights = kTileChannels * kBlockColumns;
  constexpr int kRowSums = kTileChannels * V::kLanes;
  constexpr int kTileSums = kTileRows * kRowSums;
  float* const weights = scratch + 2 * kBlockTiles * layer.statistics_stride();
  float* const sums = weights + kBlockTiles * kTileWeights;
  TileStatistics statistics[kBlockTiles];
  for (std::int64_t t = 0; t < tiles; ++t) {
    statistics[t] =
        read_statistics<V>(layer, first + t, scratch + 2 * t * layer.statistics_stride());
    float* const sum = sums + t * kTileSums;
    for (std::int64_t i = 0; i < a.rows * kRowSums; ++i) sum[i] = 0.0f;
  }
  for (std::int64_t column = 0; column < layer.k_padded; column += kBlockColumns) {
    const std::int64_t left = layer.k_padded - column;
    const int columns = left < kBlockColumns ? static_cast<int>(left) : kBlockColumns;
    for (std::int64_t t = 0; t < tiles; ++t) {
      for (int c0 = 0; c0 < kTileChannels; c0 += V::kChannels) {
        float* const target = weights + t * kTileWeights + c0 * kBlockColumns;
        for_each_step<V, WBits>(
            layer, layer.codes + (first + t) * layer.tile_words() + c0 * kStep,
            {statistics[t].scale + c0, statistics[t].offset + c0}, column / chunk_columns(WBits),
            (column + columns) / chunk_columns(WBits),
            [&](std::int64_t at, int, const typename V::Floats& w) MPQ_ALWAYS_INLINE {
              MPQ_UNROLL
              for (int c = 0; c < V::kChannels; ++c) {
                V::store(target + c * kBlockColumns + (at - column), w[c]);
              }
            });
      }
    }
    for (std::int64_t row = 0; row < a.rows; row += V::kRows) {
      const float* x = a.x + row * layer.k_padded + column;
      for (std::int64_t t = 0; t < tiles; ++t) {
        const float* w = weights + t * kTileWeights;
        float* sum = sums + t * kTileSums + row * kRowSums;
        if (a.rows - row >= V::kRows) {
          multiply_rows<V, V::kRows>(x, layer.k_padded, w, columns, sum);
        } else {
          for (std::int64_t r = 0; r < a.rows - row; ++r) {
            multiply_rows<V, 1>(x + r * layer.k_padded, layer.k_padded, w, columns,
                                sum + r * kRowSums);
          }
        }
      }
    }
  }
  for (std::int64_t t = 0; t < tiles; ++t) {
    for (std::int64_t r = 0; r < a.rows; ++r) {
      MPQ_UNROLL
      for (int c = 0; c < kTileChannels; ++c) {
        const float* sum = sums + t * kTileSums + r * kRowSums + c * V::kLanes;
        write_result<V>(layer, a, r, (first + t) * kTileChannels + c, V::sum(V::load(sum)));
      }
    }
  }
}

template <class V, int WBits>
void forward_bits(const Layer& layer, const Activations& a, std::int64_t begin, std::int64_t end,
                  float* scratch) {
  if (a.rows > V::kDecodeRows) {
    for (std::int64_t tile = begin; tile < end; tile += kBlockTiles) {
      const std::int64_t tiles = end - tile < kBlockTiles ? end - tile : kBlockTiles;
      multiply_tiles<V, WBits>(layer, a, tile, tiles, scratch);
    }
    return;
  }
  for (std::int64_t tile = begin; tile < end; ++tile) {
    decode_tile_rows<V, WBits>(layer, a, tile, scratch);
  }
}

template <class V>
void forward(const Layer& layer, const Activations& a, std::int64_t begin, std::int64_t end,
             float* scratch) {
  switch (layer.bits) {
    case 1:
      return forward_bits<V, 1>(layer, a, begin, end, scratch);
    case 2:
      return forward_bits<V, 2>(layer, a, begin, end, scratch);
    case 4:
      return forward_bits<V, 4>(layer, a, begin, end, scratch);
    default:
      return forward_bits<V, 8>(layer, a, begin, end, scratch);
  }
}

template <class V>
void convert(const std::uint16_t* source, std::int64_t count, DType dtype, float* target) {
  std::int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) {
    V::store(target + i, V::load_16bit(source + i, dtype));
  }
  if (i == count) return;
  std::uint16_t rest[V::kLanes] = {};
  for (std::int64_t j = i; j < count; ++j) rest[j - i] = source[j];
  float values[V::kLanes];
  V::store(values, V::load_16bit(rest, dtype));
  for (std::int64_t j = i; j < count; ++j) target[j] = values[j - i];
}

}  // namespace mpq::detail::cpu

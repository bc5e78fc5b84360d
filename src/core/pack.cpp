#include "mpq/pack.hpp"

#include <algorithm>
#include <array>
#include <optional>

#include "core/format.hpp"
#include "core/statistics.hpp"
#include "cpu/thread_pool.hpp"
#include "mpq/column_order.hpp"
#include "mpq/error.hpp"
#include "mpq/layout.hpp"

namespace mpq {
namespace {

using detail::Range;

void check_pack_arguments(const char* what, std::size_t size, std::size_t expected, std::int64_t k,
                          std::int64_t n, int bits) {
  if (!is_supported_bits(bits)) {
    throw Error(ErrorCode::invalid_argument,
                detail::format("bits is {}, expected 1, 2, 4 or 8", bits));
  }
  constexpr std::int64_t kMaxExtent = 0x7fffffff;
  if (k < 0 || n < 0 || k > kMaxExtent || n > kMaxExtent) {
    throw Error(ErrorCode::invalid_argument,
                detail::format("shape is [{}, {}], expected 0 to {} each", k, n, kMaxExtent));
  }
  if (size != expected) {
    throw Error(ErrorCode::invalid_argument,
                detail::format("{} {}, expected {} for k = {}, n = {}, {} bits", size, what,
                               expected, k, n, bits));
  }
}

std::size_t word_count(std::int64_t k, std::int64_t n, int bits) {
  return k < 0 || n < 0 ? 0 : static_cast<std::size_t>(ceil_div(k * bits, 32) * n);
}

// Channels that a thread takes together.
constexpr std::int64_t kChannels = 16;

// Of kChannels neighbouring channels, each channel's groups side by side.
struct ChannelStatistics {
  std::vector<float> scale;  // [kChannels, G]
  std::vector<float> zero;   // [kChannels, G]: z, or b with affine zeros
};

void read_statistics(const WeightsData& plain, int bits, std::int64_t first, std::int64_t channels,
                     ChannelStatistics& out) {
  const std::int64_t groups = plain.groups(), n = plain.out_features;
  out.scale.resize(static_cast<std::size_t>(kChannels * groups));
  out.zero.resize(out.scale.size());
  for (std::int64_t g = 0; g < groups; ++g) {
    for (std::int64_t c = 0; c < channels; ++c) {
      const auto from = static_cast<std::size_t>(g * n + first + c);
      const auto to = static_cast<std::size_t>(c * groups + g);
      out.scale[to] = to_float(plain.scales[from], plain.dtype);
      switch (plain.zero_kind) {
        case ZeroKind::none:
          out.zero[to] = static_cast<float>(1 << (bits - 1));
          break;
        case ZeroKind::integer:
          out.zero[to] = static_cast<float>(plain.zeros[from]);
          break;
        case ZeroKind::affine:
          out.zero[to] = plain.affine_zeros[from];
          break;
      }
    }
  }
}

// One channel. `weight(q, s, z)` is the formula of the kind of zero.
template <class Weight>
void dequantize_channel(const WeightsData& weights, const std::uint8_t* codes, const float* scale,
                        const float* zero, float* row, Weight weight) {
  const std::int64_t k = weights.in_features, groups = weights.groups();
  if (!weights.g_idx.empty()) {
    for (std::int64_t i = 0; i < k; ++i) {
      const std::int32_t g = weights.g_idx[static_cast<std::size_t>(i)];
      row[i] = weight(static_cast<float>(codes[i]), scale[g], zero[g]);
    }
    return;
  }
  const std::int64_t group_size = weights.group_size == -1 ? k : weights.group_size;
  for (std::int64_t g = 0; g < groups; ++g) {
    const float s = scale[g], z = zero[g];
    const std::int64_t end = std::min(k, (g + 1) * group_size);
    for (std::int64_t i = g * group_size; i < end; ++i) {
      row[i] = weight(static_cast<float>(codes[i]), s, z);
    }
  }
}

template <int WBits>
void dequantize_channels(const WeightsData& weights, const WeightsData& plain, Range range,
                         float* out) {
  constexpr int kPerWord = 32 / WBits;
  constexpr std::uint32_t kMask = (1u << WBits) - 1;
  const std::int64_t k = weights.in_features, n = weights.out_features, groups = weights.groups();
  const std::int64_t words = ceil_div(k, kPerWord);
  ChannelStatistics statistics;
  // One channel's codes; all kChannels at once, so that the words of a row, which are neighbours in
  // memory, are read together while the output is written row by row.
  const auto stride = static_cast<std::size_t>(words * kPerWord);
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(kChannels) * stride);
  for (std::int64_t first = range.begin; first < range.end; first += kChannels) {
    const std::int64_t channels = std::min(kChannels, range.end - first);
    read_statistics(plain, WBits, first, channels, statistics);
    for (std::int64_t word = 0; word < words; ++word) {
      const std::uint32_t* source = weights.qweight.data() + word * n + first;
      for (std::int64_t c = 0; c < channels; ++c) {
        std::uint8_t* target =
            codes.data() + static_cast<std::size_t>(c) * stride + word * kPerWord;
        for (int i = 0; i < kPerWord; ++i) {
          target[i] = static_cast<std::uint8_t>((source[c] >> (WBits * i)) & kMask);
        }
      }
    }
    for (std::int64_t c = 0; c < channels; ++c) {
      const std::uint8_t* code = codes.data() + static_cast<std::size_t>(c) * stride;
      const float* scale = statistics.scale.data() + c * groups;
      const float* zero = statistics.zero.data() + c * groups;
      float* row = out + (first + c) * k;
      if (plain.zero_kind == ZeroKind::affine) {
        dequantize_channel(weights, code, scale, zero, row,
                           [](float q, float s, float b) { return s * q + b; });
      } else {
        dequantize_channel(weights, code, scale, zero, row,
                           [](float q, float s, float z) { return s * (q - z); });
      }
    }
  }
}

// Codes [KernelLayout<2>::kBlockK, kBlockN] of a block.
void complement(const WeightsData& weights, const ColumnOrder& order, std::int64_t first_k,
                std::int64_t first_n, std::vector<std::uint8_t>& codes) {
  using Layout = KernelLayout<2>;
  const std::int64_t n = weights.out_features;
  const std::int64_t channels = std::min<std::int64_t>(Layout::kBlockN, n - first_n);
  for (std::int64_t row = 0; row < Layout::kBlockK; ++row) {
    const std::int64_t group =
        order.group[static_cast<std::size_t>((first_k + row) / order.group_columns)];
    if (group < 0) continue;
    const std::uint16_t* zeros = weights.zeros.data() + group * n + first_n;
    std::uint8_t* of_row = codes.data() + row * Layout::kBlockN;
    for (std::int64_t c = 0; c < channels; ++c) {
      if (is_stored_complemented(2, zeros[c])) of_row[c] ^= 3;
    }
  }
}

// Fills the kernel layout's blocks [range) of a tensor. Within a block the bijection is the same
// everywhere, so it is evaluated once, into `source`, and not once per code.
template <int WBits>
void pack_blocks(const WeightsData& weights, const ColumnOrder& order, Range range,
                 std::uint32_t* out) {
  using Layout = KernelLayout<WBits>;
  constexpr int kPerWord = 32 / WBits;
  constexpr std::uint32_t kMask = (1u << WBits) - 1;
  constexpr int kBlockK = Layout::kBlockK, kBlockN = Layout::kBlockN;
  std::vector<std::uint16_t> source(Layout::kWordsPerBlock * kPerWord);  // of [kBlockK, kBlockN]
  for (int word = 0; word < Layout::kWordsPerBlock; ++word) {
    for (int i = 0; i < kPerWord; ++i) {
      const auto c = Layout::coordinate({word, WBits * i}, kBlockK);
      source[static_cast<std::size_t>(word * kPerWord + i)] =
          static_cast<std::uint16_t>(c.k * kBlockN + c.n);
    }
  }
  const std::int64_t blocks_k = order.k_padded / kBlockK, n = weights.out_features;
  std::vector<std::uint8_t> codes(kBlockK * kBlockN);
  for (std::int64_t block = range.begin; block < range.end; ++block) {
    const std::int64_t first_k = block % blocks_k * kBlockK, first_n = block / blocks_k * kBlockN;
    const std::int64_t channels = std::min<std::int64_t>(kBlockN, n - first_n);
    std::fill(codes.begin(), codes.end(), std::uint8_t{0});
    for (int row = 0; row < kBlockK; ++row) {
      const std::int64_t padded = first_k + row;
      const std::int64_t column = order.gathers() ? order.source[static_cast<std::size_t>(padded)]
                                  : padded < order.k ? padded
                                                     : -1;
      if (column < 0) continue;
      const std::uint32_t* words = weights.qweight.data() + column / kPerWord * n + first_n;
      const auto shift = static_cast<int>(column % kPerWord) * WBits;
      std::uint8_t* target = codes.data() + row * kBlockN;
      for (std::int64_t c = 0; c < channels; ++c) {
        target[c] = static_cast<std::uint8_t>((words[c] >> shift) & kMask);
      }
    }
    if (WBits == 2 && weights.zero_kind == ZeroKind::integer)
      complement(weights, order, first_k, first_n, codes);
    std::uint32_t* target = out + block * Layout::kWordsPerBlock;
    for (int word = 0; word < Layout::kWordsPerBlock; ++word) {
      std::uint32_t packed = 0;
      for (int i = 0; i < kPerWord; ++i) {
        const auto at = source[static_cast<std::size_t>(word * kPerWord + i)];
        packed |= static_cast<std::uint32_t>(codes[at]) << (WBits * i);
      }
      target[word] = packed;
    }
  }
}

}  // namespace

std::vector<std::uint32_t> pack(std::span<const std::uint8_t> codes, std::int64_t k, std::int64_t n,
                                int bits) {
  check_pack_arguments("codes", codes.size(), static_cast<std::size_t>(k * n), k, n, bits);
  const auto limit = static_cast<unsigned>(1 << bits);
  const std::int64_t per_word = 32 / bits;
  std::vector<std::uint32_t> words(word_count(k, n, bits));
  detail::parallel_for(ceil_div(k, per_word), 16, [&](Range range) {
    for (std::int64_t column = range.begin * per_word; column < std::min(k, range.end * per_word);
         ++column) {
      const std::uint8_t* source = codes.data() + column * n;
      std::uint32_t* target = words.data() + column / per_word * n;
      const auto shift = static_cast<int>(column % per_word) * bits;
      unsigned largest = 0;
      for (std::int64_t c = 0; c < n; ++c) {
        largest = std::max<unsigned>(largest, source[c]);
        target[c] |= static_cast<std::uint32_t>(source[c]) << shift;
      }
      if (largest < limit) continue;
      const auto at = std::find_if(source, source + n, [&](std::uint8_t c) { return c >= limit; });
      throw Error(ErrorCode::invalid_argument,
                  detail::format("code of column {}, channel {} is {}, expected less than {}",
                                 column, at - source, *at, limit));
    }
  });
  return words;
}

std::vector<std::uint8_t> unpack(std::span<const std::uint32_t> words, std::int64_t k,
                                 std::int64_t n, int bits) {
  check_pack_arguments("words", words.size(), is_supported_bits(bits) ? word_count(k, n, bits) : 0,
                       k, n, bits);
  const std::int64_t per_word = 32 / bits;
  const std::uint32_t mask = (1u << bits) - 1;
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(k * n));
  detail::parallel_for(k, 64, [&](Range range) {
    for (std::int64_t column = range.begin; column < range.end; ++column) {
      const std::uint32_t* source = words.data() + column / per_word * n;
      std::uint8_t* target = codes.data() + column * n;
      const auto shift = static_cast<int>(column % per_word) * bits;
      for (std::int64_t c = 0; c < n; ++c) {
        target[c] = static_cast<std::uint8_t>((source[c] >> shift) & mask);
      }
    }
  });
  return codes;
}

std::vector<float> dequantize(const AnyQuantizedWeights& weights) {
  return std::visit(
      [](const auto& w) {
        check_structure(w, w.w_bit);
        std::optional<WeightsData> decompressed;
        if (w.double_quantized) decompressed = detail::plain_statistics(w);
        const WeightsData& plain =
            decompressed ? *decompressed : static_cast<const WeightsData&>(w);
        std::vector<float> out(static_cast<std::size_t>(w.out_features * w.in_features));
        detail::parallel_for(w.out_features, kChannels, [&](Range range) {
          dequantize_channels<std::remove_cvref_t<decltype(w)>::w_bit>(w, plain, range, out.data());
        });
        return out;
      },
      weights);
}

std::vector<std::uint32_t> pack_kernel_layout(const AnyQuantizedWeights& weights) {
  return std::visit(
      [](const auto& w) {
        constexpr int kBits = std::remove_cvref_t<decltype(w)>::w_bit;
        using Layout = KernelLayout<kBits>;
        check_structure(w, kBits);
        const ColumnOrder order = order_columns(kBits, w.in_features, w.group_size, w.g_idx);
        const std::int64_t n_padded = round_up(w.out_features, Layout::kAlignN);
        std::vector<std::uint32_t> out(
            static_cast<std::size_t>(Layout::words(order.k_padded, n_padded)));
        const auto blocks = static_cast<std::int64_t>(out.size()) / Layout::kWordsPerBlock;
        detail::parallel_for(blocks, 16,
                             [&](Range range) { pack_blocks<kBits>(w, order, range, out.data()); });
        return out;
      },
      weights);
}

}  // namespace mpq

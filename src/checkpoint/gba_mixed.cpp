// GBA's channel-mix (bitorch-engine's MBWQ layer): several widths in one layer, in rows as EXL2 has
// them. With G groups of R_g rows of b_g bits:
//
//   q_groups I16 [2G]  b_g, first row of qweight     scales, zeros [G, N]     bias [N], optional
//   qweight  I32 [sum of R_g, N]   of each channel, the group's codes as one string of bits from
//   the
//                                  lowest up, so that codes of 3, 5 and 6 bits cross words
//   q_perm   I16 [K], unsigned     the input feature of each code     channel_scale [1, 1, K]
//
// A group has R_g * 32 / b_g input features. w = q * s - zero; channel_scale multiplies x.

#include <array>

#include "checkpoint/format.hpp"
#include "checkpoint/packed_layer.hpp"
#include "checkpoint/text.hpp"
#include "cpu/thread_pool.hpp"

namespace mpq::detail {

namespace {

using namespace std::string_view_literals;

constexpr std::array kMarks{"q_groups"sv};

bool claims(const LayerTensors& tensors) {
  return tensors.has("q_groups");
}

/// Rows of one group in qweight and in the weight.
struct RowGroup {
  int bits;
  std::int64_t first_row, rows, first_feature;

  std::int64_t features() const { return rows * 32 / bits; }
};

std::vector<RowGroup> row_groups(const LayerTensors& tensors) {
  const Tensor& q_groups = tensors.get("q_groups");
  q_groups.of_type({SafetensorsType::I16}).of_rank(1, "2 * groups");
  const auto values = q_groups.values<std::uint16_t>();
  const std::int64_t all_rows = tensors.get("qweight").shape()[0];
  if (values.empty() || values.size() % 2 != 0) {
    fail(ErrorCode::invalid_file, "{} has shape {}, expected bits and first row of each group",
         q_groups.where(), shape_text(q_groups.shape()));
  }
  std::vector<RowGroup> groups;
  std::int64_t feature = 0;
  for (std::size_t i = 0; i < values.size(); i += 2) {
    const int bits = values[i];
    const std::int64_t first = values[i + 1];
    const std::int64_t end = i + 3 < values.size() ? values[i + 3] : all_rows;
    if (bits < 1 || bits > 8) {
      fail(ErrorCode::invalid_file, "{}: group {} has {} bits, expected 1 to 8", q_groups.where(),
           i / 2, bits);
    }
    if (first >= end || (i == 0 && first != 0) || (end - first) * 32 % bits != 0) {
      fail(ErrorCode::invalid_file, "{}: group {} of {} bits has rows {} to {} of {}",
           q_groups.where(), i / 2, bits, first, end, all_rows);
    }
    groups.push_back({bits, first, end - first, feature});
    feature += groups.back().features();
  }
  return groups;
}

LayerInfo inspect(const LayerTensors& tensors, const LayerSettings&) {
  LayerInfo info = begin_info(tensors);
  const Tensor& qweight = tensors.get("qweight");
  qweight.of_type({SafetensorsType::I32}).of_rank(2, "rows, out_features");
  const auto groups = row_groups(tensors);
  info.in_features = groups.back().first_feature + groups.back().features();
  info.out_features = qweight.shape()[1];
  check_features(info, qweight);
  const auto count = static_cast<std::int64_t>(groups.size());
  const Tensor& scales =
      tensors.get("scales").of_shape({count, info.out_features}, "groups, out_features");
  tensors.get("zeros")
      .of_type({SafetensorsType::F16, SafetensorsType::BF16, SafetensorsType::F32})
      .of_shape({count, info.out_features}, "groups, out_features");
  if (const Tensor* q_perm = tensors.find("q_perm")) {
    q_perm->of_type({SafetensorsType::I16}).of_shape({info.in_features}, "in_features");
    info.act_order = true;
  }
  if (const Tensor* channel_scale = tensors.find("channel_scale")) {
    channel_scale->of_shape({1, 1, info.in_features}, "1, 1, in_features");
    channel_scale->of_type({SafetensorsType::F16, SafetensorsType::BF16, SafetensorsType::F32});
  }
  inspect_bias(tensors, info);
  for (const auto& group : groups) {
    if (std::ranges::find(info.mixed_bits, group.bits) == info.mixed_bits.end()) {
      info.mixed_bits.push_back(group.bits);
    }
  }
  info.group_size = static_cast<int>(groups.front().features());
  info.zero_kind = ZeroKind::affine;
  info.dtype = scales.exact_dtype();
  info.format = "gba-mixed";
  return info;
}

/// Codes [K, N] of the group, from its rows of words.
void unpack_group(const RowGroup& group, const std::vector<std::uint32_t>& words, std::int64_t n,
                  std::vector<std::uint8_t>& codes) {
  const auto mask = (1u << group.bits) - 1u;
  parallel_for(group.features(), 16, [&](Range range) {
    for (std::int64_t i = range.begin; i < range.end; ++i) {
      const std::int64_t bit = i * group.bits, word = bit / 32, shift = bit % 32;
      const bool crosses = shift + group.bits > 32;
      const std::uint32_t* row = words.data() + (group.first_row + word) * n;
      std::uint8_t* target = codes.data() + (group.first_feature + i) * n;
      for (std::int64_t c = 0; c < n; ++c) {
        std::uint64_t both = row[c];
        if (crosses) both |= std::uint64_t{row[n + c]} << 32;
        target[c] = static_cast<std::uint8_t>((both >> shift) & mask);
      }
    }
  });
}

MixedWeights decode(const LayerTensors& tensors, const LayerInfo& info) {
  MixedWeights out;
  out.in_features = info.in_features;
  out.out_features = info.out_features;
  out.dtype = info.dtype;
  out.codes.resize(static_cast<std::size_t>(info.in_features * info.out_features));
  const auto words = tensors.get("qweight").values<std::uint32_t>();
  for (const auto& group : row_groups(tensors)) {
    out.groups.push_back({group.bits, group.first_feature});
    unpack_group(group, words, info.out_features, out.codes);
  }
  out.scales = tensors.get("scales").halves(info.dtype);
  out.affine_zeros = tensors.get("zeros").floats();
  for (float& zero : out.affine_zeros) zero = -zero;
  if (info.act_order) {
    const auto perm = tensors.get("q_perm").values<std::uint16_t>();
    out.feature.assign(perm.begin(), perm.end());
  }
  if (const Tensor* channel_scale = tensors.find("channel_scale")) {
    out.channel_scale = channel_scale->floats();
    if (std::ranges::all_of(out.channel_scale, [](float s) { return s == 1; })) {
      out.channel_scale.clear();
    }
  }
  if (info.bias) out.bias = tensors.get("bias").floats();
  return out;
}

}  // namespace

constinit const Format kGbaMixed{.name = "gba-mixed",
                                 .marks = kMarks,
                                 .claims = claims,
                                 .inspect = inspect,
                                 .decode = nullptr,
                                 .writer = nullptr,
                                 .zeros = nullptr,
                                 .decode_mixed = decode};

}  // namespace mpq::detail

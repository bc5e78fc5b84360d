// Mixed widths inside one layer: decoded exactly, cut into pieces that Linear runs, and refused by
// name where it cannot.

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "host/checkpoint_files.hpp"
#include "mpq/checkpoint.hpp"
#include "mpq/error.hpp"
#include "mpq/mixed_weights.hpp"
#include "mpq/pack.hpp"
#include "support/catch.hpp"
#include "support/expect_error.hpp"

using namespace mpq;
using namespace mpq::test;

namespace {

struct RowGroup {
  int bits;
  std::int64_t features;
};

/// A channel-mix layer and, bit by bit on its own way, its dense weight.
struct MixedLayer {
  std::vector<TensorCopy> tensors;
  std::vector<float> weight;  ///< [n, k]
  std::int64_t k = 0, n = 24;

  MixedLayer(const std::vector<RowGroup>& groups, bool channel_scale) {
    Random random(7);
    std::vector<std::uint16_t> q_groups, scales, zeros;
    std::int64_t rows = 0;
    for (const auto& group : groups) {
      q_groups.push_back(static_cast<std::uint16_t>(group.bits));
      q_groups.push_back(static_cast<std::uint16_t>(rows));
      rows += group.features * group.bits / 32;
      k += group.features;
      for (std::int64_t c = 0; c < n; ++c) {
        scales.push_back(float_to_f16(static_cast<float>(random.uniform() * 0.1)));
        zeros.push_back(float_to_f16(static_cast<float>(random.uniform())));
      }
    }
    std::vector<std::int16_t> perm(static_cast<std::size_t>(k));
    std::iota(perm.begin(), perm.end(), std::int16_t{0});
    for (std::size_t i = perm.size(); i-- > 1;) {
      std::swap(perm[i],
                perm[static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(i)))]);
    }
    std::vector<std::uint16_t> factors(perm.size(), 0x3c00);
    if (channel_scale) {
      for (auto& factor : factors)
        factor = float_to_f16(static_cast<float>(0.5 + random.uniform()));
    }
    std::vector<std::uint32_t> words(static_cast<std::size_t>(rows * n));
    weight.resize(static_cast<std::size_t>(k * n));
    std::int64_t first_row = 0, place = 0;
    for (std::size_t g = 0; g < groups.size(); ++g) {
      const int bits = groups[g].bits;
      for (std::int64_t i = 0; i < groups[g].features; ++i, ++place) {
        const auto feature = static_cast<std::size_t>(perm[static_cast<std::size_t>(place)]);
        for (std::int64_t c = 0; c < n; ++c) {
          const auto code = static_cast<std::uint32_t>(random.integer(0, (1 << bits) - 1));
          for (int bit = 0; bit < bits; ++bit) {
            const std::int64_t at = i * bits + bit;
            words[static_cast<std::size_t>((first_row + at / 32) * n + c)] |= ((code >> bit) & 1u)
                                                                              << (at % 32);
          }
          const auto statistic = g * static_cast<std::size_t>(n) + static_cast<std::size_t>(c);
          const float w = f16_to_float(scales[statistic]) * static_cast<float>(code) -
                          f16_to_float(zeros[statistic]);
          weight[static_cast<std::size_t>(c * k) + feature] = w * f16_to_float(factors[feature]);
        }
      }
      first_row += groups[g].features * bits / 32;
    }
    const auto count = static_cast<std::int64_t>(groups.size());
    tensors = {make_tensor("m.qweight", SafetensorsType::I32, {rows, n}, words),
               make_tensor("m.q_groups", SafetensorsType::I16, {2 * count}, q_groups),
               make_tensor("m.q_perm", SafetensorsType::I16, {k}, perm),
               make_tensor("m.channel_scale", SafetensorsType::F16, {1, 1, k}, factors),
               make_tensor("m.scales", SafetensorsType::F16, {count, n}, scales),
               make_tensor("m.zeros", SafetensorsType::F16, {count, n}, zeros)};
  }
};

Checkpoint open(const TemporaryDirectory& directory, const std::vector<TensorCopy>& tensors) {
  write_tensors(directory / "model.safetensors", tensors);
  write_text(directory / "quantize_config.json", R"({"quant_method":"gba"})");
  write_text(directory / "quant_strategy.json",
             R"({"measurement":{"m":{"x":{"bits":[4,2],"bits_prop":[0.5,0.5]}}}})");
  return Checkpoint::open(directory.path());
}

}  // namespace

TEST_CASE("mixed widths decode exactly", "[checkpoint][mixed]") {
  const TemporaryDirectory directory;
  for (const bool channel_scale : {false, true}) {
    const MixedLayer layer({{8, 32}, {6, 64}, {5, 32}, {4, 64}, {4, 32}, {3, 96}, {2, 64}, {2, 16}},
                           channel_scale);
    const auto checkpoint = open(directory, layer.tensors);
    const LayerInfo& info = checkpoint.layers().at(0);
    CHECK(info.format == "gba-mixed");
    CHECK(info.bits == 0);
    CHECK(info.mixed_bits == std::vector<int>{8, 6, 5, 4, 3, 2});
    CHECK(info.in_features == 400);
    CHECK(info.out_features == 24);
    const auto weights = checkpoint.read_mixed("m");
    CHECK(weights.channel_scale.empty() == !channel_scale);
    CHECK(dequantize(weights) == layer.weight);
    CHECK(refuses([&] { checkpoint.read("m"); }, ErrorCode::unsupported, "\"m\"",
                  "8, 6, 5, 4, 3, 2", "read_mixed"));
    CHECK(refuses([&] { pieces_of(weights); }, ErrorCode::unsupported, "6 bits"));
  }
}

TEST_CASE("pieces of one width make up the layer", "[checkpoint][mixed]") {
  const TemporaryDirectory directory;
  for (const auto& groups :
       {std::vector<RowGroup>{{8, 32}, {4, 64}, {4, 64}, {2, 64}, {2, 32}},
        std::vector<RowGroup>{{8, 32}, {4, 32}, {4, 96}, {4, 32}, {2, 16}},  // irregular groups
        std::vector<RowGroup>{{4, 64}}}) {
    const MixedLayer layer(groups, false);
    const auto weights = open(directory, layer.tensors).read_mixed("m");
    const auto pieces = pieces_of(weights);
    std::vector<float> dense(layer.weight.size());
    int last = 9;
    std::size_t features = 0;
    for (const auto& piece : pieces) {
      CHECK(bits_of(piece.weights) < last);
      last = bits_of(piece.weights);
      check_values(data_of(piece.weights), last);
      const auto part = dequantize(piece.weights);
      features += piece.features.size();
      for (std::size_t row = 0; row < 24; ++row) {
        for (std::size_t i = 0; i < piece.features.size(); ++i) {
          dense[row * static_cast<std::size_t>(layer.k) +
                static_cast<std::size_t>(piece.features[i])] =
              part[row * piece.features.size() + i];
        }
      }
    }
    CHECK(features == static_cast<std::size_t>(layer.k));
    CHECK(dense == layer.weight);
  }
}

TEST_CASE("mixed layers that contradict themselves are refused", "[checkpoint][mixed]") {
  const TemporaryDirectory directory;
  const MixedLayer layer({{8, 32}, {4, 64}, {2, 32}}, false);
  const auto refused = [&](const std::string& suffix, std::size_t at, std::uint16_t value,
                           ErrorCode code, const char* words) {
    auto tensors = layer.tensors;
    std::memcpy(tensor_of(tensors, suffix).bytes.data() + 2 * at, &value, 2);
    return refuses([&] { open(directory, tensors).read_mixed("m"); }, code, words);
  };
  const auto file = ErrorCode::invalid_file;
  CHECK(refused("q_groups", 0, 9, file, "group 0 has 9 bits"));
  CHECK(refused("q_groups", 2, 0, file, "group 1 has 0 bits"));
  CHECK(refused("q_groups", 1, 1, file, "group 0 of 8 bits has rows 1"));
  CHECK(refused("q_groups", 5, 8, file, "group 1 of 4 bits has rows 8 to 8"));
  CHECK(refused("q_groups", 5, 600, file, "group 2 of 2 bits has rows 600"));
  CHECK(refused("q_groups", 2, 5, file, "has rows"));
  CHECK(refused("q_perm", 3, 500, ErrorCode::invalid_weights, "place 3 is 500"));
  auto tensors = layer.tensors;
  tensor_of(tensors, "q_groups").shape = {3, 2};
  CHECK(refuses([&] { open(directory, tensors); }, file, "q_groups"));
  for (const char* missing : {"qweight", "scales", "zeros"}) {
    tensors = layer.tensors;
    std::erase_if(tensors, [&](const auto& t) { return t.name == std::string("m.") + missing; });
    CHECK(refuses([&] { open(directory, tensors); }, file, missing, "is missing"));
  }
}

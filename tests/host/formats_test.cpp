// Formats beyond the goldens: layers built from the formats' own formulas, word by word, and the
// overrides that their settings have for single layers.

#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "host/checkpoint_files.hpp"
#include "mpq/checkpoint.hpp"
#include "mpq/error.hpp"
#include "mpq/pack.hpp"
#include "support/catch.hpp"
#include "support/expect_error.hpp"

using namespace mpq;
using namespace mpq::test;

namespace {

template <class T>
using Grid = std::vector<std::vector<T>>;

Grid<unsigned> random_grid(std::int64_t rows, std::int64_t cols, int bits, std::uint64_t seed) {
  Random random(seed);
  Grid<unsigned> grid(static_cast<std::size_t>(rows),
                      std::vector<unsigned>(static_cast<std::size_t>(cols)));
  for (auto& row : grid) {
    for (auto& code : row) code = static_cast<unsigned>(random.integer(0, (1 << bits) - 1));
  }
  return grid;
}

Grid<float> random_halves(std::int64_t rows, std::int64_t cols, double scale, std::uint64_t seed) {
  Random random(seed);
  Grid<float> grid(static_cast<std::size_t>(rows),
                   std::vector<float>(static_cast<std::size_t>(cols)));
  for (auto& row : grid) {
    for (auto& value : row) {
      value = f16_to_float(float_to_f16(static_cast<float>((random.uniform() + 0.1) * scale)));
    }
  }
  return grid;
}

std::vector<std::uint16_t> halves(const Grid<float>& grid) {
  std::vector<std::uint16_t> out;
  for (const auto& row : grid) {
    for (const float value : row) out.push_back(float_to_f16(value));
  }
  return out;
}

/// Each row packed on its own, the first code in the lowest bits.
std::vector<std::uint32_t> pack_rows(const Grid<unsigned>& grid, int bits) {
  std::vector<std::uint32_t> words;
  for (const auto& row : grid) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      const auto shift = i * static_cast<std::size_t>(bits) % 32;
      if (shift == 0) words.push_back(0);
      words.back() |= row[i] << shift;
    }
  }
  return words;
}

Grid<unsigned> turned(const Grid<unsigned>& grid) {
  Grid<unsigned> out(grid[0].size(), std::vector<unsigned>(grid.size()));
  for (std::size_t r = 0; r < grid.size(); ++r) {
    for (std::size_t c = 0; c < grid[r].size(); ++c) out[c][r] = grid[r][c];
  }
  return out;
}

std::vector<std::uint32_t> turned_words(const std::vector<std::uint32_t>& words, std::size_t cols) {
  std::vector<std::uint32_t> out;
  for (std::size_t c = 0; c < cols; ++c) {
    for (std::size_t r = 0; r < words.size() / cols; ++r) out.push_back(words[r * cols + c]);
  }
  return out;
}

struct Directory : TemporaryDirectory {
  Checkpoint open(const std::vector<TensorCopy>& tensors, const std::string& config) const {
    write_tensors(*this / "model.safetensors", tensors);
    write_text(*this / "config.json", config);
    return Checkpoint::open(path());
  }
};

/// Whether the layer's dense weight is weight(n, k), to a rounding of float32 where `rounded`.
bool weight_is(const Checkpoint& checkpoint, const std::string& layer, bool rounded,
               const std::function<double(std::size_t n, std::size_t k)>& weight) {
  const auto weights = checkpoint.read(layer);
  const auto dense = dequantize(weights);
  const auto k = static_cast<std::size_t>(data_of(weights).in_features);
  for (std::size_t i = 0; i < dense.size(); ++i) {
    const auto expected = static_cast<float>(weight(i / k, i % k));
    if (dense[i] != expected && (!rounded || std::nextafter(dense[i], expected) != expected)) {
      UNSCOPED_INFO("weight " << i / k << ", " << i % k << " is " << dense[i] << ", expected "
                              << expected);
      return false;
    }
  }
  return !dense.empty();
}

TensorCopy shape_tensor(const std::string& name, std::int64_t n, std::int64_t k) {
  return make_tensor(name, SafetensorsType::I64, {2}, std::vector<std::int64_t>{n, k});
}

std::string ct_config(const std::string& groups, const std::string& more = "") {
  return R"({"quantization_config":{"quant_method":"compressed-tensors","format":"pack-quantized",)"
         R"("config_groups":{)" +
         groups + "}" + more + "}}";
}

std::string ct_group(const std::string& name, const std::string& target, int bits, bool symmetric,
                     const std::string& grouping) {
  return "\"" + name + R"(":{"targets":[")" + target + R"("],"weights":{"num_bits":)" +
         std::to_string(bits) + R"(,"type":"int","symmetric":)" + (symmetric ? "true" : "false") +
         "," + grouping + "}}";
}

}  // namespace

TEST_CASE("AWQ layers decode by their formula, with or without settings", "[checkpoint][awq]") {
  const Directory directory;
  constexpr std::int64_t kIn = 70, kOut = 24, kGroups = 3;  // the last group is short
  const auto codes = random_grid(kIn, kOut, 4, 1), zeros = random_grid(kGroups, kOut, 4, 2);
  const auto scales = random_halves(kGroups, kOut, 0.1, 3);
  const auto words = [](const Grid<unsigned>& grid) {
    constexpr std::size_t kOrder[] = {0, 2, 4, 6, 1, 3, 5, 7};
    std::vector<std::uint32_t> out;
    for (const auto& row : grid) {
      for (std::size_t c = 0; c < row.size(); c += 8) {
        std::uint32_t word = 0;
        for (std::size_t i = 0; i < 8; ++i) word |= row[c + kOrder[i]] << (4 * i);
        out.push_back(word);
      }
    }
    return out;
  };
  const std::vector<TensorCopy> tensors{
      make_tensor("m.qweight", SafetensorsType::I32, {kIn, kOut / 8}, words(codes)),
      make_tensor("m.qzeros", SafetensorsType::I32, {kGroups, kOut / 8}, words(zeros)),
      make_tensor("m.scales", SafetensorsType::F16, {kGroups, kOut}, halves(scales)),
      make_tensor("head.weight", SafetensorsType::F16, {1}, std::vector<std::uint16_t>{0})};
  for (const char* config :
       {R"({"quantization_config":{"quant_method":"awq","bits":4,"group_size":32,"version":"gemm",
           "zero_point":true,"modules_to_not_convert":["head"]}})",
        R"({"quantization_config":{"w_bit":4,"q_group_size":32,"version":"GEMM"}})",
        R"({"quantization_config":{"group_size":32}})"}) {
    const auto checkpoint = directory.open(tensors, config);
    REQUIRE(checkpoint.layers().size() == 1);
    CHECK(checkpoint.layers()[0].format == "awq");
    CHECK(checkpoint.dense_tensors() == std::vector<std::string>{"head.weight"});
    CHECK(weight_is(checkpoint, "m", false, [&](std::size_t n, std::size_t k) {
      return double{scales[k / 32][n]} *
             (static_cast<double>(codes[k][n]) - static_cast<double>(zeros[k / 32][n]));
    }));
  }
}

TEST_CASE("compressed-tensors layers decode by their formula", "[checkpoint][ct]") {
  const Directory directory;
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto zero_type = GENERATE("none", "packed", "I8");
  const auto grouping = GENERATE(R"("strategy":"group","group_size":16)", R"("strategy":"channel")",
                                 R"("strategy":"group","group_size":16,"actorder":"group")");
  // K and N that fill no word; a short last group.
  constexpr std::int64_t kIn = 43, kOut = 13;
  const bool channel = std::string(grouping).find("channel") != std::string::npos;
  const bool order = std::string(grouping).find("actorder") != std::string::npos;
  const std::int64_t groups = channel ? 1 : 3;
  const auto codes = random_grid(kOut, kIn, bits, 1);     // stored: q + 2^(b-1)
  const auto zeros = random_grid(kOut, groups, bits, 2);  // the same
  const auto scales = random_halves(kOut, groups, 0.1, 3);
  std::vector<std::int32_t> g_idx(kIn);
  for (std::size_t i = 0; i < kIn; ++i) g_idx[i] = static_cast<std::int32_t>(i * 7 % 3);
  std::vector<TensorCopy> tensors{
      make_tensor("m.weight_packed", SafetensorsType::I32, {kOut, ceil_div(kIn * bits, 32)},
                  pack_rows(codes, bits)),
      make_tensor("m.weight_scale", SafetensorsType::F16, {kOut, groups}, halves(scales)),
      shape_tensor("m.weight_shape", kOut, kIn)};
  if (std::string(zero_type) == "packed") {
    tensors.push_back(make_tensor(
        "m.weight_zero_point", SafetensorsType::I32, {ceil_div(kOut * bits, 32), groups},
        turned_words(pack_rows(turned(zeros), bits),
                     static_cast<std::size_t>(ceil_div(kOut * bits, 32)))));
  } else if (std::string(zero_type) == "I8") {
    std::vector<std::int8_t> values;
    for (const auto& row : zeros) {
      for (const auto zero : row) {
        values.push_back(static_cast<std::int8_t>(static_cast<int>(zero) - (1 << (bits - 1))));
      }
    }
    tensors.push_back(
        make_tensor("m.weight_zero_point", SafetensorsType::I8, {kOut, groups}, values));
  }
  if (order) {
    tensors.push_back(make_tensor("m.weight_g_idx", SafetensorsType::I32, {kIn}, g_idx));
  } else if (bits == 4) {  // one that was never filled in
    tensors.push_back(make_tensor("m.weight_g_idx", SafetensorsType::I32, {kIn},
                                  std::vector<std::int32_t>(kIn, -1)));
  }
  const bool symmetric = std::string(zero_type) == "none";
  const auto checkpoint =
      directory.open(tensors, ct_config(ct_group("group_0", "Linear", bits, symmetric, grouping)));
  const LayerInfo& info = checkpoint.layers().at(0);
  CHECK(info.format == "compressed-tensors");
  CHECK(info.act_order == order);
  CHECK(info.zero_kind == (symmetric ? ZeroKind::none : ZeroKind::integer));
  CHECK(weight_is(checkpoint, "m", false, [&](std::size_t n, std::size_t k) {
    const std::size_t g = channel ? 0 : order ? static_cast<std::size_t>(g_idx[k]) : k / 16;
    const double zero = symmetric ? 1 << (bits - 1) : static_cast<double>(zeros[n][g]);
    return double{scales[n][g]} * (static_cast<double>(codes[n][k]) - zero);
  }));
}

TEST_CASE("compressed-tensors groups are chosen by their targets", "[checkpoint][ct]") {
  const Directory directory;
  std::vector<TensorCopy> tensors;
  const auto add = [&](const std::string& name, int bits) {
    tensors.push_back(make_tensor(name + ".weight_packed", SafetensorsType::I32, {8, 2 * bits},
                                  std::vector<std::uint32_t>(static_cast<std::size_t>(16 * bits))));
    tensors.push_back(make_tensor(name + ".weight_scale", SafetensorsType::F16, {8, 2},
                                  std::vector<std::uint16_t>(16, 0x3c00)));
    tensors.push_back(shape_tensor(name + ".weight_shape", 8, 64));
  };
  add("model.layers.0.mlp.up_proj", 4);
  add("model.layers.0.mlp.down_proj", 8);
  add("model.layers.1.mlp.down_proj", 2);
  tensors.push_back(
      make_tensor("lm_head.weight", SafetensorsType::F16, {1}, std::vector<std::uint16_t>{0}));
  const std::string by_32 = R"("strategy":"group","group_size":32)";
  const auto groups = ct_group("a", "Linear", 4, true, by_32) + "," +
                      ct_group("b", "re:.*down_proj$", 8, true, by_32) + "," +
                      ct_group("c", "model.layers.1.mlp.down_proj", 2, true, by_32);
  const auto checkpoint = directory.open(tensors, ct_config(groups, R"(,"ignore":["lm_head"])"));
  REQUIRE(checkpoint.layers().size() == 3);
  CHECK(checkpoint.layers()[0].bits == 8);
  CHECK(checkpoint.layers()[1].bits == 4);
  CHECK(checkpoint.layers()[2].bits == 2);
  CHECK(checkpoint.dense_tensors() == std::vector<std::string>{"lm_head.weight"});
  const auto opening = [&](const std::string& config) {
    return [&directory, &tensors, config] { directory.open(tensors, config); };
  };
  CHECK(refuses(opening(ct_config(ct_group("a", "re:(", 4, true, by_32))), ErrorCode::unsupported,
                "\"re:(\""));
  CHECK(refuses(opening(ct_config(ct_group("a", "Conv2d", 4, true, by_32))),
                ErrorCode::invalid_file, "bits"));
  CHECK(refuses(opening(ct_config(ct_group("a", "Linear", 4, true, R"("strategy":"block")"))),
                ErrorCode::unsupported, "\"block\""));
  CHECK(refuses(opening(ct_config(groups + R"(,"d":{"targets":"Linear"})")),
                ErrorCode::invalid_file, "targets"));
}

TEST_CASE("AutoRound's four routes", "[checkpoint][auto-round]") {
  const Directory directory;
  auto tensors = gptq_tensors({.prefix = "a.mlp.down_proj"});
  const auto route = [&](const std::string& packing) {
    return directory.open(tensors, R"({"quantization_config":{"quant_method":"auto-round","bits":4,
                                       "group_size":32,"sym":false,)" +
                                       packing + R"("data_type":"int"}})");
  };
  for (const auto& [packing, format] :
       {std::pair{R"("packing_format":"auto_round:auto_gptq",)", "gptq"},
        {R"("packing_format":"auto_round:gptq",)", "gptq"},
        {"", "gptq"},
        {R"("packing_format":"auto_round",)", "gptq_v2"},
        {R"("packing_format":"auto_round:auto_gptqmodel",)", "gptq_v2"},
        {R"("packing_format":"auto_round:gptqmodel",)", "gptq_v2"}}) {
    INFO(packing);
    CHECK(route(packing).layers().at(0).format == format);
  }
  const auto awq = kData / "awq-w4-g64";
  tensors = read_tensors(awq / "model.safetensors");
  const auto routed = directory.open(
      tensors, R"({"quantization_config":{"quant_method":"auto-round","bits":4,"group_size":64,
                  "packing_format":"auto_round:auto_awq"}})");
  CHECK(routed.layers().at(0).format == "awq");
  const auto name = routed.layers()[0].name;
  CHECK(dequantize(routed.read(name)) == dequantize(Checkpoint::open(awq).read(name)));
}

TEST_CASE("AutoRound's extra_config overrides layers", "[checkpoint][auto-round]") {
  const Directory directory;
  auto tensors = gptq_tensors({.prefix = "m.0.up", .bits = 2});
  for (const auto& spec :
       {GptqSpec{.prefix = "m.0.down", .bits = 8}, GptqSpec{.prefix = "m.1.down", .bits = 4}}) {
    const auto more = gptq_tensors(spec);
    tensors.insert(tensors.end(), more.begin(), more.end());
  }
  tensors.push_back(
      make_tensor("lm_head.weight", SafetensorsType::F16, {1}, std::vector<std::uint16_t>{0}));
  const auto checkpoint = directory.open(
      tensors,
      R"({"quantization_config":{"quant_method":"auto-round","bits":2,"group_size":32,"extra_config":
         {"m.0.down":{"bits":8},"m\\..*\\.down":{"bits":4},"lm_head":{"bits":16}}}})");
  REQUIRE(checkpoint.layers().size() == 3);
  CHECK(checkpoint.layers()[0].bits == 8);
  CHECK(checkpoint.layers()[1].bits == 2);
  CHECK(checkpoint.layers()[2].bits == 4);
  CHECK(checkpoint.dense_tensors() == std::vector<std::string>{"lm_head.weight"});
}

TEST_CASE("HQQ layers decode by their formula", "[checkpoint][hqq]") {
  const Directory directory;
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto group_size = GENERATE(16, 48);  // 48: all of K
  constexpr std::int64_t kIn = 48, kOut = 24;
  const std::int64_t rows = kOut * kIn / group_size, part = rows * bits / 8;
  const auto codes = random_grid(rows, group_size, bits, 1);
  const auto scales = random_halves(rows, 1, 0.1, 2), zeros = random_halves(rows, 1, 7.0, 3);
  std::vector<std::uint8_t> bytes;
  for (std::int64_t r = 0; r < part; ++r) {
    for (std::size_t c = 0; c < static_cast<std::size_t>(group_size); ++c) {
      unsigned byte = 0;
      for (std::int64_t p = 0; p < 8 / bits; ++p) {
        byte = byte << bits | codes[static_cast<std::size_t>(p * part + r)][c];
      }
      bytes.push_back(static_cast<std::uint8_t>(byte));
    }
  }
  std::vector<TensorCopy> tensors{
      make_tensor("a.mlp.m.W_q", SafetensorsType::U8, {part, group_size}, bytes),
      make_tensor("a.mlp.m.scale", SafetensorsType::F16, {rows, 1}, halves(scales)),
      make_tensor("a.mlp.m.zero", SafetensorsType::F16, {rows, 1}, halves(zeros)),
      shape_tensor("a.mlp.m.shape", kOut, kIn)};
  const auto parameters = R"({"weight_quant_params":{"nbits":)" + std::to_string(bits) +
                          R"(,"group_size":)" + std::to_string(group_size) + R"(,"axis":1}})";
  for (const auto& config : {parameters, R"({"mlp.m":)" + parameters + "}"}) {
    const auto checkpoint = directory.open(
        tensors, R"({"quantization_config":{"quant_method":"hqq","quant_config":)" + config + "}}");
    CHECK(checkpoint.layers().at(0).format == "hqq");
    CHECK(weight_is(checkpoint, "a.mlp.m", true, [&](std::size_t n, std::size_t k) {
      const std::size_t flat = n * kIn + k, row = flat / static_cast<std::size_t>(group_size);
      return (codes[row][flat % static_cast<std::size_t>(group_size)] - double{zeros[row][0]}) *
             double{scales[row][0]};
    }));
  }
  const auto config =
      R"({"quantization_config":{"quant_method":"hqq","quant_config":)" + parameters + "}}";
  tensors.push_back(
      make_tensor("a.mlp.m.axis", SafetensorsType::I64, {}, std::vector<std::int64_t>{0}));
  CHECK(refuses([&] { directory.open(tensors, config); }, ErrorCode::unsupported, "axis is 0"));
  tensors.back() =
      make_tensor("a.mlp.m.nbits", SafetensorsType::I64, {}, std::vector<std::int64_t>{3});
  CHECK(refuses([&] { directory.open(tensors, config); }, ErrorCode::unsupported, "nbits is 3"));
}

TEST_CASE("MLX layers decode by their formula", "[checkpoint][mlx]") {
  const Directory directory;
  const auto bits = GENERATE(2, 4, 8);
  constexpr std::int64_t kIn = 64, kOut = 5;
  const auto codes = random_grid(kOut, kIn, bits, 1);
  const auto scales = random_halves(kOut, 2, 0.1, 2), biases = random_halves(kOut, 2, -1.0, 3);
  const auto add = [&](std::vector<TensorCopy>& tensors, const std::string& name) {
    tensors.push_back(make_tensor(name + ".weight", SafetensorsType::U32, {kOut, kIn * bits / 32},
                                  pack_rows(codes, bits)));
    tensors.push_back(
        make_tensor(name + ".scales", SafetensorsType::F16, {kOut, 2}, halves(scales)));
    tensors.push_back(
        make_tensor(name + ".biases", SafetensorsType::F16, {kOut, 2}, halves(biases)));
  };
  std::vector<TensorCopy> tensors{
      make_tensor("norm.weight", SafetensorsType::F16, {1}, std::vector<std::uint16_t>{0})};
  add(tensors, "a.b");
  add(tensors, "embed");
  const auto told = R"({"group_size":32,"bits":)" + std::to_string(bits) + "}";
  const auto other =
      R"({"group_size":64,"bits":2,"a.b":)" + told + R"(,"embed":)" + told + R"(,"norm":false})";
  for (const auto& settings : {told, other}) {
    const auto checkpoint = directory.open(tensors, R"({"quantization":)" + settings + "}");
    REQUIRE(checkpoint.layers().size() == 2);
    CHECK(checkpoint.layers()[1].format == "mlx");
    CHECK(checkpoint.dense_tensors() == std::vector<std::string>{"norm.weight"});
    for (const char* name : {"a.b", "embed"}) {
      CHECK(weight_is(checkpoint, name, true, [&](std::size_t n, std::size_t k) {
        return double{scales[n][k / 32]} * codes[n][k] + double{biases[n][k / 32]};
      }));
    }
  }
}

TEST_CASE("a layer mix is told by quant_strategy.json", "[checkpoint][gba]") {
  const Directory directory;
  auto tensors = gptq_tensors({.prefix = "model.layers.0.q_proj", .bits = 2});
  const auto more = gptq_tensors({.prefix = "model.layers.10.mlp.up_proj", .bits = 4});
  tensors.insert(tensors.end(), more.begin(), more.end());
  write_text(directory / "quant_strategy.json",
             R"({"measurement":{"model.layers.0":{"q_proj":{"bits":[2],"bits_prop":[1],
                 "group_size":{"2":32}}},"model.layers.1":{"mlp.up_proj":{"bits":[8]}},
                 "model.layers.10":{"up_proj":{"bits":[4],"group_size":{"4":32}}}}})");
  const auto checkpoint = directory.open(tensors, "{}");
  REQUIRE(checkpoint.layers().size() == 2);
  CHECK(checkpoint.layers()[0].bits == 2);
  CHECK(checkpoint.layers()[1].bits == 4);
}

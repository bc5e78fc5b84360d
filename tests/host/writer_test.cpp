// CheckpointWriter: what was read is written again byte for byte, what a format cannot hold exactly
// is told, and a directory appears whole or not at all.

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "host/checkpoint_files.hpp"
#include "mpq/checkpoint_writer.hpp"
#include "mpq/error.hpp"
#include "mpq/pack.hpp"
#include "support/catch.hpp"
#include "support/expect_error.hpp"

using namespace mpq;
using namespace mpq::test;

namespace {

/// Writes all layers and other tensors of a checkpoint in another format.
EncodingLoss convert(const Checkpoint& from, const std::filesystem::path& to,
                     const CheckpointWriterOptions& options) {
  CheckpointWriter writer(to, options);
  EncodingLoss largest;
  for (const auto& layer : from.layers()) {
    const auto loss = writer.add(layer.name, from.read(layer.name));
    if (loss.max_error > largest.max_error) largest = loss;
  }
  for (const auto& name : from.dense_tensors()) writer.add_tensor(from.tensor(name));
  writer.finish();
  return largest;
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(double{a[i]} - double{b[i]}));
  }
  return largest;
}

CheckpointWriterOptions format_options(const std::string& format) {
  CheckpointWriterOptions options;
  options.format = format;
  return options;
}

}  // namespace

TEST_CASE("what was read is written again byte for byte", "[checkpoint][writer]") {
  int compared = 0;
  for (const auto& golden : golden_directories()) {
    const auto checkpoint = Checkpoint::open(golden);
    const std::string name = golden.filename().string();
    if (name.starts_with("hqq")) continue;  // no writer
    INFO(name);
    const TemporaryDirectory parent;
    const auto loss =
        convert(checkpoint, parent / "out", format_options(checkpoint.layers()[0].format));
    CHECK(loss.max_error == 0);
    const auto again = Checkpoint::open(parent / "out");
    const auto layer = checkpoint.layers()[0].name;
    CHECK(dequantize(again.read(layer)) == dequantize(checkpoint.read(layer)));
    CHECK(data_of(again.read(layer)).bias == data_of(checkpoint.read(layer)).bias);
    if (name == "gba-sym-w4-g256") {
      // It also holds statistics that its own writer never filled in.
      auto before = read_tensors(golden / "model.safetensors");
      for (const auto& tensor : read_tensors(parent / "out" / "model.safetensors")) {
        const auto suffix = tensor.name.substr(tensor.name.rfind('.') + 1);
        CHECK(tensor_of(before, suffix).bytes == tensor.bytes);
      }
      continue;
    }
    CHECK(read_text(parent / "out" / "model.safetensors") ==
          read_text(golden / "model.safetensors"));
    ++compared;
  }
  CHECK(compared == 22);
}

TEST_CASE("integer zeros go through every format that has them", "[checkpoint][writer]") {
  const TemporaryDirectory parent;
  int round = 0;
  for (const char* golden :
       {"gptq-w4-g128", "gptq-w8-g128", "gptq-w4-ragged-last-group", "gptq-w2-g64-desc-act",
        "awq-w4-g64", "ct-w4-g128-asym", "ct-w8-g64-sym"}) {
    const auto checkpoint = Checkpoint::open(kData / golden);
    const auto name = checkpoint.layers()[0].name;
    const auto weights = checkpoint.read(name);
    const auto dense = dequantize(weights);
    for (const char* format : {"gptq", "gptq_v2", "awq", "compressed-tensors"}) {
      INFO(golden << " to " << format);
      const auto out = parent / std::to_string(round++);
      const std::string golden_name(golden);
      const bool impossible =
          std::string(format) == "awq" &&
          (checkpoint.layers()[0].bits != 4 || golden_name.find("desc-act") != std::string::npos);
      if (impossible) {
        CHECK(refuses([&] { convert(checkpoint, out, format_options(format)); },
                      ErrorCode::unsupported, "AWQ"));
        CHECK_FALSE(std::filesystem::exists(out));
        continue;
      }
      const auto loss = convert(checkpoint, out, format_options(format));
      const auto again = Checkpoint::open(out);
      REQUIRE(again.layers().size() == 1);
      CHECK(again.layers()[0].format == format);
      CHECK(again.layers()[0].note.empty());
      CHECK(data_of(again.read(name)).bias == data_of(weights).bias);
      CHECK(largest_difference(dequantize(again.read(name)), dense) == loss.max_error);
    }
  }
}

TEST_CASE("zeros that a format lacks are shifted, or lost by one step and told",
          "[checkpoint][writer]") {
  // GPTQ version 1 has zeros 1 ... 16, version 2 has 0 ... 15.
  const auto layer = [](std::uint16_t zero, std::uint8_t low, std::uint8_t high) {
    WeightsData data;
    data.in_features = 32;
    data.out_features = 1;
    data.group_size = 32;
    data.zero_kind = ZeroKind::integer;
    std::vector<std::uint8_t> codes(32, low);
    codes[3] = high;
    data.qweight = pack(codes, 32, 1, 4);
    data.scales = {0x3800};  // 0.5
    data.zeros = {zero};
    return make_quantized_weights(4, data);
  };
  const auto loss = [&](const AnyQuantizedWeights& weights, const char* format) {
    const TemporaryDirectory parent;
    CheckpointWriter writer(parent / "out", format_options(format));
    const auto lost = writer.add("m", weights);
    writer.finish();
    const auto after = dequantize(Checkpoint::open(parent / "out").read("m"));
    CHECK(largest_difference(after, dequantize(weights)) == lost.max_error);
    return lost.max_error;
  };
  CHECK(loss(layer(0, 0, 14), "gptq") == 0);
  CHECK(loss(layer(0, 0, 15), "gptq") == 0.5);
  CHECK(loss(layer(16, 1, 15), "gptq_v2") == 0);
  CHECK(loss(layer(16, 0, 15), "gptq_v2") == 0.5);
  CHECK(loss(layer(16, 0, 15), "gptq") == 0);
  CHECK(loss(layer(0, 0, 15), "compressed-tensors") == 0);
  const TemporaryDirectory parent;
  auto options = format_options("gptq");
  options.lossless = true;
  CHECK(refuses([&] { CheckpointWriter(parent / "out", options).add("m", layer(0, 0, 15)); },
                ErrorCode::unsupported, "\"m\"", "largest error is 0.5"));
  CHECK(parent.file_count() == 0);
}

TEST_CASE("float zeros become the nearest integers, within half a step", "[checkpoint][writer]") {
  const TemporaryDirectory parent;
  for (const char* golden : {"hqq-w4-g64", "hqq-w8-g64", "gba-sym-w4-g32"}) {
    const auto checkpoint = Checkpoint::open(kData / golden);
    const auto name = checkpoint.layers()[0].name;
    const auto loss = convert(checkpoint, parent / golden, format_options("gptq_v2"));
    const auto before = checkpoint.read(name), after = Checkpoint::open(parent / golden).read(name);
    INFO(golden << " lost " << loss.max_error << " of " << loss.max_weight);
    CHECK(loss.max_error > 0);
    CHECK(largest_difference(dequantize(before), dequantize(after)) == loss.max_error);
    WeightsData plain = data_of(before);
    decompress(plain);
    double step = 0;
    for (const auto scale : plain.scales) {
      step = std::max(step, std::abs(double{to_float(scale, plain.dtype)}));
    }
    if (std::string(golden).starts_with("hqq")) CHECK(loss.max_error <= 0.5001 * step);
    // GBA's zeros lie far outside of 0 ... 15 there: all weights of a group have one sign.
    CHECK(loss.max_error < 0.06 * loss.max_weight);
  }
}

TEST_CASE("symmetric GBA of what is no GBA", "[checkpoint][writer]") {
  const TemporaryDirectory parent;
  for (const char* golden : {"gptq-w4-g128", "ct-w8-g64-sym", "gptq-w4-g32-desc-act"}) {
    const auto checkpoint = Checkpoint::open(kData / golden);
    const auto name = checkpoint.layers()[0].name;
    const auto loss = convert(checkpoint, parent / golden, format_options("gba"));
    const auto again = Checkpoint::open(parent / golden);
    CHECK(again.layers()[0].format == "gba");
    CHECK(again.layers()[0].zero_kind == ZeroKind::affine);
    CHECK(again.layers()[0].double_quantized);
    const auto after = dequantize(again.read(name));
    INFO(golden << " lost " << loss.max_error << " of " << loss.max_weight);
    CHECK(largest_difference(after, dequantize(checkpoint.read(name))) == loss.max_error);
    CHECK(loss.max_error > 0);
    CHECK(loss.max_error < 0.35 * loss.max_weight);
  }
  // Groups of all of K: integer zeros stay.
  const auto wide = Checkpoint::open(kData / "gptq-w4-channelwise");
  CHECK(convert(wide, parent / "wide", format_options("gba")).max_error == 0);
  CHECK(Checkpoint::open(parent / "wide").layers()[0].zero_kind == ZeroKind::integer);
}

TEST_CASE("layers that differ, other tensors, shards and files", "[checkpoint][writer]") {
  const TemporaryDirectory parent;
  std::filesystem::create_directory(parent / "in");
  auto tensors = gptq_tensors({.prefix = "m.0.up", .bits = 4});
  for (const auto& spec :
       {GptqSpec{.prefix = "m.0.down", .bits = 8, .seed = 2},
        GptqSpec{.prefix = "m.1.up", .bits = 4, .seed = 3},
        GptqSpec{.prefix = "m.1.(odd)+", .k = 128, .groups = 2, .bits = 2, .seed = 4}}) {
    const auto more = gptq_tensors(spec);
    tensors.insert(tensors.end(), more.begin(), more.end());
  }
  tensors.push_back(
      make_tensor("norm.weight", SafetensorsType::F32, {2}, std::vector<float>{1.5f, -2.5f}));
  write_tensors(parent / "in" / "model.safetensors", tensors);
  write_text(
      parent / "in" / "config.json",
      R"({"hidden_size":32,"quantization":{"x":1},"quantization_config":{"quant_method":"gptq",
                "bits":4,"group_size":32,"dynamic":{".*down":{"bits":8},".*odd":{"bits":2,
                "group_size":64}}},"model_type":"test"})");
  write_text(parent / "in" / "tokenizer.json", "{\"a\": 1}");
  write_text(parent / "in" / "notes.bin", "no");
  const auto from = Checkpoint::open(parent / "in");
  REQUIRE(from.layers().size() == 4);
  for (const char* format : {"gptq", "gptq_v2", "compressed-tensors", "gba"}) {
    for (const std::uint64_t shard : {std::uint64_t{1} << 30, std::uint64_t{3000}}) {
      INFO(format << " shards of " << shard);
      const auto out = parent / (format + std::to_string(shard));
      auto options = format_options(format);
      options.base = parent / "in";
      options.max_shard_bytes = shard;
      const auto loss = convert(from, out, options);
      const auto again = Checkpoint::open(out);
      REQUIRE(again.layers().size() == 4);
      CHECK(again.dense_tensors() == from.dense_tensors());
      for (const auto& layer : from.layers()) {
        const auto before = dequantize(from.read(layer.name));
        CHECK(largest_difference(dequantize(again.read(layer.name)), before) <= loss.max_error);
      }
      const auto norm = again.tensor("norm.weight");
      CHECK(std::memcmp(norm.bytes.data(), tensors.back().bytes.data(), 8) == 0);
      CHECK(read_text(out / "tokenizer.json") == "{\"a\": 1}");
      CHECK_FALSE(std::filesystem::exists(out / "notes.bin"));
      const auto config = read_text(out / "config.json");
      CHECK(config.find("\"hidden_size\": 32") != std::string::npos);
      CHECK(config.find("\"quantization\"") == std::string::npos);
      CHECK(std::filesystem::exists(out / "model.safetensors.index.json") == (shard == 3000));
      CHECK(std::filesystem::exists(out / "model.safetensors") == (shard != 3000));
    }
  }
  CHECK(refuses([&] { convert(from, parent / "awq", format_options("awq")); },
                ErrorCode::unsupported, "4 bits, not 8"));
  CHECK_FALSE(std::filesystem::exists(parent / "awq"));
}

TEST_CASE("a directory appears whole or not at all", "[checkpoint][writer]") {
  const TemporaryDirectory parent;
  const auto weights = Checkpoint::open(kData / "gptq-w4-g128").read(kGoldenLayer);
  {
    CheckpointWriter writer(parent / "out", {});
    writer.add("a", weights);
  }
  CHECK(parent.file_count() == 0);
  std::filesystem::create_directory(parent / "empty");
  CheckpointWriter writer(parent / "empty", {});
  CHECK(refuses([&] { writer.finish(); }, ErrorCode::invalid_argument, "no layer"));
  writer.add("a", weights);
  CHECK(refuses([&] { writer.add("a", weights); }, ErrorCode::invalid_argument, "\"a.", "twice"));
  CHECK(refuses([&] { CheckpointWriter(kData, {}); }, ErrorCode::invalid_argument, "no empty"));
  CHECK(refuses([&] { CheckpointWriter(parent / "none" / "out", {}); }, ErrorCode::io_failure,
                "none"));
  CHECK(refuses([&] { CheckpointWriter(parent / "x", format_options("hqq")); },
                ErrorCode::unsupported, "\"hqq\"", "awq, compressed-tensors, gba, gptq, gptq_v2"));
  auto bad = weights;
  data_of(bad).scales[5] = 0x7c00;
  CHECK(refuses([&] { writer.add("b", bad); }, ErrorCode::invalid_weights, "\"b\"", "channel 5"));
}

// GBA beyond the goldens: what the settings leave open is told by the shapes, and contradictions
// are errors.

#include <cstdint>
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

/// Decodes the only layer of a directory to plain statistics.
WeightsData plain_layer(const std::filesystem::path& directory,
                        const CheckpointOptions& options = {}) {
  const auto checkpoint = Checkpoint::open(directory, options);
  WeightsData data = data_of(checkpoint.read(checkpoint.layers().at(0).name));
  decompress(data);
  return data;
}

CheckpointOptions dq_options(std::optional<int> size, std::optional<int> mode) {
  CheckpointOptions options;
  options.dq_group_size = size;
  options.dq_mode = mode;
  return options;
}

}  // namespace

TEST_CASE("GBA without settings but bits and group size", "[checkpoint][gba]") {
  for (const auto& golden : golden_directories()) {
    if (!golden.filename().string().starts_with("gba")) continue;
    INFO(golden.filename().string());
    const TemporaryDirectory directory;
    std::filesystem::copy_file(golden / "model.safetensors", directory / "model.safetensors");
    const LayerInfo info = Checkpoint::open(golden).layers().at(0);
    CheckpointOptions options;
    options.bits = info.bits;
    options.group_size = info.group_size;
    const auto bare = plain_layer(directory.path(), options), told = plain_layer(golden);
    CHECK(bare.zero_kind == told.zero_kind);
    CHECK(bare.scales == told.scales);
    CHECK(bare.zeros == told.zeros);
    CHECK(bare.affine_zeros == told.affine_zeros);
  }
}

TEST_CASE("GBA settings that contradict the tensors are refused", "[checkpoint][gba]") {
  const auto refused = [](const char* golden, const CheckpointOptions& options, const char* words) {
    return refuses([&] { Checkpoint::open(kData / golden, options); }, ErrorCode::invalid_file,
                   words);
  };
  CHECK(refused("gba-sym-w4-g128-dq64", dq_options(32, {}), "qstatistic"));
  CHECK(refused("gba-sym-w4-g128-dq64", dq_options(48, {}), "48 does not divide out_features 128"));
  CHECK(refused("gba-sym-w4-g128-dq64", dq_options({}, 1), "qscales_scales"));
  CHECK(refused("gba-asym-w2-g64-dqmode1", dq_options({}, 2), "qscales_scales"));
  CheckpointOptions asymmetric;
  asymmetric.asymmetric = true;
  CHECK(refused("gba-sym-w4-g32", asymmetric, "qscales\" is missing"));
  asymmetric.asymmetric = false;
  CHECK(refused("gba-asym-w4-g128", asymmetric, "qstatistic"));
  for (const int mode : {0, 3}) {
    CHECK(refuses([&] { Checkpoint::open(kData / "gba-sym-w4-g32", dq_options({}, mode)); },
                  ErrorCode::invalid_argument, "dq_mode"));
  }
  CHECK(refuses([&] { Checkpoint::open(kData / "gba-sym-w4-g32", dq_options(0, {})); },
                ErrorCode::invalid_argument, "dq_group_size is 0"));
}

TEST_CASE("symmetric GBA with parameters by channel", "[checkpoint][gba]") {
  // dq_mode 1 where the zeros' parameters stay by group: each scale with its channel's own.
  const TemporaryDirectory directory;
  const auto golden = kData / "gba-sym-w4-g32";
  std::vector<std::uint16_t> zeros(128), scales(128);
  for (std::size_t i = 0; i < 128; ++i) {
    zeros[i] = float_to_f16(static_cast<float>(i % 7));
    scales[i] = float_to_f16(static_cast<float>(i + 1) * 0.0078125f);
  }
  std::vector<std::uint8_t> codes;
  copy_golden(golden, directory.path(), [&](auto& tensors) {
    auto& s = tensor_of(tensors, "qscales_scales");
    s = make_tensor(s.name, s.type, {1, 128, 1}, scales);
    auto& z = tensor_of(tensors, "qscales_zeros");
    z = make_tensor(z.name, z.type, {1, 128, 1}, zeros);
    codes = tensor_of(tensors, "qstatistic").template values<std::uint8_t>();
  });
  const auto plain = plain_layer(directory.path(), dq_options({}, 1));
  CHECK(plain.affine_zeros == plain_layer(golden).affine_zeros);
  for (std::size_t i = 0; i < plain.scales.size(); ++i) {
    const float difference = static_cast<float>(codes[i] >> 4) - f16_to_float(zeros[i % 128]);
    REQUIRE(plain.scales[i] == float_to_f16(difference * f16_to_float(scales[i % 128])));
  }
}

TEST_CASE("asymmetric GBA with large groups uses stored scales and packed zeros",
          "[checkpoint][gba]") {
  const TemporaryDirectory directory;
  auto tensors = gptq_tensors({.prefix = "m", .k = 512, .n = 32, .groups = 2, .bits = 4});
  tensors.push_back(
      make_tensor("m.qscales", SafetensorsType::U8, {2, 1, 32}, std::vector<std::uint8_t>(64, 1)));
  write_tensors(directory / "model.safetensors", tensors);
  write_text(directory / "quantize_config.json",
             R"({"quant_method":"gba","bits":4,"group_size":256,"asym":true})");
  const auto checkpoint = Checkpoint::open(directory.path());
  CHECK_FALSE(checkpoint.layers().at(0).double_quantized);
  CHECK(checkpoint.layers().at(0).zero_kind == ZeroKind::integer);
  CheckpointOptions gptq;
  gptq.format = "gptq";
  CHECK(dequantize(checkpoint.read("m")) ==
        dequantize(Checkpoint::open(directory.path(), gptq).read("m")));
}

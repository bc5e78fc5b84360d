// The golden checkpoints decode to the weights, scales and zeros that their formats' own code gave.

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "host/checkpoint_files.hpp"
#include "mpq/checkpoint.hpp"
#include "mpq/pack.hpp"
#include "support/catch.hpp"

using namespace mpq;
using namespace mpq::test;

namespace {

std::vector<float> floats(const std::vector<std::uint16_t>& halves, DType dtype) {
  std::vector<float> out;
  for (const auto half : halves) out.push_back(to_float(half, dtype));
  return out;
}

/// The first place where the two differ by more than a rounding to float32, or -1.
std::int64_t first_difference(const std::vector<float>& a, const std::vector<float>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i] && std::nextafter(a[i], b[i]) != b[i]) return static_cast<std::int64_t>(i);
  }
  return -1;
}

}  // namespace

TEST_CASE("every golden checkpoint's weight is the expected one", "[checkpoint][golden]") {
  const auto directories = golden_directories();
  REQUIRE(directories.size() >= 27);
  for (const auto& directory : directories) {
    INFO(directory.filename().string());
    const auto checkpoint = Checkpoint::open(directory);
    REQUIRE(checkpoint.layers().size() == 1);
    CHECK(checkpoint.dense_tensors().empty());
    const LayerInfo& info = checkpoint.layers()[0];
    const std::string name = directory.filename().string();
    CHECK(info.name == kGoldenLayer);
    const bool ct = name.starts_with("ct"), hqq = name.starts_with("hqq");
    CHECK((ct ? info.format == "compressed-tensors" : name.starts_with(info.format)));
    CHECK(info.note.empty());
    CHECK(name.find("w" + std::to_string(info.bits)) != std::string::npos);
    CHECK(info.act_order == (name.find("desc-act") != std::string::npos));
    CHECK(info.dtype == (ct || name.find("bf16") != std::string::npos ? DType::bf16 : DType::f16));
    CHECK(info.bias == (!ct && !hqq && name.find("nobias") == std::string::npos));
    CHECK(info.zero_kind == (hqq || name.starts_with("gba-sym")             ? ZeroKind::affine
                             : ct && name.find("asym") == std::string::npos ? ZeroKind::none
                                                                            : ZeroKind::integer));
    CHECK(info.double_quantized == (name.starts_with("gba") && name != "gba-sym-w4-g256"));

    const AnyQuantizedWeights weights = checkpoint.read(kGoldenLayer);
    CHECK(bits_of(weights) == info.bits);
    CHECK(data_of(weights).g_idx.empty() == !info.act_order);
    CHECK(data_of(weights).bias.empty() == !info.bias);
    check_values(data_of(weights), info.bits);
    auto expected = read_tensors(directory / "expected.safetensors");
    const auto& dense = tensor_of(expected, "weight");
    REQUIRE(dense.shape == std::vector<std::int64_t>{info.out_features, info.in_features});
    const auto actual = dequantize(weights);
    if (info.zero_kind != ZeroKind::affine) {
      CHECK(actual == dense.values<float>());
    } else {
      REQUIRE(actual.size() == dense.values<float>().size());
      CHECK(first_difference(actual, dense.values<float>()) == -1);
    }

    // Scales, and GBA's zeros, exactly; the expected integer zeros are as stored, packed.
    if (!name.starts_with("gptq") && !name.starts_with("gba")) continue;  // these give none
    WeightsData plain = data_of(weights);
    decompress(plain);
    CHECK(floats(plain.scales, plain.dtype) == tensor_of(expected, "scales").values<float>());
    if (info.zero_kind == ZeroKind::affine) {
      auto zeros = tensor_of(expected, "zeros").values<float>();
      for (float& zero : zeros) zero = -zero;
      CHECK(plain.affine_zeros == zeros);
    }
  }
}

TEST_CASE("version 2 zeros are one less", "[checkpoint][golden]") {
  const auto directory = kData / "gptq-w4-g128";
  CheckpointOptions options;
  options.format = "gptq_v2";
  const auto v1 = Checkpoint::open(directory), v2 = Checkpoint::open(directory, options);
  CHECK(v1.layers()[0].format == "gptq");
  CHECK(v2.layers()[0].format == "gptq_v2");
  const auto zeros_1 = data_of(v1.read(kGoldenLayer)).zeros;
  auto zeros_2 = data_of(v2.read(kGoldenLayer)).zeros;
  for (auto& zero : zeros_2) ++zero;
  CHECK(zeros_1 == zeros_2);
}

TEST_CASE("zeros of the other version are recognised where they are symmetric", "[checkpoint]") {
  const TemporaryDirectory directory;
  const auto open_with = [&](std::uint32_t word, const std::string& settings,
                             const CheckpointOptions& options = {}) {
    auto tensors = gptq_tensors({.prefix = "m"});
    tensor_of(tensors, "qzeros") =
        make_tensor("m.qzeros", SafetensorsType::I32, {2, 4}, std::vector<std::uint32_t>(8, word));
    write_tensors(directory / "model.safetensors", tensors);
    write_text(directory / "quantize_config.json",
               R"({"quant_method":"gptq","bits":4,"group_size":32,)" + settings + "}");
    return Checkpoint::open(directory.path(), options);
  };
  const auto all_zeros_are = [](const Checkpoint& checkpoint, std::uint16_t zero) {
    return data_of(checkpoint.read("m")).zeros == std::vector<std::uint16_t>(64, zero);
  };
  const auto v2_as_v1 = open_with(0x88888888u, R"("checkpoint_format":"gptq")");
  CHECK(v2_as_v1.layers()[0].format == "gptq_v2");
  CHECK(v2_as_v1.layers()[0].note.find("labelled gptq, but every stored zero is 8") == 0);
  CHECK(all_zeros_are(v2_as_v1, 8));
  const auto v1_as_v2 = open_with(0x77777777u, R"("checkpoint_format":"gptq_v2")");
  CHECK(v1_as_v2.layers()[0].format == "gptq");
  CHECK(v1_as_v2.layers()[0].note.find("labelled gptq_v2") == 0);
  CHECK(all_zeros_are(v1_as_v2, 8));
  // Rightly labelled; with one other zero; as the caller says.
  for (const auto& [word, format, zero] : {std::tuple{0x77777777u, "gptq", 8},
                                           {0x88888888u, "gptq_v2", 8},
                                           {0x66666666u, "gptq", 7}}) {
    const auto right = open_with(word, std::string(R"("checkpoint_format":")") + format + "\"");
    CHECK(right.layers()[0].format == format);
    CHECK(right.layers()[0].note.empty());
    CHECK(all_zeros_are(right, static_cast<std::uint16_t>(zero)));
  }
  CheckpointOptions forced;
  forced.format = "gptq";
  const auto obeyed = open_with(0x88888888u, R"("checkpoint_format":"gptq")", forced);
  CHECK(obeyed.layers()[0].format == "gptq");
  CHECK(obeyed.layers()[0].note.find("read as the caller says") != std::string::npos);
  CHECK(all_zeros_are(obeyed, 9));
  auto tensors = read_tensors(directory / "model.safetensors");
  tensor_of(tensors, "qzeros").bytes[31] = std::byte{0x87};
  write_tensors(directory / "model.safetensors", tensors);
  CHECK(Checkpoint::open(directory.path()).layers()[0].format == "gptq");
  CHECK(Checkpoint::open(directory.path()).layers()[0].note.empty());
}

TEST_CASE("channel-wise and ragged goldens keep their group size", "[checkpoint][golden]") {
  const auto wide = Checkpoint::open(kData / "gptq-w4-channelwise").read(kGoldenLayer);
  CHECK(data_of(wide).group_size == -1);
  CHECK(data_of(wide).groups() == 1);
  const auto ragged = Checkpoint::open(kData / "gptq-w4-ragged-last-group").read(kGoldenLayer);
  CHECK(data_of(ragged).in_features == 160);
  CHECK(data_of(ragged).group_size == 128);
  CHECK(data_of(ragged).groups() == 2);
}

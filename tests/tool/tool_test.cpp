// Runs the mpq program: exit codes, one line on stderr, right numbers, and no file after an error.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "host/checkpoint_files.hpp"
#include "mpq/checkpoint.hpp"
#include "support/catch.hpp"
#include "tool/run_tool.hpp"

using namespace mpq;
using namespace mpq::test;

namespace {

/// Half the distance between 16-bit floats around `value`.
double half_ulp(double value, DType dtype) {
  const int digits = dtype == DType::f16 ? 11 : 8, least = dtype == DType::f16 ? -14 : -126;
  const int exponent = value == 0 ? least : std::max(std::ilogb(value), least);
  return std::ldexp(0.5, exponent - digits + 1);
}

/// The first element of y outside the bound around x weight^T + bias, in words; empty if none.
std::string first_wrong(const std::vector<float>& y, DType dtype, const std::vector<float>& x,
                        const std::vector<float>& weight, const std::vector<double>& reference,
                        std::size_t k) {
  const std::size_t n = weight.size() / k;
  for (std::size_t i = 0; i < y.size(); ++i) {
    double magnitude = 0;
    for (std::size_t c = 0; c < k; ++c) {
      magnitude += std::abs(static_cast<double>(x[i / n * k + c]) * weight[i % n * k + c]);
    }
    const double bound = std::ldexp(magnitude, -17) + half_ulp(reference[i], dtype);
    if (!(std::abs(y[i] - reference[i]) <= bound)) {
      return "y[" + std::to_string(i) + "] is " + std::to_string(y[i]) + ", reference " +
             std::to_string(reference[i]) + ", bound " + std::to_string(bound);
    }
  }
  return {};
}

}  // namespace

TEST_CASE("help and version", "[tool]") {
  for (const std::vector<std::string>& call : {std::vector<std::string>{"--help"},
                                               {"inspect", "--help"},
                                               {"verify", "--help"},
                                               {"convert", "--help"},
                                               {"quantize", "--help"},
                                               {"dequantize", "--help"},
                                               {"run", "--help"},
                                               {"bench", "--help"}}) {
    const Result result = run_tool(call);
    CHECK(result.code == 0);
    CHECK(result.err.empty());
    CHECK(result.out.find("Usage: mpq") != std::string::npos);
    CHECK(result.out.find("Exit codes: 0 done") != std::string::npos);
  }
  const Result version = run_tool({"--version"});
  CHECK(version.code == 0);
  CHECK(version.out.starts_with("mpq "));
}

TEST_CASE("run gives the expected y for every golden checkpoint", "[tool][golden]") {
  const TemporaryDirectory directory;
  for (const auto& golden : golden_directories()) {
    INFO(golden.filename().string());
    auto expected = read_tensors(golden / "expected.safetensors");
    const auto weight = tensor_of(expected, "weight");
    const auto reference = tensor_of(expected, "y").values<double>();
    const auto output = directory / "y.safetensors";
    for (const bool single : {true, false}) {
      std::vector<std::string> call{
          "run", golden.string(), "--input",  (golden / "expected.safetensors").string(),
          "-o",  output.string(), "--device", "cpu"};
      if (!single) call.insert(call.end(), {"--layer", kGoldenLayer, "--dtype", "f16"});
      const Result result = run_tool(call);
      INFO(result.err);
      REQUIRE(result.code == 0);
      CHECK(result.out.find(kGoldenLayer) != std::string::npos);
      const auto written = read_tensors(output);
      REQUIRE(written.size() == 1);
      CHECK(written[0].name == "y");
      CHECK(written[0].type == SafetensorsType::F16);  // x's own
      CHECK(written[0].shape == std::vector<std::int64_t>{5, weight.shape[0]});
      CHECK(first_wrong(floats(written[0]), DType::f16, floats(tensor_of(expected, "x")),
                        floats(weight), reference,
                        static_cast<std::size_t>(weight.shape[1])) == "");
    }
    CHECK(directory.file_count() == 1);
  }
}

TEST_CASE("run rounds x to the type that is asked for", "[tool]") {
  const TemporaryDirectory directory;
  const auto golden = kData / "gptq-w4-g32-desc-act";
  auto expected = read_tensors(golden / "expected.safetensors");
  const auto weight = floats(tensor_of(expected, "weight"));
  auto layer = read_tensors(golden / "model.safetensors");
  const auto bias = floats(tensor_of(layer, "bias"));
  constexpr std::size_t kRows = 3, kIn = 256;
  // Ties of bf16, upwards and downwards, among others.
  std::vector<float> x(kRows * kIn);
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = std::ldexp(static_cast<float>(256 + i % 256) + (i % 3 == 0 ? 0.5f : 0.25f), -8);
  }
  const auto input = directory / "x.safetensors", output = directory / "y.safetensors";
  write_tensors(input, {make_tensor("x", SafetensorsType::F32, {kRows, kIn}, x)});
  for (const auto& [option, dtype] : {std::pair{"", DType::f16}, std::pair{"bf16", DType::bf16}}) {
    std::vector<std::string> call{"run", golden.string(), "--input",  input.string(),
                                  "-o",  output.string(), "--device", "cpu"};
    if (*option != '\0') call.insert(call.end(), {"--dtype", option});
    REQUIRE(run_tool(call).code == 0);
    std::vector<float> rounded(x.size());
    std::vector<double> reference(kRows * bias.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
      rounded[i] = to_float(from_float(x[i], dtype), dtype);
    }
    for (std::size_t i = 0; i < reference.size(); ++i) {
      const std::size_t row = i / bias.size(), channel = i % bias.size();
      reference[i] = bias[channel];
      for (std::size_t c = 0; c < kIn; ++c) {
        reference[i] += static_cast<double>(rounded[row * kIn + c]) * weight[channel * kIn + c];
      }
    }
    const auto y = read_tensors(output).at(0);
    CHECK(y.type == (dtype == DType::f16 ? SafetensorsType::F16 : SafetensorsType::BF16));
    CHECK(first_wrong(floats(y), dtype, rounded, weight, reference, kIn) == "");
  }
  // No rows; and what f16 does not hold.
  write_tensors(input,
                {make_tensor("x", SafetensorsType::BF16, {0, kIn}, std::vector<std::uint16_t>{})});
  REQUIRE(
      run_tool({"run", golden.string(), "--input", input.string(), "-o", output.string()}).code ==
      0);
  CHECK(read_tensors(output).at(0).shape == std::vector<std::int64_t>{0, 128});
  std::filesystem::remove(output);
  x[kIn + 7] = 1e5f;
  write_tensors(input, {make_tensor("x", SafetensorsType::F32, {kRows, kIn}, x)});
  CHECK(fails({"run", golden.string(), "--input", input.string(), "-o", output.string()}, 2,
              "x[1, 7] is 100000, beyond the largest finite f16 of 65504"));
  CHECK_FALSE(std::filesystem::exists(output));
}

TEST_CASE("dequantize writes every layer's weight", "[tool][golden]") {
  const TemporaryDirectory directory;
  const auto output = directory / "dense.safetensors";
  for (const auto& golden : golden_directories()) {
    INFO(golden.filename().string());
    REQUIRE(run_tool({"dequantize", golden.string(), "-o", output.string()}).code == 0);
    auto expected = read_tensors(golden / "expected.safetensors");
    const auto written = read_tensors(output);
    REQUIRE(written.size() == 1);
    CHECK(written[0].name == std::string(kGoldenLayer) + ".weight");
    CHECK(written[0].type == SafetensorsType::F32);
    CHECK(written[0].shape == tensor_of(expected, "weight").shape);
    const auto a = floats(written[0]), b = floats(tensor_of(expected, "weight"));
    bool equal = a.size() == b.size();
    for (std::size_t i = 0; equal && i < a.size(); ++i) {
      equal = a[i] == b[i] || std::nextafter(a[i], b[i]) == b[i];
    }
    CHECK(equal);
  }
  CHECK(directory.file_count() == 1);

  // Several layers, one with a bad value: nothing is written.
  const auto model = directory / "model";
  std::filesystem::create_directory(model);
  auto tensors = gptq_tensors({.prefix = "m.a"});
  auto more = gptq_tensors({.prefix = "m.b", .k = 32, .groups = 1});
  tensors.insert(tensors.end(), more.begin(), more.end());
  write_tensors(model / "model.safetensors", tensors);
  const std::vector<std::string> call{"dequantize", model.string(), "-o", output.string(), "--bits",
                                      "4",          "--group-size", "32"};
  REQUIRE(run_tool(call).code == 0);
  CHECK(read_tensors(output).size() == 2);
  std::filesystem::remove(output);
  const std::uint16_t infinity = 0x7c00;
  std::memcpy(tensors.back().bytes.data() + 10, &infinity, 2);
  write_tensors(model / "model.safetensors", tensors);
  CHECK(fails(call, 5, "m.b"));
  CHECK_FALSE(std::filesystem::exists(output));
  CHECK(directory.file_count() == 1);
}

TEST_CASE("inspect lists the layers", "[tool]") {
  const auto golden = kData / "gba-sym-w4-g128-dq64";
  const Result table = run_tool({"inspect", golden.string()});
  CHECK(table.code == 0);
  CHECK(table.out.find(kGoldenLayer) != std::string::npos);
  const Result json = run_tool({"inspect", golden.string(), "--json"});
  REQUIRE(json.code == 0);
  const auto all = nlohmann::json::parse(json.out);
  CHECK(all["directory"] == golden.string());
  CHECK(all["dense_tensors"].empty());
  REQUIRE(all["layers"].size() == 1);
  const auto& layer = all["layers"][0];
  CHECK(layer["name"] == kGoldenLayer);
  CHECK(layer["format"] == "gba");
  CHECK(layer["bits"] == 4);
  CHECK(layer["in_features"] == 256);
  CHECK(layer["out_features"] == 128);
  CHECK(layer["group_size"] == 128);
  CHECK(layer["zeros"] == "affine");
  CHECK(layer["dtype"] == "f16");
  CHECK(layer["act_order"] == false);
  CHECK(layer["bias"] == true);
  CHECK(layer["double_quantized"] == true);
  // A setting on the command line, negative too.
  CHECK(
      run_tool({"inspect", (kData / "gptq-w4-channelwise").string(), "--group-size", "-1"}).code ==
      0);
  CHECK(run_tool(
            {"inspect", golden.string(), "--dq-group-size", "64", "--dq-mode", "2", "--symmetric"})
            .code == 0);
  CHECK(fails({"inspect", golden.string(), "--dq-group-size", "-1"}, 4, "qstatistic"));
}

TEST_CASE("errors have their codes, one line and no file", "[tool]") {
  const TemporaryDirectory directory;
  const auto golden = (kData / "gptq-w4-g128").string();
  const auto input = (kData / "gptq-w4-g128" / "expected.safetensors").string();
  const auto output = (directory / "y.safetensors").string();
  const auto run_with = [&](std::vector<std::string> more) {
    std::vector<std::string> call{"run", golden, "--input", input, "-o", output};
    call.insert(call.end(), more.begin(), more.end());
    return call;
  };
  CHECK(fails({}, 2, "--help"));
  CHECK(fails({"invent"}, 2, "--help"));
  CHECK(fails({"convert", golden, "-o", output}, 2, "--to"));
  CHECK(fails({"convert", golden, "-o", output, "--to", "hqq"}, 2, "hqq"));
  CHECK(fails({"convert", golden, "-o", golden, "--to", "gptq"}, 2, "no empty directory"));
  CHECK(fails({"convert", golden, "-o", output + "/a/b", "--to", "gptq"}, 3, "a/b"));
  CHECK(fails({"inspect"}, 2, "DIR"));
  CHECK(fails({"inspect", golden, "--bits", "four"}, 2, "four"));
  CHECK(fails({"inspect", golden, "--asymmetric", "--symmetric"}, 2, "excludes"));
  CHECK(fails({"dequantize", golden}, 2, "--output"));
  CHECK(fails({"run", golden, "-o", output}, 2, "--input"));
  CHECK(fails(run_with({"--dtype", "f32"}), 2, "f32"));
  CHECK(fails(run_with({"--device", "tpu"}), 2, "\"tpu\""));
  CHECK(fails(run_with({"--device", "cuda:x"}), 2, "\"cuda:x\""));
  CHECK(fails(run_with({"--device", "cuda:99"}), 7, "cuda:99"));
  CHECK(fails(run_with({"--layer", "model.layers.0.mlp.up_proj"}), 2, kGoldenLayer));
  CHECK(fails({"inspect", golden + "/none"}, 3, "none"));
  CHECK(fails({"inspect", directory.path().string()}, 3, "no *.safetensors"));
  CHECK(fails({"inspect", golden, "--bits", "8"}, 4, "g128"));
  CHECK(fails({"inspect", golden, "--bits", "3"}, 6, "bits is 3"));
  CHECK(fails({"inspect", golden, "--format", "exl2"}, 6, "\"exl2\""));
  CHECK(fails({"run", golden, "--input", golden + "/model.safetensors", "-o", output}, 4, "\"x\""));
  CHECK(
      fails({"run", (kData / "gptq-w4-ragged-last-group").string(), "--input", input, "-o", output},
            2, "160 input features"));
  CHECK(fails({"run", golden, "--input", input, "-o", output + "/none/y"}, 3, "No such file"));
  CHECK(fails({"dequantize", golden, "-o", directory.path().string()}, 2, "regular file"));

  const auto bad_input = [&](const TensorCopy& x, int code, const std::string& words) {
    const TemporaryDirectory other;
    write_tensors(other / "x.safetensors", {x});
    return fails({"run", golden, "--input", (other / "x.safetensors").string(), "-o", output}, code,
                 words);
  };
  const std::vector<float> row(256);
  CHECK(bad_input(make_tensor("x", SafetensorsType::F32, {256}, row), 4, "1 dimensions"));
  CHECK(bad_input(make_tensor("x", SafetensorsType::I32, {1, 256}, row), 4, "I32"));
  CHECK(directory.file_count() == 0);

  // Two layers and none chosen.
  auto tensors = gptq_tensors({.prefix = "a"});
  const auto more = gptq_tensors({.prefix = "b"});
  tensors.insert(tensors.end(), more.begin(), more.end());
  write_tensors(directory / "model.safetensors", tensors);
  CHECK(fails({"run", directory.path().string(), "--input", input, "-o", output, "--bits", "4",
               "--group-size", "32"},
              2, "--layer"));
  // A checkpoint without quantised layers.
  write_tensors(directory / "model.safetensors",
                {make_tensor("w", SafetensorsType::F32, {256}, row)});
  CHECK(run_tool({"inspect", directory.path().string()}).code == 0);
  CHECK(fails({"run", directory.path().string(), "--input", input, "-o", output}, 2,
              "no quantised layer"));
  CHECK(fails({"dequantize", directory.path().string(), "-o", output}, 4, "no quantised layer"));
  CHECK(directory.file_count() == 1);
}

TEST_CASE("bad weights and broken files leave no output", "[tool]") {
  const TemporaryDirectory directory;
  const auto input = (kData / "gptq-w4-g128" / "expected.safetensors").string();
  const auto output = directory / "y.safetensors";
  const auto call = std::vector<std::string>{"run", directory.path().string(), "--input",  input,
                                             "-o",  output.string(),           "--device", "cpu"};
  struct Change {
    const char *golden, *suffix;
    std::size_t at;
    std::uint16_t value;
    const char* words;
  };
  for (const auto& [golden, suffix, at, value, words] :
       {Change{"gptq-w4-g128", "scales", 130, 0x7e00, "group 1, output channel 2"},
        Change{"gptq-w4-g128", "scales", 0, 0xfc00, "group 0, output channel 0"},
        Change{"gptq-w4-g128", "bias", 5, 0x7c00, "bias of output channel 5"},
        Change{"gba-sym-w4-g128-dq64", "qscales_scales", 3, 0x7c00, "group 1"}}) {
    copy_golden(kData / golden, directory.path(), [&](auto& tensors) {
      std::memcpy(tensor_of(tensors, suffix).bytes.data() + 2 * at, &value, 2);
    });
    CHECK(fails(call, 5, words));
    CHECK_FALSE(std::filesystem::exists(output));
  }
  // An output that was there before stays.
  write_text(output, "mine");
  CHECK(fails(call, 5, kGoldenLayer));
  CHECK(read_text(output) == "mine");

  const std::string whole = read_text(kData / "gptq-w4-g128" / "model.safetensors");
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{7}, std::size_t{8}, std::size_t{100}, whole.size() - 1}) {
    write_text(directory / "model.safetensors", whole.substr(0, size));
    CHECK(fails(call, 4, "model.safetensors"));
  }
  write_text(directory / "model.safetensors", whole);
  write_text(directory / "quantize_config.json", std::string(100'000, '['));
  CHECK(fails(call, 4, "deeper"));
  // A name that would break the line.
  write_text(directory / "quantize_config.json", R"({"bits":4,"group_size":32})");
  auto tensors = gptq_tensors({.prefix = "a\nmpq: fine"});
  tensors.pop_back();
  write_tensors(directory / "model.safetensors", tensors);
  CHECK(fails(call, 4, "scales\" is missing"));
  CHECK(read_text(output) == "mine");
}

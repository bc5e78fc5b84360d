// Runs the mpq program: exit codes, one line on stderr, right numbers, and no file after an error.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "host/checkpoint_files.hpp"
#include "mpq/checkpoint.hpp"
#include "mpq/quantize.hpp"
#include "support/catch.hpp"
#include "tool/run_tool.hpp"

using namespace mpq;
using namespace mpq::test;

namespace {

const std::filesystem::path kData(MPQ_TEST_DATA);
constexpr auto kLayer = "model.layers.0.mlp.down_proj";

std::vector<float> floats(const TensorCopy& tensor) {
  if (tensor.type == SafetensorsType::F32) return tensor.values<float>();
  const DType dtype = tensor.type == SafetensorsType::F16 ? DType::f16 : DType::bf16;
  std::vector<float> out;
  for (const auto half : tensor.values<std::uint16_t>()) out.push_back(to_float(half, dtype));
  return out;
}

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
                                               {"run", "--help"}}) {
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
      if (!single) call.insert(call.end(), {"--layer", kLayer, "--dtype", "f16"});
      const Result result = run_tool(call);
      INFO(result.err);
      REQUIRE(result.code == 0);
      CHECK(result.out.find(kLayer) != std::string::npos);
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
    CHECK(written[0].name == std::string(kLayer) + ".weight");
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
  CHECK(table.out.find(kLayer) != std::string::npos);
  const Result json = run_tool({"inspect", golden.string(), "--json"});
  REQUIRE(json.code == 0);
  const auto all = nlohmann::json::parse(json.out);
  CHECK(all["directory"] == golden.string());
  CHECK(all["dense_tensors"].empty());
  REQUIRE(all["layers"].size() == 1);
  const auto& layer = all["layers"][0];
  CHECK(layer["name"] == kLayer);
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

TEST_CASE("inspect gives a verdict, zeros, dense tensors, bytes and kernels", "[tool]") {
  const TemporaryDirectory directory;
  auto tensors = gptq_tensors({.prefix = "m.a"});
  const auto more = gptq_tensors({.prefix = "m.b", .k = 128, .groups = 2, .bits = 8});
  tensors.insert(tensors.end(), more.begin(), more.end());
  tensor_of(tensors, "m.a.qzeros") = make_tensor("m.a.qzeros", SafetensorsType::I32, {2, 4},
                                                 std::vector<std::uint32_t>(8, 0x88888888u));
  tensors.push_back(
      make_tensor("head.weight", SafetensorsType::F16, {4, 2}, std::vector<std::uint16_t>(8)));
  tensors.push_back(
      make_tensor("norm.weight", SafetensorsType::F16, {2}, std::vector<std::uint16_t>(2)));
  write_tensors(directory / "model.safetensors", tensors);
  write_text(directory / "quantize_config.json",
             R"({"quant_method":"gptq","bits":4,"group_size":32,
                "dynamic":{"m\\.b":{"bits":8,"group_size":64}}})");
  const Result result = run_tool({"inspect", directory.path().string(), "--json"});
  REQUIRE(result.code == 0);
  const auto all = nlohmann::json::parse(result.out);
  CHECK(all["verdict"] ==
        "gptq, 8 bits, groups of 64 (1 layer); gptq_v2, 4 bits, groups of 32 (1 layer)");
  CHECK(all["layers"][0]["note"].get<std::string>().find("labelled gptq") == 0);
  CHECK_FALSE(all["layers"][1].contains("note"));
  CHECK(all["zeros_histogram"]["4"].size() == 17);
  CHECK(all["zeros_histogram"]["4"][8] == 64);
  const auto counts = all["zeros_histogram"]["8"].get<std::vector<int>>();
  CHECK(counts.size() == 257);
  CHECK(std::accumulate(counts.begin(), counts.end(), 0) == 64);
  CHECK(counts[0] == 0);
  CHECK(all["dense_tensors"] == std::vector<std::string>{"head.weight", "norm.weight"});
  CHECK(all["dense"][0]["dtype"] == "F16");
  CHECK(all["dense"][0]["shape"] == std::vector<int>{4, 2});
  CHECK(all["dense_bytes"] == 20);
  CHECK(all["quantized_bytes"] ==
        all["layers"][0]["bytes"].get<int>() + all["layers"][1]["bytes"].get<int>());
  CHECK(all["layers"][0]["kernels"]["1"].get<std::string>().starts_with("decode"));
  CHECK(all["layers"][0]["kernels"]["512"].get<std::string>().starts_with("prefill"));
  const Result text = run_tool({"inspect", directory.path().string()});
  CHECK(text.code == 0);
  for (const char* words :
       {"note: m.a: labelled gptq", "zeros of 4 bits: 8: 100.0%", "dense: head.weight F16 [4, 2]",
        "dense: 1 tensors that are no matrices", "4 bits, 64 -> 32, batch 1: decode"}) {
    INFO(text.out);
    CHECK(text.out.find(words) != std::string::npos);
  }
}

TEST_CASE("verify finds every golden good, and what is bad", "[tool][golden]") {
  for (const auto& golden : golden_directories()) {
    INFO(golden.filename().string());
    const Result result = run_tool({"verify", golden.string(), "--device", "cpu", "--json"});
    INFO(result.err);
    REQUIRE(result.code == 0);
    const auto all = nlohmann::json::parse(result.out);
    CHECK(all["ok"] == true);
    REQUIRE(all["layers"].size() == 1);
    CHECK(all["layers"][0]["ok"] == true);
    CHECK(all["layers"][0]["cpu_error"] > 0.0);
    CHECK(all["layers"][0]["cpu_error"] < 1.0);
  }
  const TemporaryDirectory directory;
  auto tensors = gptq_tensors({.prefix = "m.a"});
  const auto more = gptq_tensors({.prefix = "m.b"});
  tensors.insert(tensors.end(), more.begin(), more.end());
  const std::uint16_t infinity = 0x7c00;
  std::memcpy(tensors.back().bytes.data() + 10, &infinity, 2);
  write_tensors(directory / "model.safetensors", tensors);
  const Result bad = run_tool({"verify", directory.path().string(), "--bits", "4", "--group-size",
                               "32", "--device", "cpu"});
  CHECK(bad.code == 5);
  CHECK(bad.out.find("good  m.a: cpu") != std::string::npos);
  CHECK(bad.out.find("BAD   m.b: ") != std::string::npos);
  CHECK(bad.err.find("mpq: error: 1 of 2 layers are bad, the first: ") == 0);
  CHECK(std::count(bad.err.begin(), bad.err.end(), '\n') == 1);
}

TEST_CASE("convert is lossless, or tells the largest error", "[tool][golden]") {
  const TemporaryDirectory directory;
  const auto convert = [&](const std::string& golden, const std::string& format,
                           const std::string& out, std::vector<std::string> more = {}) {
    more.insert(more.begin(), {"convert", golden, "--to", format, "-o", out, "--json"});
    return run_tool(more);
  };
  const auto golden = (kData / "gptq-w4-g32-desc-act").string();
  const auto v2 = (directory / "v2").string(), back = (directory / "back").string();
  const Result there = convert(golden, "gptq_v2", v2);
  REQUIRE(there.code == 0);
  const auto all = nlohmann::json::parse(there.out);
  const bool lossless = all["lossless"];
  CHECK((all["max_error"] == 0.0) == lossless);
  REQUIRE(convert(v2, "compressed-tensors", (directory / "ct").string()).code == 0);
  REQUIRE(convert((directory / "ct").string(), "gptq", back).code == 0);
  CHECK(read_text(directory / "back" / "quantize_config.json").find("\"gptq\"") !=
        std::string::npos);
  const Result same = convert(golden, "gptq", (directory / "same").string(), {"--lossless"});
  REQUIRE(same.code == 0);
  CHECK(read_text(directory / "same" / "model.safetensors") ==
        read_text(kData / "gptq-w4-g32-desc-act" / "model.safetensors"));
  CHECK(directory.file_count() == 4);
  // Act-order has no place in AWQ; float zeros none in GPTQ.
  CHECK(
      fails({"convert", golden, "--to", "awq", "-o", (directory / "x").string()}, 6, "act-order"));
  const auto hqq = (kData / "hqq-w4-g64").string();
  CHECK(fails({"convert", hqq, "--to", "gptq_v2", "-o", (directory / "x").string(), "--lossless"},
              6, "largest error"));
  CHECK(directory.file_count() == 4);
  const Result lossy = convert(hqq, "gptq_v2", (directory / "x").string());
  REQUIRE(lossy.code == 0);
  const auto told = nlohmann::json::parse(lossy.out);
  CHECK(told["lossless"] == false);
  CHECK(told["max_error"] > 0.0);
  CHECK(told["lossy_layers"][0]["name"] == kLayer);
}

TEST_CASE("quantize makes every format, by every method, and tells the errors", "[tool]") {
  const TemporaryDirectory directory;
  const auto dense = directory / "dense";
  std::filesystem::create_directory(dense);
  constexpr std::size_t kIn = 128, kOut = 32, kRows = 200;
  Random random(1);
  const auto normal = [&](std::size_t count, double size) {
    std::vector<float> values(count);
    for (auto& value : values) value = static_cast<float>(size * random.normal());
    return values;
  };
  const auto up = normal(kIn * kOut, 0.02), bias = normal(kOut, 1.0);
  const auto down = normal(kIn * kOut, 0.02);
  std::vector<std::uint16_t> down_bf16;
  for (const float value : down) down_bf16.push_back(float_to_bf16(value));
  write_tensors(dense / "model.safetensors",
                {make_tensor("m.up.weight", SafetensorsType::F32, {kOut, kIn}, up),
                 make_tensor("m.up.bias", SafetensorsType::F32, {kOut}, bias),
                 make_tensor("m.down.weight", SafetensorsType::BF16, {kOut, kIn}, down_bf16),
                 make_tensor("m.norm.weight", SafetensorsType::F32, {kOut}, bias),
                 make_tensor("lm_head.weight", SafetensorsType::F32, {kOut, kIn}, up)});
  write_text(dense / "config.json", R"({"model_type":"test"})");
  auto x = normal(kRows * kIn, 1.0);
  for (std::size_t i = 1; i < x.size(); ++i) x[i] = 0.9f * x[i - 1] + 0.3f * x[i];
  const auto calibration = (directory / "x.safetensors").string();
  write_tensors(calibration, {make_tensor("m.up", SafetensorsType::F32, {kRows, kIn}, x),
                              make_tensor("m.down", SafetensorsType::F32, {kRows, kIn}, x)});
  int round = 0;
  std::map<std::string, double> output_errors;
  for (const std::string format : {"gptq", "gptq_v2", "awq", "compressed-tensors", "gba"}) {
    for (const std::string method : {"nearest", "hqq", "gptq"}) {
      INFO(format << " " << method);
      const auto out = directory / std::to_string(round++);
      const Result result =
          run_tool({"quantize", dense.string(), "--to", format, "-o", out.string(), "--method",
                    method, "--group-size", "64", "--calibration", calibration, "--json"});
      INFO(result.err);
      REQUIRE(result.code == 0);
      const auto all = nlohmann::json::parse(result.out);
      CHECK(all["dense_tensors"] == 2);
      REQUIRE(all["layers"].size() == 2);
      CHECK(all["layers"][1]["name"] == "m.up");
      CHECK(all["layers"][1]["relative_error"] < 0.15);
      CHECK(all["layers"][1].contains("format_max_error") == (format == "gba"));
      output_errors[method] = all["layers"][1]["relative_output_error"];
      const auto made = Checkpoint::open(out);
      REQUIRE(made.layers().size() == 2);
      CHECK(made.dense_tensors() == std::vector<std::string>{"lm_head.weight", "m.norm.weight"});
      CHECK(made.layers()[0].dtype == (format == "awq" ? DType::f16 : DType::bf16));
      CHECK(made.layers()[1].dtype == DType::f16);
      CHECK(data_of(made.read("m.up")).bias == bias);
      const double error = relative_error(up, made.read("m.up"));
      if (format != "gba") {
        const double told = all["layers"][1]["relative_error"];
        CHECK(std::abs(error - told) <= 1e-9 * told);
      }
      CHECK(error < 0.2);
      CHECK(run_tool({"verify", out.string(), "--device", "cpu"}).code == 0);
    }
    CHECK(output_errors["gptq"] < 0.8 * output_errors["nearest"]);
  }
  const auto quantize = [&](std::vector<std::string> more) {
    more.insert(more.begin(),
                {"quantize", dense.string(), "-o", (directory / "out").string(), "--to", "gptq"});
    return more;
  };
  const auto files = directory.file_count();
  CHECK(fails(quantize({"--method", "gptq"}), 2, "--calibration"));
  CHECK(fails(quantize({"--act-order"}), 2, "--method gptq"));
  CHECK(fails(quantize({"--bits", "3"}), 2, "bits is 3"));
  CHECK(fails(quantize({"--exclude", "("}), 2, "regular expression"));
  CHECK(fails(quantize({"--include", "none"}), 4, "no matrix"));
  CHECK(fails(quantize({"--exclude", "", "--method", "gptq", "--calibration", calibration}), 4,
              "\"lm_head\""));
  CHECK(fails(quantize({"--method", "hqq", "--symmetric"}), 2, "symmetric"));
  CHECK(directory.file_count() == files);
  REQUIRE(run_tool(quantize({"--method", "gptq", "--calibration", calibration, "--act-order",
                             "--symmetric", "--group-size", "32"}))
              .code == 0);
  const auto ordered = Checkpoint::open(directory / "out");
  CHECK(ordered.layers()[1].act_order);
  CHECK(ordered.layers()[1].note.empty());
}

TEST_CASE("a layer of mixed widths runs in pieces, or says which width cannot", "[tool]") {
  const TemporaryDirectory directory;
  const std::string in = directory.path().string(), out = (directory / "out").string();
  // Groups of 32 features with 8, 4 and `last` bits.
  const auto write = [&](std::uint16_t last) {
    constexpr std::int64_t kOut = 16;
    const std::int64_t rows = 12 + last;
    std::vector<std::uint32_t> words(static_cast<std::size_t>(rows * kOut), 0x12345678u);
    write_tensors(directory / "model.safetensors",
                  {make_tensor("m.qweight", SafetensorsType::I32, {rows, kOut}, words),
                   make_tensor("m.q_groups", SafetensorsType::I16, {6},
                               std::vector<std::uint16_t>{8, 0, 4, 8, last, 12}),
                   make_tensor("m.scales", SafetensorsType::F16, {3, kOut},
                               std::vector<std::uint16_t>(3 * kOut, 0x2c00)),
                   make_tensor("m.zeros", SafetensorsType::F16, {3, kOut},
                               std::vector<std::uint16_t>(3 * kOut, 0x3c00))});
  };
  write(2);
  CHECK(run_tool({"verify", in, "--device", "cpu"}).code == 0);
  CHECK(run_tool({"inspect", in}).out.find("gba-mixed, 8+4+2 bits") == 0);
  const auto x = (directory / "x.safetensors").string();
  write_tensors(x, {make_tensor("x", SafetensorsType::F32, {1, 96}, std::vector<float>(96, 0.5f))});
  const std::vector<std::string> run{"run", in, "--input", x, "-o", out, "--device", "cpu"};
  const Result result = run_tool(run);
  REQUIRE(result.code == 0);
  CHECK(result.out.find("m: 8+4+2 bits, 96 -> 16") == 0);
  REQUIRE(run_tool({"dequantize", in, "-o", (directory / "d").string()}).code == 0);
  const auto dense = read_tensors(directory / "d").at(0).values<float>();
  const auto y = floats(read_tensors(out).at(0));
  double sum = 0;
  for (std::size_t i = 0; i < 96; ++i) sum += 0.5 * dense[i];
  CHECK(std::abs(y[0] - sum) <= std::abs(sum) * 0x1p-9);
  std::filesystem::remove(out);
  write(3);
  CHECK(fails(run, 6, "3 bits"));
  CHECK_FALSE(std::filesystem::exists(out));
  CHECK(run_tool({"dequantize", in, "-o", (directory / "d").string()}).code == 0);
  CHECK(fails({"convert", in, "--to", "gptq", "-o", out}, 6, "8, 4, 3"));
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
  CHECK(fails(run_with({"--layer", "model.layers.0.mlp.up_proj"}), 2, kLayer));
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
  CHECK(fails(call, 5, kLayer));
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

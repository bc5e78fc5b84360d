// The program's commands that look at checkpoints and make them: inspect, verify, convert,
// quantize.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
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
  CHECK(told["lossy_layers"][0]["name"] == kGoldenLayer);
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
  CHECK(fails(quantize({"--method", "gptq", "--calibration", calibration, "--device", "cuda"}), 2,
              "runs on the CPU"));
  CHECK(fails(quantize({"--device", "gpu"}), 2, "gpu"));
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

TEST_CASE("bench times one layer of each kind, and only right ones", "[tool]") {
  const std::string in = (kData / "gptq-w4-g128").string();
  const Result result = run_tool({"bench", in, "--device", "cpu", "--batch", "1,5", "--json"});
  REQUIRE(result.code == 0);
  const auto json = nlohmann::json::parse(result.out);
  REQUIRE(json.at("rows").size() == 2);
  for (const auto& row : json.at("rows")) {
    CHECK(row.at("layer") == "model.layers.0.mlp.down_proj");
    CHECK(row.at("us") > 0.0);
    CHECK(row.at("error") <= 1.0);
  }
  CHECK(json.at("rows").at(1).at("batch") == 5);
  CHECK(
      run_tool({"bench", in, "--device", "cpu", "--batch", "2"}).out.find("all layers, batch 2") !=
      std::string::npos);
  CHECK(fails({"bench", in, "--batch", "0"}, 2, "--batch"));
  CHECK(fails({"bench", in, "--layer", "down_proj"}, 2, "down_proj"));
  CHECK(fails({"bench", in, "--device", "cuda:99"}, 7, "cuda:99"));
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
  CHECK(fails({"bench", in, "--layer", "m", "--device", "cpu"}, 6, "several widths"));
  CHECK(fails({"bench", in, "--device", "cpu"}, 4, "no quantised layer of one width"));
}

// Where settings and shards come from, and that bad ones are refused.

#include <fmt/format.h>

#include <string>
#include <vector>

#include "host/checkpoint_files.hpp"
#include "mpq/checkpoint.hpp"
#include "mpq/error.hpp"
#include "support/catch.hpp"
#include "support/expect_error.hpp"

using namespace mpq;
using namespace mpq::test;

namespace {

constexpr auto kIndex = "model.safetensors.index.json";

/// A directory with a layer "a.b.c" of 4 bits and groups of 32 and no settings.
struct Model : TemporaryDirectory {
  Model() {
    write_tensors(*this / "model.safetensors", gptq_tensors({.prefix = "a.b.c", .bits = 4}));
  }
  LayerInfo open(const CheckpointOptions& options = {}) const {
    return Checkpoint::open(path(), options).layers().at(0);
  }
};

}  // namespace

TEST_CASE("settings come from any of their files, the first wins", "[checkpoint][settings]") {
  const Model model;
  write_text(model / "config.json",
             R"({"hidden_size":4,"quantization_config":{"quant_method":"gptq","bits":4,
                 "group_size":32,"checkpoint_format":"gptq_v2","desc_act":null}})");
  CHECK(model.open().format == "gptq_v2");
  write_text(model / "quant_config.json", R"({"bits":4,"checkpoint_format":"gptq"})");
  CHECK(model.open().format == "gptq");  // and group_size is still config.json's
  write_text(model / "quantize_config.json", R"({"bits":2})");
  CHECK(refuses([&] { model.open(); }, ErrorCode::invalid_file));
  CheckpointOptions options;
  options.bits = 4;
  options.format = "gptq_v2";
  CHECK(model.open(options).format == "gptq_v2");
}

TEST_CASE("settings of one layer win over those of all", "[checkpoint][settings]") {
  const Model model;
  const auto settings = [&](const std::string& text) {
    write_text(model / "quantize_config.json", text);
    return model.open();
  };
  const std::string wrong = R"("bits":8,"group_size":128,)";
  CHECK(settings("{" + wrong + R"("strategy":{"c":{"bits":4,"group_size":32}}})").bits == 4);
  CHECK(settings("{" + wrong + R"("strategy":{"a.b.c":{"bits":4,"group_size":32},
                                             "c":{"bits":2}}})")
            .bits == 4);
  CHECK(settings("{" + wrong + R"("dynamic":{"x":{"bits":2},"+:.*\\.b\\.(?:c|d)$":{"bits":4,
                                             "group_size":32}, "a":{"bits":2}}})")
            .bits == 4);
  // A pattern must match from the beginning; "-:" leaves the rest as it is.
  CHECK(settings(R"({"bits":4,"group_size":32,"dynamic":{"b":{"bits":8},"-:a":{},"a":{"bits":8}}})")
            .bits == 4);
  CHECK(refuses([&] { settings(R"({"dynamic":{"(":{}}})"); }, ErrorCode::unsupported, "\"(\""));
  // Numbers beyond every integer type, which the standard library would read all the same.
  for (const char* number :
       {R"(\\60888888888888888888)", "x{60888888888888888888}", "x{1,60888888888888888888}"}) {
    CHECK(refuses([&] { settings(fmt::format(R"({{"dynamic":{{"{}":{{}}}}}})", number)); },
                  ErrorCode::unsupported, "8888"));
  }
  // Nested repetition must not take for ever.
  write_tensors(model / "model.safetensors",
                gptq_tensors({.prefix = std::string(400, 'x'), .bits = 4}));
  CHECK(settings(R"({"bits":4,"group_size":32,"dynamic":{"(x+x+)+y":{"bits":8}}})").bits == 4);
  write_tensors(model / "model.safetensors",
                gptq_tensors({.prefix = std::string(4000, 'x'), .bits = 4}));
  CHECK(refuses([&] { settings(R"({"bits":4,"dynamic":{"x":{}}})"); }, ErrorCode::unsupported,
                "4000", "limit"));
}

TEST_CASE("a directory's name tells one width for the model", "[checkpoint][settings]") {
  const TemporaryDirectory parent;
  for (const char* name :
       {"Llama-3-8B-w4a16g32", "Yi-34B-4bit-groupsize32", "x-4-bit-groupsize32"}) {
    const auto directory = parent / name;
    std::filesystem::create_directory(directory);
    write_tensors(directory / "model.safetensors", gptq_tensors({.prefix = "m"}));
    const auto info = Checkpoint::open(directory).layers().at(0);
    CHECK(info.bits == 4);
    CHECK(info.group_size == 32);
  }
}

TEST_CASE("formats that are not supported are named", "[checkpoint][settings]") {
  const Model model;
  const auto refused = [&](const std::string& text, const char* words) {
    write_text(model / "quantize_config.json", text);
    return refuses([&] { model.open(); }, ErrorCode::unsupported, words, "gptq, gptq_v2");
  };
  CHECK(refused(R"({"bits":4,"group_size":32,"is_marlin_format":true})", "\"marlin\""));
  CHECK(
      refused(R"({"quant_method":"gptq","checkpoint_format":"bitblas","bits":4})", "\"bitblas\""));
  CHECK(refused(R"({"quant_method":"bitnet","bits":4})", "\"bitnet\""));
  const auto variant = [&](const std::string& text, const char* words) {
    write_text(model / "quantize_config.json", text);
    return refuses([&] { model.open(); }, ErrorCode::unsupported, words, "quantize_config.json");
  };
  CHECK(variant(R"({"quant_method":"compressed-tensors","format":"float-quantized"})",
                "\"float-quantized\""));
  CHECK(variant(R"({"quant_method":"awq","bits":4,"version":"gemv"})", "\"gemv\""));
  CHECK(variant(R"({"quant_method":"auto-round","bits":4,"packing_format":"auto_round:fp8"})",
                "\"auto_round:fp8\""));
  CHECK(variant(R"({"bits":4,"group_size":32,"mode":"mxfp4"})", "\"mxfp4\""));
}

TEST_CASE("bad settings files are refused, naming them", "[checkpoint][settings]") {
  const Model model;
  const auto refused = [&](const std::string& text, const char* words) {
    write_text(model / "quantize_config.json", text);
    return refuses([&] { model.open(); }, ErrorCode::invalid_file, "quantize_config.json", words);
  };
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  CHECK(refused("", "not JSON"));
  CHECK(refused("{", "not JSON"));
  CHECK(refused("{} {}", "not JSON"));
  CHECK(refused(std::string("{}\0x", 4), "not JSON"));
  CHECK(refused("{\"bits\":1e999}", "not JSON"));
  CHECK(refused("[4]", "expected an object"));
  CHECK(refused(std::string(100'000, '['), "deeper"));
  CHECK(refused(objects, "deeper"));
  CHECK(refused(R"({"bits":4,"bits":4})", "\"bits\" is twice"));
  CHECK(refused(R"({"a":[{"b":1,"b":1}]})", "\"b\" is twice"));
  CHECK(refused(R"({"bits":"4"})", "bits is"));
  CHECK(refused(R"({"bits":4.0})", "bits is"));
  CHECK(refused(R"({"bits":4294967300})", "bits is"));
  CHECK(refused(R"({"bits":18446744073709551615})", "bits is"));
  CHECK(refused(R"({"bits":-9223372036854775808})", "bits is"));
  CHECK(refused(R"({"bits":4,"asym":1})", "asym is"));
  CHECK(refused(R"({"bits":4,"quant_method":1})", "quant_method is"));
  write_text(model / "quantize_config.json", R"({"bits":4,"group_size":0})");
  CHECK(refuses([&] { model.open(); }, ErrorCode::invalid_file, "group_size is 0"));
  write_text(model / "quantize_config.json", R"({"bits":3,"group_size":32})");
  CHECK(refuses([&] { model.open(); }, ErrorCode::unsupported, "bits is 3"));
  std::filesystem::remove(model / "quantize_config.json");
  std::filesystem::create_directory(model / "quantize_config.json");
  CHECK(refuses([&] { model.open(); }, ErrorCode::io_failure, "quantize_config.json"));
  std::filesystem::remove(model / "quantize_config.json");
  write_text(model / "config.json", R"({"quantization_config":[]})");
  CHECK(refuses([&] { model.open(); }, ErrorCode::invalid_file, "quantization_config"));
}

TEST_CASE("an index names the shards and nothing else", "[checkpoint][shards]") {
  const TemporaryDirectory directory;
  auto tensors = gptq_tensors({.prefix = "m"});
  const std::vector<TensorCopy> rest(tensors.begin() + 1, tensors.end());
  tensors.resize(1);
  write_tensors(directory / "one.safetensors", tensors);
  write_tensors(directory / "two.safetensors", rest);
  write_text(directory / "model.safetensors", "not in the index");
  CheckpointOptions options;
  options.bits = 4;
  options.group_size = 32;
  const auto open = [&] { Checkpoint::open(directory.path(), options); };
  const auto index = [&](const std::string& map) {
    write_text(directory / kIndex, R"({"metadata":{},"weight_map":)" + map + "}");
    return error_of(open);
  };
  CHECK_FALSE(index(R"({"m.qweight":"one.safetensors","m.qzeros":"two.safetensors",
                        "m.scales":"two.safetensors"})"));
  const auto refused = [&](const std::string& map, ErrorCode code, const std::string& words) {
    const auto error = index(map);
    return error && error->code() == code &&
           std::string(error->what()).find(words) != std::string::npos;
  };
  const auto bad = ErrorCode::invalid_file;
  for (const char* name : {"../one.safetensors", "/etc/passwd", "a/../one.safetensors", "..", ".",
                           "", "sub/one.safetensors", "a\\\\b", "one\\u0000.safetensors"}) {
    INFO(name);
    CHECK(refused(std::string(R"({"m.qweight":")") + name + "\"}", bad, "not a plain file name"));
  }
  CHECK(refused(R"({"m.qweight":"two.safetensors"})", bad, "\"m.qweight\" is not in"));
  CHECK(refused(R"({"m.qweight":"none.safetensors"})", ErrorCode::io_failure, "none.safetensors"));
  CHECK(refused(R"({"m.qweight":1})", bad, "not a string"));
  CHECK(refused(R"({"a":"one.safetensors","a":"two.safetensors"})", bad, "\"a\" is twice"));
  CHECK(refused("[]", bad, "weight_map"));
  write_text(directory / kIndex, "{}");
  CHECK(refuses(open, bad, "weight_map"));
  write_text(directory / kIndex, std::string(100'000, '['));
  CHECK(refuses(open, bad, "deeper"));
}

TEST_CASE("without an index the files that are the model's are found", "[checkpoint][shards]") {
  const TemporaryDirectory directory;
  CheckpointOptions options;
  options.bits = 4;
  options.group_size = 32;
  const auto layers = [&] { return Checkpoint::open(directory.path(), options).layers().size(); };
  CHECK(refuses(layers, ErrorCode::io_failure, "no *.safetensors"));
  write_tensors(directory / "gptq_model-4bit-32g.safetensors", gptq_tensors({.prefix = "a"}));
  CHECK(layers() == 1);
  write_tensors(directory / "other.safetensors", gptq_tensors({.prefix = "b"}));
  CHECK(layers() == 2);
  write_tensors(directory / "again.safetensors", gptq_tensors({.prefix = "b"}));
  CHECK(refuses(layers, ErrorCode::invalid_file, "is also in", "again.safetensors", "\"b.q"));
  write_tensors(directory / "model-00001-of-00002.safetensors", gptq_tensors({.prefix = "c"}));
  write_tensors(directory / "model-00002-of-00002.safetensors", gptq_tensors({.prefix = "d"}));
  CHECK(layers() == 2);
  write_tensors(directory / "model.safetensors", gptq_tensors({.prefix = "e"}));
  CHECK(layers() == 1);
  CHECK(refuses([&] { Checkpoint::open(directory / "model.safetensors"); }, ErrorCode::io_failure,
                "not a directory"));
  CHECK(refuses([&] { Checkpoint::open(directory / "none"); }, ErrorCode::io_failure, "none"));
}

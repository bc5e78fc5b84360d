// Checkpoint: which files, which settings, and an error that names the tensor for every layer that
// does not fit.

#include "mpq/checkpoint.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "host/checkpoint_files.hpp"
#include "mpq/error.hpp"
#include "mpq/pack.hpp"
#include "support/catch.hpp"
#include "support/expect_error.hpp"

using namespace mpq;
using namespace mpq::test;

namespace {

constexpr auto kUpProj = "model.layers.0.mlp.up_proj";

CheckpointOptions bits_and_group(int bits, std::optional<int> group_size) {
  CheckpointOptions options;
  options.bits = bits;
  options.group_size = group_size;
  return options;
}

void write_model(const TemporaryDirectory& directory, const std::vector<TensorCopy>& tensors) {
  write_tensors(directory / "model.safetensors", tensors);
}

auto opening(const TemporaryDirectory& directory, const CheckpointOptions& options = {}) {
  return [&directory, options] { Checkpoint::open(directory.path(), options); };
}

}  // namespace

TEST_CASE("GPTQ layers of awkward shapes decode by their formula", "[checkpoint]") {
  const TemporaryDirectory directory;
  struct Shape {
    int bits;
    std::int64_t k, n;
    int group_size;
  };
  // K and N that fill no word, a ragged last group, a group larger than K, groups of one.
  for (const auto& [bits, k, n, group_size] :
       {Shape{4, 64, 32, 32}, Shape{4, 60, 30, 16}, Shape{2, 33, 5, 7}, Shape{1, 70, 3, 64},
        Shape{8, 7, 9, 100}, Shape{8, 5, 1, 1}, Shape{4, 1, 1, -1}, Shape{1, 31, 33, -1}}) {
    INFO(bits << " bits, " << k << " x " << n << ", group " << group_size);
    const std::int64_t groups = group_size == -1 ? 1 : ceil_div(k, group_size);
    auto tensors = gptq_tensors({.k = k, .n = n, .groups = groups, .bits = bits});
    std::vector<std::int32_t> g_idx(static_cast<std::size_t>(k));
    for (std::size_t i = 0; i < g_idx.size(); ++i) {
      g_idx[i] = group_size == -1 ? 0 : static_cast<std::int32_t>(i) / group_size;
    }
    tensors.push_back(
        make_tensor(std::string(kUpProj) + ".g_idx", SafetensorsType::I32, {k}, g_idx));
    write_model(directory, tensors);
    const auto checkpoint = Checkpoint::open(directory.path(), bits_and_group(bits, group_size));
    const auto weights = checkpoint.read(kUpProj);
    const WeightsData& data = data_of(weights);
    CHECK(data.g_idx.empty());
    const auto qweight = tensors[0].values<std::uint32_t>();
    const auto qzeros = tensors[1].values<std::uint32_t>();
    const auto scales = tensors[2].values<std::uint16_t>();
    const auto dense = dequantize(weights);
    const std::int64_t per_word = 32 / bits;
    const auto code = [&](const std::vector<std::uint32_t>& words, std::int64_t word,
                          std::int64_t place) {
      return (words[static_cast<std::size_t>(word)] >> (place * bits)) & ((1u << bits) - 1u);
    };
    for (std::int64_t row = 0; row < n; ++row) {
      for (std::int64_t i = 0; i < k; ++i) {
        const std::int64_t g = g_idx[static_cast<std::size_t>(i)];
        const auto q = code(qweight, i / per_word * n + row, i % per_word);
        const auto z =
            code(qzeros, g * ceil_div(n, per_word) + row / per_word, row % per_word) + 1u;
        const float s = f16_to_float(scales[static_cast<std::size_t>(g * n + row)]);
        REQUIRE(dense[static_cast<std::size_t>(row * k + i)] ==
                s * (static_cast<float>(q) - static_cast<float>(z)));
      }
    }
  }
}

TEST_CASE("what lies beside the layers is listed", "[checkpoint]") {
  const TemporaryDirectory directory;
  auto tensors = gptq_tensors({});
  const std::vector<float> one{1.0f};
  for (const char* name : {"lm_head.weight", "norm", ".odd", "a.bias"}) {
    tensors.push_back(make_tensor(name, SafetensorsType::F32, {1}, one));
  }
  write_model(directory, tensors);
  write_text(directory / "expected.safetensors", "not a file of the model");
  const auto checkpoint = Checkpoint::open(directory.path(), bits_and_group(4, 32));
  REQUIRE(checkpoint.layers().size() == 1);
  CHECK(checkpoint.layers()[0].name == kUpProj);
  CHECK(checkpoint.layers()[0].bytes == 64 * 32 / 2 + 2 * 4 * 4 + 2 * 32 * 2);
  CHECK(checkpoint.dense_tensors() ==
        std::vector<std::string>{".odd", "a.bias", "lm_head.weight", "norm"});
  CHECK(refuses([&] { checkpoint.read("up_proj"); }, ErrorCode::invalid_argument, "no layer",
                "\"up_proj\"", kUpProj));
}

TEST_CASE("a layer's tensors may have no prefix", "[checkpoint]") {
  const TemporaryDirectory directory;
  auto tensors = gptq_tensors({});
  const auto more = gptq_tensors({.prefix = "", .k = 32, .groups = 1});
  tensors.insert(tensors.end(), more.begin(), more.end());
  write_model(directory, tensors);
  // Without group_size a single group is all of K; several need to be told.
  CHECK(refuses(opening(directory, bits_and_group(4, std::nullopt)), ErrorCode::invalid_file,
                kUpProj, "2 groups", "group_size"));
  const auto checkpoint = Checkpoint::open(directory.path(), bits_and_group(4, 32));
  REQUIRE(checkpoint.layers().size() == 2);
  CHECK(checkpoint.layers()[0].name.empty());
  CHECK(checkpoint.layers()[1].name == kUpProj);
  CHECK(data_of(checkpoint.read("")).in_features == 32);
}

TEST_CASE("bits must be told", "[checkpoint]") {
  const TemporaryDirectory directory;
  write_model(directory, gptq_tensors({}));
  CHECK(refuses(opening(directory), ErrorCode::invalid_file, "bits"));
  CHECK(refuses(opening(directory, bits_and_group(3, 32)), ErrorCode::unsupported, "bits is 3"));
  CHECK(refuses(opening(directory, bits_and_group(4, 0)), ErrorCode::invalid_argument,
                "group_size is 0"));
  CHECK(refuses(opening(directory, bits_and_group(4, -2)), ErrorCode::invalid_argument,
                "group_size is -2"));
  // Wrong ones contradict the shapes.
  CHECK(refuses(opening(directory, bits_and_group(8, 32)), ErrorCode::invalid_file));
  CHECK(refuses(opening(directory, bits_and_group(4, 64)), ErrorCode::invalid_file, "scales",
                "[2, 32]", "[1, 32]"));
  CheckpointOptions options = bits_and_group(4, 32);
  options.format = "exl2";
  CHECK(refuses(opening(directory, options), ErrorCode::unsupported, "\"exl2\"", "gptq_v2", "gba"));
}

TEST_CASE("a layer without one of its tensors is refused", "[checkpoint]") {
  for (const auto& golden : golden_directories()) {
    const bool plain = golden.filename() == "gba-sym-w4-g256";
    const auto names = read_tensors(golden / "model.safetensors");
    for (const auto& removed : names) {
      const std::string suffix = removed.name.substr(removed.name.rfind('.') + 1);
      const bool in_settings = suffix == "axis" || suffix == "nbits" || suffix == "group_size";
      const bool optional = suffix == "bias" || suffix == "g_idx" || in_settings ||
                            (plain && suffix.starts_with("q") && suffix != "qweight");
      const TemporaryDirectory directory;
      copy_golden(golden, directory.path(), [&](auto& tensors) {
        std::erase_if(tensors, [&](const auto& t) { return t.name == removed.name; });
      });
      INFO(golden.filename().string() << " without " << removed.name);
      if (optional && !(suffix == "g_idx" && golden.string().ends_with("desc-act"))) {
        CHECK_NOTHROW(Checkpoint::open(directory.path()));
      } else {
        CHECK(refuses(opening(directory), ErrorCode::invalid_file, removed.name, "is missing"));
      }
    }
  }
}

TEST_CASE("wrong types and shapes name the tensor", "[checkpoint]") {
  for (const char* name : {"gptq-w2-g64-desc-act", "gba-asym-w2-g64-dqmode1", "gba-asym-w4-g128",
                           "gba-sym-w2-g32-bf16", "gba-sym-w4-g256", "awq-w4-g64",
                           "ct-w4-g128-asym", "ct-w8-g64-sym", "hqq-w2-g64"}) {
    const auto golden = kData / name;
    const bool plain = golden.filename() == "gba-sym-w4-g256";
    const auto names = read_tensors(golden / "model.safetensors");
    for (const auto& changed : names) {
      const std::string suffix = changed.name.substr(changed.name.rfind('.') + 1);
      if (plain && suffix.starts_with("q") && suffix != "qweight") continue;  // never looked at
      if (changed.shape.empty()) continue;  // a scalar may also be [1]
      const auto type = changed.type == SafetensorsType::I32   ? SafetensorsType::U32
                        : changed.type == SafetensorsType::U8  ? SafetensorsType::I8
                        : changed.type == SafetensorsType::I64 ? SafetensorsType::U64
                                                               : SafetensorsType::I16;
      const TemporaryDirectory directory;
      INFO(golden.filename().string() << " with another " << changed.name);
      copy_golden(golden, directory.path(),
                  [&](auto& tensors) { tensor_of(tensors, suffix).type = type; });
      CHECK(refuses(opening(directory), ErrorCode::invalid_file, changed.name, to_string(type)));
      // One more dimension; turned around; empty; one row less.
      const auto reshape = [&](auto&& shape) {
        copy_golden(golden, directory.path(), [&](auto& tensors) {
          auto& tensor = tensor_of(tensors, suffix);
          shape(tensor.shape);
          std::int64_t size = bits_of(tensor.type) / 8;
          for (const auto dimension : tensor.shape) size *= dimension;
          tensor.bytes.resize(static_cast<std::size_t>(size));
        });
        const auto error = error_of(opening(directory));
        REQUIRE(error);
        INFO(error->what());
        CHECK(error->code() == ErrorCode::invalid_file);
      };
      reshape([](auto& shape) { shape.push_back(1); });
      reshape([](auto& shape) { shape.front() = 0; });
      reshape([](auto& shape) { shape.back() = 0; });
      reshape([](auto& shape) { shape.clear(); });
      reshape([](auto& shape) { ++shape.front(); });
      reshape([](auto& shape) { ++shape.back(); });
    }
  }
}

TEST_CASE("g_idx is checked, and kept only where it says something", "[checkpoint]") {
  const TemporaryDirectory directory;
  const auto with = [&](std::vector<std::int32_t> g_idx) {
    auto tensors = gptq_tensors({});
    const auto size = static_cast<std::int64_t>(g_idx.size());
    tensors.push_back(
        make_tensor(std::string(kUpProj) + ".g_idx", SafetensorsType::I32, {size}, g_idx));
    write_model(directory, tensors);
    return Checkpoint::open(directory.path(), bits_and_group(4, 32));
  };
  std::vector<std::int32_t> g_idx(64);
  for (std::size_t i = 0; i < 64; ++i) g_idx[i] = static_cast<std::int32_t>(i / 32);
  CHECK_FALSE(with(g_idx).layers()[0].act_order);
  std::swap(g_idx[0], g_idx[63]);
  const auto checkpoint = with(g_idx);
  CHECK(checkpoint.layers()[0].act_order);
  CHECK(data_of(checkpoint.read(kUpProj)).g_idx == g_idx);
  g_idx[5] = 2;
  CHECK(
      refuses([&] { with(g_idx); }, ErrorCode::invalid_weights, "g_idx", "is 2 at [5]", "0 to 1"));
  g_idx[5] = -1;
  CHECK(refuses([&] { with(g_idx); }, ErrorCode::invalid_weights, "is -1 at [5]"));
  g_idx.resize(63);
  CHECK_NOTHROW(with(std::vector<std::int32_t>(63)));  // the last word may be cut
  CHECK(refuses([&] { with(std::vector<std::int32_t>(56)); }, ErrorCode::invalid_file, "qweight"));

  // An order that is said to be there but is not.
  write_model(directory, gptq_tensors({}));
  write_text(directory / "quantize_config.json", R"({"bits":4,"group_size":32,"desc_act":true})");
  CHECK(refuses(opening(directory), ErrorCode::invalid_file, "desc_act", "g_idx"));
}

TEST_CASE("F32 scales are taken where a 16-bit type holds them", "[checkpoint]") {
  const TemporaryDirectory directory;
  const auto with = [&](std::vector<float> scales) {
    auto tensors = gptq_tensors({});
    scales.resize(64, 0.5f);
    tensor_of(tensors, "scales") =
        make_tensor(std::string(kUpProj) + ".scales", SafetensorsType::F32, {2, 32}, scales);
    tensors.push_back(make_tensor(std::string(kUpProj) + ".bias", SafetensorsType::F32, {32},
                                  std::vector<float>(32, 0.1f)));
    write_model(directory, tensors);
    const auto checkpoint = Checkpoint::open(directory.path(), bits_and_group(4, 32));
    const auto data = data_of(checkpoint.read(kUpProj));
    CHECK(checkpoint.layers()[0].dtype == data.dtype);
    CHECK(to_float(data.scales[0], data.dtype) == scales[0]);
    CHECK(to_float(data.scales[63], data.dtype) == 0.5f);
    CHECK(data.bias == std::vector<float>(32, 0.1f));
    return data.dtype;
  };
  CHECK(with({0.25f}) == DType::f16);
  CHECK(with({0x1.004p0f}) == DType::f16);
  CHECK(with({1e30f * 0 + 0x1p100f}) == DType::bf16);
  CHECK(with({std::numeric_limits<float>::infinity()}) == DType::f16);
  CHECK(refuses([&] { with({0.5f, 0.1f}); }, ErrorCode::unsupported, "scales", "0.1 at [0, 1]"));
  CHECK(refuses(
      [&] {
        with({0x1p100f, 0x1.004p0f});
      },
      ErrorCode::unsupported, "at [0, 0]", "at [0, 1]"));
}

TEST_CASE("NaN and infinite statistics are named by check_values", "[checkpoint]") {
  const TemporaryDirectory directory;
  const auto check = [&](const char* golden, const char* suffix, std::size_t at,
                         std::uint16_t value) {
    copy_golden(kData / golden, directory.path(), [&](auto& tensors) {
      std::memcpy(tensor_of(tensors, suffix).bytes.data() + 2 * at, &value, 2);
    });
    const auto checkpoint = Checkpoint::open(directory.path());
    const auto weights = checkpoint.read(checkpoint.layers()[0].name);
    return refuses([&] { check_values(data_of(weights), bits_of(weights)); },
                   ErrorCode::invalid_weights);
  };
  CHECK(check("gptq-w4-g128", "scales", 130, 0x7e00));
  CHECK(check("gptq-w4-g128", "scales", 0, 0xfc00));
  CHECK(check("gptq-w4-g128", "bias", 5, 0x7c00));
  CHECK(check("gptq-w8-bf16-nobias", "scales", 7, 0x7fc0));
  CHECK(check("gba-sym-w4-g128-dq64", "qscales_scales", 3, 0x7e00));
  CHECK(check("gba-sym-w4-g128-dq64", "qzeros_zeros", 0, 0x7c00));
  CHECK(check("gba-asym-w2-g64-dqmode1", "qscales_zeros", 127, 0x7c00));
  CHECK(check("gba-sym-w4-g256", "zeros", 255, 0x7e00));
}

TEST_CASE("changed headers and settings never crash a checkpoint", "[checkpoint]") {
  const TemporaryDirectory directory;
  Random random(11);
  int refused = 0, read = 0;
  for (const char* name : {"gptq-w2-g64-desc-act", "gba-asym-w2-g64-dqmode1", "gba-sym-w1-g32",
                           "awq-w4-g64", "ct-w4-g128-asym", "hqq-w4-g64"}) {
    const std::string tensors = read_text(kData / name / "model.safetensors");
    const char* settings_name = std::filesystem::exists(kData / name / "quantize_config.json")
                                    ? "quantize_config.json"
                                    : "config.json";
    const std::string settings = read_text(kData / name / settings_name);
    std::filesystem::remove(directory / "quantize_config.json");
    std::uint64_t length = 0;
    std::memcpy(&length, tensors.data(), 8);
    const auto changed = [&](std::string text, std::size_t end) {
      for (auto count = random.integer(1, 2); count > 0; --count) {
        const auto at = random.integer(0, static_cast<std::int64_t>(end) - 1);
        // Digits for digits: a file that still parses gets further.
        char& c = text[static_cast<std::size_t>(at)];
        c = c >= '0' && c <= '9' ? static_cast<char>('0' + random.integer(0, 9))
                                 : static_cast<char>(c ^ (1 << random.integer(0, 7)));
      }
      return text;
    };
    for (int i = 0; i < 500; ++i) {
      write_text(directory / "model.safetensors",
                 i % 2 == 0 ? changed(tensors, 8 + length) : tensors);
      write_text(directory / settings_name,
                 i % 2 == 1 ? changed(settings, settings.size()) : settings);
      const auto error = error_of([&] {
        const auto checkpoint = Checkpoint::open(directory.path());
        for (const auto& layer : checkpoint.layers()) dequantize(checkpoint.read(layer.name));
      });
      if (error) REQUIRE(std::string(error->what()).find('\n') == std::string::npos);
      ++(error ? refused : read);
    }
  }
  CHECK(refused > 1000);
  CHECK(read > 200);
}

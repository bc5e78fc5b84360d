// QuantizedModel: every layer as it is when loaded alone, from any number of threads, within the
// host memory that was told, tied weights once.

#include "mpq/quantized_model.hpp"

#include <atomic>
#include <cstdlib>
#include <new>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "host/checkpoint_files.hpp"
#include "mpq/checkpoint_writer.hpp"
#include "mpq/error.hpp"
#include "support/catch.hpp"
#include "support/expect_error.hpp"
#include "support/run_linear.hpp"

// All of the program's allocations are counted, so that what a load takes can be compared with what
// it said. Sanitizers have an allocator of their own.
#if !defined(__SANITIZE_ADDRESS__)
#define MPQ_COUNT_ALLOCATIONS 1

namespace {

std::atomic<std::int64_t> allocated{0}, peak{0};
constexpr std::size_t kHeader = 64;

void* counted_allocate(std::size_t bytes) {
  void* memory = std::malloc(bytes + kHeader);
  if (memory == nullptr) throw std::bad_alloc();
  *static_cast<std::size_t*>(memory) = bytes;
  const auto now =
      allocated.fetch_add(static_cast<std::int64_t>(bytes)) + static_cast<std::int64_t>(bytes);
  auto before = peak.load();
  while (before < now && !peak.compare_exchange_weak(before, now)) {
  }
  return static_cast<char*>(memory) + kHeader;
}

void counted_free(void* memory) noexcept {
  if (memory == nullptr) return;
  void* start = static_cast<char*>(memory) - kHeader;
  allocated -= static_cast<std::int64_t>(*static_cast<std::size_t*>(start));
  std::free(start);
}

}  // namespace

void* operator new(std::size_t bytes) {
  return counted_allocate(bytes);
}
void* operator new[](std::size_t bytes) {
  return counted_allocate(bytes);
}
void operator delete(void* memory) noexcept {
  counted_free(memory);
}
void operator delete[](void* memory) noexcept {
  counted_free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  counted_free(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
  counted_free(memory);
}
#endif

using namespace mpq;
using namespace mpq::test;

namespace {

/// A model of `layers` layers in the format, the last equal to the first.
void write_model(const std::filesystem::path& directory, const std::string& format, int layers,
                 std::int64_t k = 256, std::int64_t n = 96) {
  CheckpointWriterOptions options;
  options.format = format;
  options.max_shard_bytes = 100'000;
  CheckpointWriter writer(directory, options);
  for (int i = 0; i < layers; ++i) {
    const bool tied = i == layers - 1;
    writer.add("model.layers." + std::to_string(i) + ".proj",
               random_weights({.k = k,
                               .n = n,
                               .group_size = 64,
                               .zero_kind = ZeroKind::none,
                               .act_order = !tied && i % 3 == 1 && format == "gptq",
                               .seed = tied ? 2u : static_cast<std::uint64_t>(2 * (i + 1))}));
  }
  writer.finish();
}

}  // namespace

TEST_CASE("a model's layers are those of the checkpoint", "[model]") {
  const TemporaryDirectory parent;
  for (const char* format : {"gptq", "awq", "compressed-tensors"}) {
    write_model(parent / format, format, 7);
    const auto checkpoint = Checkpoint::open(parent / format);
    for (const int threads : {1, 4}) {
      for (const std::uint64_t budget : {std::uint64_t{1}, std::uint64_t{1} << 30}) {
        ModelOptions options;
        options.threads = threads;
        options.max_host_bytes = budget;
        options.aliases = {{"head", "model.layers.3.proj"}};
        std::vector<ModelProgress> seen;
        options.progress = [&](const ModelProgress& progress) { seen.push_back(progress); };
        const auto model = QuantizedModel::load(checkpoint, Device::cpu(), options);
        REQUIRE(model.layers().size() == 8);
        // Six are distinct.
        REQUIRE(seen.size() == 6);
        std::set<std::string> names;
        for (std::size_t i = 0; i < seen.size(); ++i) {
          CHECK(seen[i].layers_done == i + 1);
          CHECK(seen[i].layers == 6);
          names.insert(seen[i].layer);
        }
        CHECK(names.size() == 6);
        CHECK(seen.back().bytes_done == seen.back().bytes);
        CHECK(&model.layer("model.layers.0.proj") == &model.layer("model.layers.6.proj"));
        CHECK(&model.layer("head") == &model.layer("model.layers.3.proj"));
        std::size_t prepared = 0;
        auto ready = QuantizedModel::load(checkpoint, Device::cpu());
        prepare_layers(ready.layers(), {}, [&](std::size_t done, std::size_t) { prepared = done; });
        CHECK(prepared == 7);  // each was before
        const auto x = random_activations(2, 256, DType::f16, 5);
        for (const auto& info : checkpoint.layers()) {
          AnyLinear alone(checkpoint.read(info.name), Device::cpu(), DType::f16);
          alone.prepare_params();
          CHECK(model.layer(info.name).prepared());
          CHECK(run_linear(model.layer(info.name), x, {.m = 2}) == run_linear(alone, x, {.m = 2}));
        }
      }
    }
  }
}

TEST_CASE("a load takes no more host memory than it said", "[model]") {
#ifdef MPQ_COUNT_ALLOCATIONS
  const TemporaryDirectory parent;
  for (const char* format : {"gptq", "awq", "compressed-tensors", "gba"}) {
    write_model(parent / format, format, 9, 1024, 256);
    const auto checkpoint = Checkpoint::open(parent / format);
    for (const int threads : {1, 3}) {
      ModelOptions options;
      options.threads = threads;
      options.max_host_bytes = 1'500'000;
      const auto told = static_cast<std::int64_t>(QuantizedModel::host_bytes(checkpoint, options));
      const auto before = allocated.load();
      peak = before;
      const auto model = QuantizedModel::load(checkpoint, Device::cpu(), options);
      const auto kept = allocated.load() - before, most = peak.load() - before;
      INFO(format << ", " << threads << " threads: told " << told << ", took " << most << ", kept "
                  << kept);
      CHECK(most <= told + kept);
      CHECK(told <= 1'500'000);
      CHECK(most > told / 20);  // it is about these bytes
    }
  }
#endif
}

TEST_CASE("a load stops at the first error and passes it on", "[model]") {
  const TemporaryDirectory parent;
  write_model(parent / "model", "gptq", 5);
  const auto checkpoint = Checkpoint::open(parent / "model");
  ModelOptions options;
  options.threads = 3;
  options.progress = [](const ModelProgress& progress) {
    if (progress.layers_done == 2) throw std::runtime_error("stop");
  };
  CHECK_THROWS_AS(QuantizedModel::load(checkpoint, Device::cpu(), options), std::runtime_error);
  options.progress = {};
  options.aliases = {{"a", "none"}};
  CHECK(refuses([&] { QuantizedModel::load(checkpoint, Device::cpu(), options); },
                ErrorCode::invalid_argument, "\"a\"", "\"none\"", "no such layer"));
  options.aliases = {{"model.layers.1.proj", "model.layers.0.proj"}};
  CHECK(refuses([&] { QuantizedModel::load(checkpoint, Device::cpu(), options); },
                ErrorCode::invalid_argument, "a layer of that name"));
  options.aliases.clear();
  options.filter = [](const LayerInfo& info) { return info.name != "model.layers.2.proj"; };
  const auto most = QuantizedModel::load(checkpoint, Device::cpu(), options);
  CHECK(most.layers().size() == 4);
  CHECK(refuses([&] { most.layer("model.layers.2.proj"); }, ErrorCode::invalid_argument,
                "\"model.layers.2.proj\""));
  // A bad layer among good ones.
  auto tensors = gptq_tensors({.prefix = "a"});
  const auto more = gptq_tensors({.prefix = "b"});
  tensors.insert(tensors.end(), more.begin(), more.end());
  const std::uint16_t infinity = 0x7c00;
  std::memcpy(tensors.back().bytes.data() + 10, &infinity, 2);
  std::filesystem::create_directory(parent / "bad");
  write_tensors(parent / "bad" / "model.safetensors", tensors);
  write_text(parent / "bad" / "quantize_config.json", R"({"bits":4,"group_size":32})");
  CHECK(refuses([&] { QuantizedModel::load(parent / "bad", Device::cpu()); },
                ErrorCode::invalid_weights, "layer \"b\"", "channel 5"));
  CHECK(refuses([&] { QuantizedModel::load(parent / "model", Device::cuda(99)); },
                ErrorCode::device_unavailable, "cuda:99"));
}

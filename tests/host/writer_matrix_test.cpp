// Formats x widths x kinds of zeros x group sizes x shapes: written by our own writers, read back
// and equal, weight by weight, to what went in, or by no more than was told.

#include <cmath>
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

struct Case {
  std::string format;
  WeightsSpec spec;
};

std::string text_of(const Case& c) {
  return c.format + ", " + std::to_string(c.spec.bits) + " bits, " + std::to_string(c.spec.k) +
         " x " + std::to_string(c.spec.n) + ", groups of " + std::to_string(c.spec.group_size) +
         ", zeros " + to_string(c.spec.zero_kind) + ", " + to_string(c.spec.scale_dtype) +
         (c.spec.act_order ? ", act-order" : "");
}

bool possible(const Case& c) {
  return c.format != "awq" || (c.spec.bits == 4 && c.spec.n % 8 == 0 && !c.spec.act_order);
}

std::vector<Case> cases() {
  std::vector<Case> all;
  std::uint64_t seed = 0;
  for (const auto& format : writable_formats()) {
    for (const int bits : {1, 2, 4, 8}) {
      for (const auto zero_kind : {ZeroKind::none, ZeroKind::integer, ZeroKind::affine}) {
        for (const int group_size : {-1, 16, 24, 256}) {
          // Whole words; neither K nor N fills one, and a short last group; one feature.
          for (const auto& [k, n] :
               {std::pair<std::int64_t, std::int64_t>{256, 64}, {77, 13}, {1, 8}}) {
            ++seed;
            all.push_back({format,
                           {.bits = bits,
                            .k = k,
                            .n = n,
                            .group_size = group_size,
                            .zero_kind = zero_kind,
                            .scale_dtype = seed % 3 == 0 ? DType::bf16 : DType::f16,
                            .act_order = seed % 4 == 0 && group_size != -1 && k > group_size,
                            .bias = seed % 2 == 0,
                            .seed = seed}});
          }
        }
      }
    }
  }
  return all;
}

/// The largest |w - w'|.
double distance(const AnyQuantizedWeights& a, const AnyQuantizedWeights& b) {
  const auto x = dequantize(a), y = dequantize(b);
  REQUIRE(x.size() == y.size());
  double largest = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    largest = std::max(largest, std::abs(double{x[i]} - double{y[i]}));
  }
  return largest;
}

/// Integer zeros that every format has, so that nothing is lost: in [1, 2^bits - 1].
void keep_zeros_in_range(AnyQuantizedWeights& weights) {
  const auto most = static_cast<std::uint16_t>((1 << bits_of(weights)) - 1);
  for (auto& zero : data_of(weights).zeros) {
    zero = std::clamp<std::uint16_t>(zero, 1, most);
  }
}

}  // namespace

TEST_CASE("every format holds every shape", "[checkpoint][writer][matrix]") {
  const TemporaryDirectory parent;
  int written = 0, refused = 0, exact = 0;
  for (const Case& c : cases()) {
    INFO(text_of(c));
    auto weights = random_weights(c.spec);
    keep_zeros_in_range(weights);
    CheckpointWriterOptions options;
    options.format = c.format;
    const auto out = parent / "out";
    std::filesystem::remove_all(out);
    CheckpointWriter writer(out, options);
    if (!possible(c)) {
      CHECK(refuses([&] { writer.add("m.layer", weights); }, ErrorCode::unsupported, "m.layer"));
      ++refused;
      continue;
    }
    const auto loss = writer.add("m.layer", weights);
    writer.finish();
    const auto again = Checkpoint::open(out);
    REQUIRE(again.layers().size() == 1);
    const LayerInfo& info = again.layers()[0];
    CHECK(info.format == c.format);
    CHECK(info.bits == c.spec.bits);
    CHECK(info.in_features == c.spec.k);
    CHECK(info.out_features == c.spec.n);
    CHECK(info.act_order == !data_of(weights).g_idx.empty());
    const auto read = again.read("m.layer");
    check_values(data_of(read), c.spec.bits);
    CHECK(data_of(read).bias == data_of(weights).bias);
    // Integer zeros are in all formats, but GBA has them only for groups of 256 and more.
    const std::int64_t group = c.spec.group_size == -1 ? c.spec.k : c.spec.group_size;
    const bool lossless = c.spec.zero_kind != ZeroKind::affine &&
                          (c.format != "gba" || group >= 256) &&
                          (c.format != "awq" || c.spec.scale_dtype == DType::f16);
    if (lossless) CHECK(loss.max_error == 0);
    CHECK(distance(read, weights) == loss.max_error);
    ++written;
    exact += loss.max_error == 0;
  }
  CHECK(written + refused == 720);
  CHECK(written > 580);
  CHECK(exact > 330);
  CHECK(parent.file_count() == 1);
}

TEST_CASE("what one format holds the others hold, round and round",
          "[checkpoint][writer][matrix]") {
  // GPTQ -> version 2 -> compressed-tensors -> AWQ -> GPTQ: the same bytes at the end.
  const TemporaryDirectory parent;
  for (const int group_size : {-1, 32, 128}) {
    const WeightsSpec spec{.k = 256, .n = 48, .group_size = group_size, .bias = true};
    auto weights = random_weights(spec);
    keep_zeros_in_range(weights);
    std::string last;
    int step = 0;
    for (const char* format : {"gptq", "gptq_v2", "compressed-tensors", "awq", "gptq"}) {
      CheckpointWriterOptions options;
      options.format = format;
      options.lossless = true;
      const auto out = std::to_string(group_size) + "-" + std::to_string(step++);
      CheckpointWriter writer(parent / out, options);
      writer.add("m", last.empty() ? weights : Checkpoint::open(parent / last).read("m"));
      writer.finish();
      last = out;
    }
    const auto first = std::to_string(group_size) + "-0";
    CHECK(read_text(parent / first / "model.safetensors") ==
          read_text(parent / last / "model.safetensors"));
    CHECK(read_text(parent / first / "config.json") == read_text(parent / last / "config.json"));
  }
}

// The safetensors reader refuses what breaks the format and reads everything else; the writer's
// files are read back, appear whole or not at all, and are the same for the same input.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "host/files.hpp"
#include "mpq/checkpoint.hpp"
#include "mpq/error.hpp"
#include "support/catch.hpp"
#include "support/expect_error.hpp"
#include "support/random.hpp"

using namespace mpq;
using namespace mpq::test;

namespace {

/// One tensor's entry in a header.
std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":[)" + shape +
         R"(],"data_offsets":[)" + offsets + "]}";
}

const std::filesystem::path kGolden = kData / "gptq-w4-g128" / "model.safetensors";

/// Opens and touches every byte that the file claims, for the sanitizers.
unsigned read_all(const std::filesystem::path& path) {
  const auto file = SafetensorsFile::open(path);
  unsigned sum = 0;
  for (const auto& each : file.entries()) {
    for (const std::byte byte : file.bytes(each)) sum += static_cast<unsigned>(byte);
  }
  return sum;
}

}  // namespace

TEST_CASE("a golden file is read", "[safetensors]") {
  const auto file = SafetensorsFile::open(kGolden);
  CHECK(file.path() == kGolden);
  CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}});
  REQUIRE(file.entries().size() == 5);
  CHECK(std::is_sorted(file.entries().begin(), file.entries().end(),
                       [](const auto& a, const auto& b) { return a.name < b.name; }));
  const auto* scales = file.find("model.layers.0.mlp.down_proj.scales");
  REQUIRE(scales != nullptr);
  CHECK(scales->type == SafetensorsType::F16);
  CHECK(scales->shape == std::vector<std::int64_t>{2, 128});
  CHECK(file.bytes(*scales).size() == 512);
  CHECK(file.find("scales") == nullptr);
  CHECK(file.find("") == nullptr);
}

TEST_CASE("what the format allows is read", "[safetensors]") {
  const TemporaryDirectory directory;
  const auto path = directory / "a.safetensors";
  const auto count = [&](const std::string& header, std::size_t data) {
    write_text(path, file_bytes(header, std::string(data, 'd')));
    return SafetensorsFile::open(path).entries().size();
  };
  CHECK(count("{}", 0) == 0);
  CHECK(count("{}      ", 0) == 0);
  CHECK(count(R"({"__metadata__":{}})", 0) == 0);
  CHECK(count(R"({"__metadata__":{"a":"b","c":"d\n"}})", 0) == 0);
  // Rank 0, empty, misaligned, listed out of order.
  CHECK(count("{" + entry("scalar", "F32", "", "0,4") + "}", 4) == 1);
  CHECK(count("{" + entry("empty", "F32", "3,0,5", "0,0") + "}", 0) == 1);
  CHECK(count("{" + entry("b", "F32", "2", "1,9") + "," + entry("a", "U8", "1", "0,1") + "," +
                  entry("e", "I64", "0", "1,1") + "," + entry("z", "I64", "0", "9,9") + "}",
              9) == 4);
  // Names as JSON writes them.
  CHECK(count("{" + entry(R"(\u00e4\"\\)", "F32", "1", "0,4") + "}", 4) == 1);
  CHECK(SafetensorsFile::open(path).find("\xc3\xa4\"\\") != nullptr);
  // Every type, and those with fractions of bytes where the whole has none.
  for (const char* type : {"BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "I16", "U16", "F16",
                           "BF16", "I32", "U32", "F32", "F64", "I64", "U64", "C64"}) {
    write_text(path, file_bytes("{" + entry("a", type, "0", "0,0") + "}", ""));
    CHECK(to_string(SafetensorsFile::open(path).entries()[0].type) == std::string(type));
  }
  CHECK(count("{" + entry("a", "F4", "2", "0,1") + "}", 1) == 1);
  CHECK(count("{" + entry("a", "F6_E2M3", "4", "0,3") + "}", 3) == 1);
}

TEST_CASE("what breaks the format is refused, naming it", "[safetensors]") {
  const TemporaryDirectory directory;
  const auto path = directory / "a.safetensors";
  struct Case {
    std::string header;
    std::size_t data;
    const char* words;
  };
  const std::string ok = entry("a", "U8", "4", "0,4");
  const std::vector<Case> cases{
      {"", 0, "does not begin with '{'"},
      {" {}", 0, "does not begin with '{'"},
      {"[]", 0, "does not begin with '{'"},
      {"{", 0, "not JSON"},
      {"{}x", 0, "not JSON"},
      {"{}{}", 0, "not JSON"},
      {std::string("{}\0", 3), 0, "not JSON"},
      {std::string("{}\0garbage", 10), 0, "not JSON"},
      {"{\"a\xff\":{}}", 0, "not JSON"},
      {"{//\n}", 0, "not JSON"},
      {R"({"a":1e999})", 0, "not JSON"},
      {R"({"a":1})", 0, "a number"},
      {R"({"a":null})", 0, "null"},
      {R"({"a":true})", 0, "a boolean"},
      {R"({"a":"b"})", 0, "a string"},
      {R"({"a":[]})", 0, "an array"},
      {R"({"a":{}})", 0, "no dtype"},
      {R"({"a":{"dtype":"U8"}})", 0, "no shape"},
      {R"({"a":{"dtype":"U8","shape":[]}})", 0, "no data_offsets"},
      {R"({"a":{"dtype":"U9","shape":[],"data_offsets":[0,1]}})", 1, "unknown dtype \"U9\""},
      {R"({"a":{"dtype":8,"shape":[],"data_offsets":[0,1]}})", 1, "a number"},
      {R"({"a":{"dtype":"U8","shape":4,"data_offsets":[0,4]}})", 4, "a number"},
      {R"({"a":{"dtype":"U8","shape":[[4]],"data_offsets":[0,4]}})", 4, "an array"},
      {R"({"a":{"dtype":"U8","shape":["4"],"data_offsets":[0,4]}})", 4, "a string"},
      {R"({"a":{"dtype":"U8","shape":[],"data_offsets":{"x":1}}})", 1, "an object"},
      {R"({"a":{"dtype":"U8","shape":[],"data_offsets":[0,1],"x":1}})", 1, "unknown key \"x\""},
      {"{" + entry("a", "U8", "-4", "0,4") + "}", 4, "a negative number"},
      {"{" + entry("a", "U8", "-0", "0,0") + "}", 0, "a negative number"},
      {"{" + entry("a", "U8", "4.0", "0,4") + "}", 4, "a fraction"},
      {"{" + entry("a", "U8", "18446744073709551616", "0,4") + "}", 4, "beyond 64 bits"},
      {"{" + entry("a", "U8", "9223372036854775808", "0,4") + "}", 4, "limit 2^63 - 1"},
      {"{" + entry("a", "U8", "4294967296,4294967296", "0,0") + "}", 0, "no size"},
      {"{" + entry("a", "F32", "4611686018427387904", "0,0") + "}", 0, "no size"},
      {"{" + entry("a", "F4", "3", "0,2") + "}", 2, "whole bytes"},
      {"{" + entry("a", "U8", "4", "0") + "}", 4, "has 1 data_offsets"},
      {"{" + entry("a", "U8", "4", "0,4,4") + "}", 4, "more than 2"},
      {"{" + entry("a", "U8", "4", "-1,3") + "}", 4, "a negative number"},
      {"{" + entry("a", "U8", "4", "4,0") + "}", 4, "data_offsets are [4, 0]"},
      {"{" + entry("a", "U8", "4", "0,3") + "}", 3, "needs 4 bytes"},
      {"{" + entry("a", "U8", "4", "18446744073709551612,18446744073709551616") + "}", 4,
       "beyond 64 bits"},
      {"{" + entry("a", "U8", "3", "18446744073709551612,18446744073709551615") + "}", 4, "a hole"},
      {"{" + ok + "}", 3, "end at data byte 4, the file has 3"},
      {"{" + ok + "}", 5, "end at data byte 4, the file has 5"},
      {"{}", 1, "end at data byte 0, the file has 1"},
      {"{" + entry("a", "U8", "4", "1,5") + "}", 5, "a hole"},
      {"{" + ok + "," + entry("b", "U8", "4", "5,9") + "}", 9, "a hole"},
      {"{" + ok + "," + entry("b", "U8", "4", "2,6") + "}", 6, "overlapping"},
      {"{" + ok + "," + entry("b", "U8", "4", "0,4") + "}", 4, "overlapping"},
      {"{" + ok + "," + entry("b", "U8", "0", "2,2") + "}", 4, "overlapping"},
      {"{" + ok + "," + entry("a", "U8", "4", "4,8") + "}", 8, "tensor \"a\" is twice"},
      {"{" + ok + "," + entry("\\u0061", "U8", "4", "4,8") + "}", 8, "tensor \"a\" is twice"},
      {R"({"a":{"dtype":"U8","dtype":"U8","shape":[],"data_offsets":[0,1]}})", 1,
       "key \"dtype\" is twice"},
      {R"({"a":{"dtype":"U8","shape":[],"shape":[],"data_offsets":[0,1]}})", 1,
       "key \"shape\" is twice"},
      {R"({"a":{"dtype":"U8","shape":[],"data_offsets":[0,1],"data_offsets":[0,1]}})", 1,
       "key \"data_offsets\" is twice"},
      {R"({"__metadata__":{"a":"b","a":"c"}})", 0, "key \"a\" is twice in __metadata__"},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, "\"__metadata__\" is twice"},
      {R"({"__metadata__":{"a":1}})", 0, "\"a\" is a number, not a string"},
      {R"({"__metadata__":{"a":{}}})", 0, "\"a\" is an object, not a string"},
      {R"({"__metadata__":[]})", 0, "__metadata__ is an array"},
      {R"({"__metadata__":null})", 0, "__metadata__ is null"},
      {"{" + entry("new\\nline", "U8", "4", "0,3") + "}", 3, "\"new\\x0aline\""},
  };
  for (const auto& [header, data, words] : cases) {
    INFO(header);
    write_text(path, file_bytes(header, std::string(data, 'd')));
    const auto error = error_of([&] { SafetensorsFile::open(path); });
    REQUIRE(error);
    INFO(error->what());
    CHECK(error->code() == ErrorCode::invalid_file);
    CHECK(std::string(error->what()).find(words) != std::string::npos);
    CHECK(std::string(error->what()).find('\n') == std::string::npos);
    CHECK(std::string(error->what()).starts_with(path.string()));
  }
}

TEST_CASE("header lengths are checked before anything is read", "[safetensors]") {
  const TemporaryDirectory directory;
  const auto path = directory / "a.safetensors";
  const auto with_length = [&](std::uint64_t length) {
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &length, 8);
    write_text(path, bytes + "{}");
  };
  const auto open = [&] { SafetensorsFile::open(path); };
  with_length(3);
  CHECK(refuses(open, ErrorCode::invalid_file, "header length 3", "only 2 bytes"));
  with_length(100'000'000);
  CHECK(refuses(open, ErrorCode::invalid_file, "header length 100000000", "only 2 bytes"));
  with_length(100'000'001);
  CHECK(refuses(open, ErrorCode::invalid_file, "header length 100000001", "limit 100000000"));
  with_length(std::numeric_limits<std::uint64_t>::max());
  CHECK(refuses(open, ErrorCode::invalid_file, "18446744073709551615", "limit"));
  with_length(0);
  CHECK(refuses(open, ErrorCode::invalid_file, "does not begin"));
}

TEST_CASE("a file cut at any byte of its header is refused", "[safetensors]") {
  const TemporaryDirectory directory;
  const auto path = directory / "a.safetensors";
  const std::string whole = read_text(kGolden);
  std::uint64_t length = 0;
  std::memcpy(&length, whole.data(), 8);
  for (std::size_t size = 0; size <= 8 + length + 16; ++size) {
    write_text(path, whole.substr(0, size));
    INFO(size);
    REQUIRE(refuses([&] { SafetensorsFile::open(path); }, ErrorCode::invalid_file, path.string()));
  }
  write_text(path, whole.substr(0, whole.size() - 1));
  CHECK(refuses([&] { SafetensorsFile::open(path); }, ErrorCode::invalid_file, "the file has"));
  write_text(path, whole);
  CHECK(read_all(path) == read_all(kGolden));
}

TEST_CASE("deep nesting and endless shapes cost nothing", "[safetensors]") {
  const TemporaryDirectory directory;
  const auto path = directory / "a.safetensors";
  const std::string deep(100'000, '['), objects = [] {
    std::string text;
    for (int i = 0; i < 100'000; ++i) text += "{\"a\":";
    return text;
  }();
  std::string zeros = "0";
  for (int i = 0; i < 100'000; ++i) zeros += ",0";
  const std::vector<std::string> headers{
      "{\"a\":" + deep,
      "{\"a\":{\"shape\":" + deep,
      "{\"a\":{\"data_offsets\":" + deep,
      "{\"__metadata__\":{\"a\":" + deep,
      objects,
      "{\"__metadata__\":" + objects,
      "{" + entry("a", "U8", zeros, "0,0") + "}",
  };
  for (const auto& header : headers) {
    write_text(path, file_bytes(header, ""));
    CHECK(refuses([&] { SafetensorsFile::open(path); }, ErrorCode::invalid_file));
  }
}

TEST_CASE("changed bytes never crash the reader", "[safetensors]") {
  const TemporaryDirectory directory;
  const auto path = directory / "a.safetensors";
  const std::vector<std::byte> data(24);
  const std::vector<SafetensorsTensor> tensors{
      {"a.scales", SafetensorsType::F16, {2, 3}, std::span(data).first(12)},
      {"a.qweight", SafetensorsType::I32, {3, 2}, data},
      {"a.empty", SafetensorsType::F32, {0, 7}, {}},
      {"a.scalar", SafetensorsType::U8, {}, std::span(data).first(1)}};
  write_safetensors(path, tensors, {{"format", "pt"}});
  const std::string whole = read_text(path);
  const auto header_end = static_cast<std::int64_t>(whole.size()) - 24 - 12 - 1;
  Random random(7);
  // What breaks parsers more often than a random byte does.
  const std::string telling = std::string("\0\"\\{}[],:-+.eE0129nft \xff\x80", 24);
  int refused = 0, read = 0;
  for (int i = 0; i < 6000; ++i) {
    std::string changed = whole;
    for (auto flips = random.integer(1, 3); flips > 0; --flips) {
      const auto at = static_cast<std::size_t>(random.integer(0, header_end - 1));
      const auto pick = static_cast<std::size_t>(
          random.integer(0, static_cast<std::int64_t>(telling.size()) - 1));
      const auto bit = 1 << random.integer(0, 7);
      changed[at] = i % 2 == 0 ? telling[pick] : static_cast<char>(changed[at] ^ bit);
    }
    write_text(path, changed);
    const auto error = error_of([&] { read_all(path); });
    if (error) {
      REQUIRE(error->code() == ErrorCode::invalid_file);
      REQUIRE(std::string(error->what()).find('\n') == std::string::npos);
    }
    ++(error ? refused : read);
  }
  CHECK(refused > 3000);  // the loop does reach the checks,
  CHECK(read > 100);      // and a changed name is still a file
}

TEST_CASE("what is no file is an error of the system", "[safetensors]") {
  const TemporaryDirectory directory;
  const auto refused = [&](const std::filesystem::path& path, const char* words) {
    return refuses([&] { SafetensorsFile::open(path); }, ErrorCode::io_failure, path.string(),
                   words);
  };
  CHECK(refused(directory / "none", "No such file"));
  CHECK(refused(directory.path(), "not a regular file"));
  CHECK(refused("/dev/null", "not a regular file"));
}

TEST_CASE("the writer's files are read back", "[safetensors]") {
  const TemporaryDirectory directory;
  const auto path = directory / "a.safetensors";
  const std::vector<TensorCopy> tensors{
      make_tensor<std::uint8_t>("bytes", SafetensorsType::U8, {3}, {1, 2, 3}),
      make_tensor<float>("scalar", SafetensorsType::F32, {}, {1.5f}),
      make_tensor<std::uint16_t>("half \"\\\n\xc3\xa4", SafetensorsType::BF16, {1, 2}, {7, 8}),
      make_tensor<double>("wide", SafetensorsType::F64, {2}, {-1.0, 1e300}),
      make_tensor<float>("empty", SafetensorsType::F32, {4, 0}, {}),
      make_tensor<std::int32_t>("a", SafetensorsType::I32, {1}, {-1}),
  };
  std::vector<SafetensorsTensor> views;
  for (const auto& t : tensors) views.push_back({t.name, t.type, t.shape, t.bytes});
  const std::map<std::string, std::string> metadata{{"format", "pt"}, {"k", "v\"\n"}};
  write_safetensors(path, views, metadata);

  const std::string bytes = read_text(path);
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  CHECK(length % 8 == 0);
  CHECK(directory.file_count() == 1);

  const auto file = SafetensorsFile::open(path);
  CHECK(file.metadata() == metadata);
  REQUIRE(file.entries().size() == tensors.size());
  for (const auto& tensor : tensors) {
    const auto* found = file.find(tensor.name);
    REQUIRE(found != nullptr);
    CHECK(found->type == tensor.type);
    CHECK(found->shape == tensor.shape);
    const auto data = file.bytes(*found);
    CHECK(std::vector<std::byte>(data.begin(), data.end()) == tensor.bytes);
    CHECK(found->begin % (static_cast<unsigned>(bits_of(found->type)) / 8) == 0);
  }
  // Falling alignment, then names.
  CHECK(file.find("wide")->begin == 0);
  CHECK(file.find("a")->begin == 16);
  CHECK(file.find("bytes")->end == bytes.size() - 8 - length);

  // The order in which tensors are given does not matter, nor whether they come in pieces.
  std::vector<SafetensorsTensor> turned(views.rbegin(), views.rend());
  write_safetensors(directory / "b.safetensors", turned, metadata);
  CHECK(read_text(directory / "b.safetensors") == bytes);
  write_safetensors(
      directory / "c.safetensors", turned,
      [&](std::size_t i, const auto& write) {
        for (const std::byte& byte : turned[i].bytes) write({&byte, 1});
      },
      metadata);
  CHECK(read_text(directory / "c.safetensors") == bytes);
}

TEST_CASE("tensors beyond the writer's buffer are whole", "[safetensors]") {
  const TemporaryDirectory directory;
  std::vector<std::uint32_t> large((3u << 20) / 4 + 5), small(100);
  for (std::size_t i = 0; i < large.size(); ++i) large[i] = static_cast<std::uint32_t>(i * 977);
  write_tensors(
      directory / "a.safetensors",
      {make_tensor("large", SafetensorsType::U32, {static_cast<std::int64_t>(large.size())}, large),
       make_tensor("small", SafetensorsType::U32, {100}, small)});
  auto tensors = read_tensors(directory / "a.safetensors");
  CHECK(tensor_of(tensors, "large").values<std::uint32_t>() == large);
  CHECK(tensor_of(tensors, "small").values<std::uint32_t>() == small);
}

TEST_CASE("the writer refuses what is no file and leaves nothing", "[safetensors]") {
  const TemporaryDirectory directory;
  const auto path = directory / "a.safetensors";
  const std::vector<std::byte> four(4);
  const auto write = [&](const std::vector<SafetensorsTensor>& tensors) {
    return [&, tensors] { write_safetensors(path, tensors); };
  };
  const auto bad = ErrorCode::invalid_argument;
  const SafetensorsTensor ok{"a", SafetensorsType::F32, {1}, four};
  CHECK(refuses(write({ok, ok}), bad, "\"a\" is given twice"));
  CHECK(refuses(write({{"__metadata__", SafetensorsType::F32, {1}, four}}), bad, "__metadata__"));
  CHECK(refuses(write({{"a", SafetensorsType::F32, {2}, four}}), bad, "needs 8 bytes, got 4"));
  CHECK(refuses(write({{"a", SafetensorsType::F32, {-1}, four}}), bad, "no size"));
  CHECK(refuses(write({{"a", SafetensorsType::F4, {3}, four}}), bad, "no size"));
  CHECK(refuses(write({{"\xff", SafetensorsType::F32, {1}, four}}), bad, "UTF-8"));
  CHECK(directory.file_count() == 0);

  // A file that is there stays as it was when a new one fails halfway.
  write({ok})();
  const std::string before = read_text(path);
  CHECK(refuses(
      [&] {
        const std::vector<SafetensorsTensor> two{ok, {"b", SafetensorsType::F32, {1}, {}}};
        write_safetensors(path, two, [&](std::size_t i, const auto& put) {
          if (i == 1) throw Error(ErrorCode::invalid_weights, "halfway");
          put(four);
        });
      },
      ErrorCode::invalid_weights, "halfway"));
  CHECK(read_text(path) == before);
  CHECK(directory.file_count() == 1);
  write({{"b", SafetensorsType::F32, {1}, four}})();
  CHECK(SafetensorsFile::open(path).find("b") != nullptr);

  CHECK(refuses([&] { write_safetensors(directory / "none" / "a", {}); }, ErrorCode::io_failure,
                "No such file"));
  CHECK(refuses([&] { write_safetensors(directory.path(), {}); }, bad, "not a regular file"));
  CHECK(refuses([&] { write_safetensors("/dev/null", {}); }, bad, "not a regular file"));
  CHECK(refuses([&] { write_safetensors("", {}); }, bad, "not a file name"));
  CHECK(directory.file_count() == 1);
}

TEST_CASE("through a link its target is written", "[safetensors]") {
  const TemporaryDirectory directory;
  write_text(directory / "target", "old");
  std::filesystem::create_symlink("target", directory / "link");
  write_safetensors(directory / "link", std::vector<SafetensorsTensor>{});
  CHECK(std::filesystem::is_symlink(directory / "link"));
  CHECK(SafetensorsFile::open(directory / "target").entries().empty());
}

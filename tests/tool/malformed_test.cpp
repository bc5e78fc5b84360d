// Malformed directories: every command refuses them with its code and one line, writes nothing, and
// takes no memory for what a header merely claims.

#include <cstdint>
#include <string>
#include <vector>

#include "host/checkpoint_files.hpp"
#include "support/catch.hpp"
#include "tool/run_tool.hpp"

using namespace mpq;
using namespace mpq::test;

namespace {

struct Malformed {
  std::string what;
  int code;
  std::string file, text;  ///< what of the directory is replaced
};

std::string entry(const std::string& name, const std::string& type, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + type + R"(","shape":[)" + shape +
         R"(],"data_offsets":[)" + offsets + "]}";
}

/// A header with these members and `size` bytes of data.
std::string model(const std::string& members, std::size_t size = 0) {
  return file_bytes("{" + members + "}", std::string(size, '\0'));
}

std::vector<Malformed> malformed_files() {
  const std::string good = read_text(kData / "gptq-w4-g128" / "model.safetensors");
  std::string huge_length = good, long_length = good;
  huge_length.replace(0, 8, std::string(8, '\xff'));
  long_length.replace(0, 8, std::string("\0\xe1\xf5\x05\0\0\0\0", 8));  // 100,000,000
  const std::string m = "model.safetensors", s = "quantize_config.json",
                    i = "model.safetensors.index.json";
  std::vector<Malformed> all{
      {"empty file", 4, m, ""},
      {"cut header length", 4, m, good.substr(0, 5)},
      {"header length of 2^64 - 1", 4, m, huge_length},
      {"header longer than the file", 4, m, long_length},
      {"cut data", 4, m, good.substr(0, good.size() - 1)},
      {"more data", 4, m, good + "x"},
      {"header that is no object", 4, m, file_bytes("[1]     ", "")},
      {"header with a byte before it", 4, m, file_bytes(" {}     ", "")},
      {"header that is no JSON", 4, m, file_bytes("{\"a\":", "")},
      {"key twice", 4, m,
       model(entry("a", "U8", "1", "0,1") + "," + entry("a", "U8", "1", "1,2"), 2)},
      {"hole", 4, m, model(entry("a", "U8", "1", "0,1") + "," + entry("b", "U8", "1", "2,3"), 3)},
      {"overlap", 4, m,
       model(entry("a", "U8", "2", "0,2") + "," + entry("b", "U8", "2", "1,3"), 3)},
      {"data that starts late", 4, m, model(entry("a", "U8", "1", "1,2"), 2)},
      {"offsets backwards", 4, m, model(entry("a", "U8", "1", "1,0"), 1)},
      {"size that is not the shape's", 4, m, model(entry("a", "F32", "2", "0,4"), 4)},
      {"shape that overflows", 4, m,
       model(entry("a", "F32", "4294967296,4294967296,4294967296", "0,0"))},
      {"shape of 2^62 elements", 4, m, model(entry("a", "U8", "4611686018427387904", "0,4"), 4)},
      {"negative extent", 4, m, model(entry("a", "U8", "-1,-1", "0,1"), 1)},
      {"half a byte", 4, m, model(entry("a", "F4", "1", "0,1"), 1)},
      {"unknown type", 4, m, model(entry("a", "I3", "1", "0,1"), 1)},
      {"metadata that is no text", 4, m, model("\"__metadata__\":{\"a\":1}")},
      {"settings that are no JSON", 4, s, "{"},
      {"settings nested too deep", 4, s, std::string(200'000, '[')},
      {"settings with a key twice", 4, s, R"({"bits":4,"bits":4})"},
      {"settings that contradict the tensors", 4, s, R"({"bits":8,"group_size":128})"},
      {"settings with a group size of 0", 4, s, R"({"bits":4,"group_size":0})"},
      {"settings with no bits", 4, s, "{}"},
      {"settings of a format that is not supported", 6, s, R"({"quant_method":"aqlm","bits":4})"},
      {"settings with a width that is not supported", 6, s, R"({"bits":3,"group_size":128})"},
      {"index that leaves the directory", 4, i, R"({"weight_map":{"a":"../model.safetensors"}})"},
      {"index with an absolute name", 4, i, R"({"weight_map":{"a":"/etc/passwd"}})"},
      {"index with a file that is not there", 3, i, R"({"weight_map":{"a":"b.safetensors"}})"},
      {"index with a tensor that is not there", 4, i,
       R"({"weight_map":{"a":"model.safetensors"}})"},
      {"index without a map", 4, i, R"({"metadata":{}})"},
  };
  return all;
}

}  // namespace

TEST_CASE("malformed directories are refused by every command", "[tool][malformed]") {
  for (const auto& [what, code, file, text] : malformed_files()) {
    const TemporaryDirectory directory, output;
    for (const auto& each : std::filesystem::directory_iterator(kData / "gptq-w4-g128")) {
      std::filesystem::copy_file(each.path(), directory.path() / each.path().filename());
    }
    write_text(directory / file, text);
    const std::string in = directory.path().string(), out = (output / "out").string();
    const std::string x = (kData / "gptq-w4-g128" / "expected.safetensors").string();
    for (const std::vector<std::string>& call :
         {std::vector<std::string>{"inspect", in},
          {"verify", in},
          {"dequantize", in, "-o", out},
          {"convert", in, "--to", "gptq_v2", "-o", out},
          {"run", in, "--input", x, "-o", out, "--device", "cpu"}}) {
      INFO(what << ": " << call[0]);
      CHECK(fails(call, code, ""));
      CHECK(output.file_count() == 0);
    }
  }
}

TEST_CASE("a header's claims cost no memory", "[tool][malformed]") {
  // A sparse file of 4 GB whose header claims 100 MB, more than the limit that is set below lets a
  // program have. (Sanitizers need more than that for themselves.)
  const TemporaryDirectory directory;
  std::string bytes(8, '\0');
  const std::uint64_t length = 100'000'000;
  std::memcpy(bytes.data(), &length, 8);
  write_text(directory / "model.safetensors", bytes + "{");
  std::filesystem::resize_file(directory / "model.safetensors", std::uint64_t{4} << 30);
#ifndef __SANITIZE_ADDRESS__
  CHECK(fails({"inspect", directory.path().string()}, 4, "model.safetensors", "ulimit -d 65536; "));
#else
  CHECK(fails({"inspect", directory.path().string()}, 4, "model.safetensors"));
#endif
}

// Any bytes as a safetensors file: an Error of one line, or entries that lie inside the file.

#include <cstdlib>
#include <string>

#include "fuzz/memory_file.hpp"
#include "mpq/checkpoint.hpp"
#include "mpq/error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const mpq::test::MemoryFile input(data, size);
  try {
    const auto file = mpq::SafetensorsFile::open(input.path());
    std::size_t sum = 0;
    unsigned parity = 0;
    for (const auto& entry : file.entries()) {
      const auto bytes = file.bytes(entry);
      sum += bytes.size();
      if (file.find(entry.name) != &entry) std::abort();
      for (const auto byte : bytes) parity ^= std::to_integer<unsigned>(byte);
    }
    if (sum > size || parity > 255) std::abort();
  } catch (const mpq::Error& error) {
    if (std::string(error.what()).find('\n') != std::string::npos) std::abort();
  }
  return 0;
}

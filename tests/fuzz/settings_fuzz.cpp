// Any bytes as a settings file, read by one format's reader: an Error of one line, or settings.

#include <cstdlib>
#include <string>

#include "checkpoint/format.hpp"
#include "fuzz/memory_file.hpp"
#include "mpq/error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const mpq::test::MemoryFile input(data, size);
  try {
    const auto object = mpq::detail::SettingsObject::read(input.path());
    for (const char* layer : {"", "model.layers.0.mlp.down_proj", "lm_head"}) {
      for (const auto& part : {object.object_if("quantization_config"), std::optional(object)}) {
        if (!part) continue;
        mpq::detail::LayerSettings settings;
        mpq::detail::MPQ_FUZZ_READER(*part, layer, settings);
        settings.fill(*part);
      }
    }
  } catch (const mpq::Error& error) {
    if (std::string(error.what()).find('\n') != std::string::npos) std::abort();
  }
  return 0;
}

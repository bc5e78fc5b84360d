#pragma once
// Small checkpoints made in tests: a GPTQ layer of any shape, and goldens with a change.

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "host/files.hpp"
#include "mpq/checkpoint.hpp"
#include "support/random.hpp"

namespace mpq::test {

struct GptqSpec {
  std::string prefix = "model.layers.0.mlp.up_proj";
  std::int64_t k = 64, n = 32, groups = 2;
  int bits = 4;
  std::uint64_t seed = 1;
};

/// qweight, qzeros and scales with random codes; g_idx and bias are for the test to add.
inline std::vector<TensorCopy> gptq_tensors(const GptqSpec& spec) {
  Random random(spec.seed);
  const auto words = [&](std::int64_t count) {
    std::vector<std::uint32_t> out(static_cast<std::size_t>(count));
    for (auto& word : out) word = static_cast<std::uint32_t>(random.bits());
    return out;
  };
  const std::int64_t rows = ceil_div(spec.k * spec.bits, 32);
  const std::int64_t zero_words = ceil_div(spec.n * spec.bits, 32);
  std::vector<std::uint16_t> scales(static_cast<std::size_t>(spec.groups * spec.n));
  for (auto& scale : scales) scale = float_to_f16(static_cast<float>(random.uniform()));
  const std::string dot = spec.prefix.empty() ? "" : ".";
  return {make_tensor(spec.prefix + dot + "qweight", SafetensorsType::I32, {rows, spec.n},
                      words(rows * spec.n)),
          make_tensor(spec.prefix + dot + "qzeros", SafetensorsType::I32, {spec.groups, zero_words},
                      words(spec.groups * zero_words)),
          make_tensor(spec.prefix + dot + "scales", SafetensorsType::F16, {spec.groups, spec.n},
                      scales)};
}

/// Copies a golden checkpoint with changed tensors into `directory`.
inline void copy_golden(const std::filesystem::path& golden, const std::filesystem::path& directory,
                        const std::function<void(std::vector<TensorCopy>&)>& change) {
  auto tensors = read_tensors(golden / "model.safetensors");
  change(tensors);
  write_tensors(directory / "model.safetensors", tensors);
  for (const auto& file : std::filesystem::directory_iterator(golden)) {
    if (file.path().extension() != ".json") continue;
    std::filesystem::copy_file(file.path(), directory / file.path().filename(),
                               std::filesystem::copy_options::overwrite_existing);
  }
}

}  // namespace mpq::test

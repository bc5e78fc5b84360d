// Real checkpoints, from the file to y on the device.

#include "mpq/checkpoint.hpp"

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/reference.hpp"
#include "support/run_linear.hpp"

namespace mpq::test {
namespace {

namespace fs = std::filesystem;

template <class Value>
std::vector<Value> tensor(const SafetensorsFile& file, const char* name) {
  const SafetensorsEntry* entry = file.find(name);
  REQUIRE(entry != nullptr);
  const auto bytes = file.bytes(*entry);
  std::vector<Value> values(bytes.size() / sizeof(Value));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

TEST_CASE("golden checkpoints give their expected y on the device", "[small]") {
  for (const auto& directory : fs::directory_iterator(MPQ_TEST_DATA)) {
    if (!fs::exists(directory.path() / "expected.safetensors")) continue;
    INFO(directory.path().filename().string());
    const auto checkpoint = Checkpoint::open(directory.path());
    const auto expected = SafetensorsFile::open(directory.path() / "expected.safetensors");
    const auto weights = checkpoint.read(checkpoint.layers().at(0).name);
    const auto x = tensor<std::uint16_t>(expected, "x");
    const auto rows = expected.find("x")->shape[0];
    const auto& data = data_of(weights);
    Reference reference = reference_forward(weights, view(x, DType::f16, rows, data.in_features));
    reference.y = tensor<double>(expected, "y");

    AnyLinear linear(weights, Device::cuda(), DType::f16);
    linear.check_parameters();
    linear.prepare_params();
    std::vector<int> kernels = usable_kernels(weights);
    kernels.push_back(-1);
    for (const int kernel : kernels) {
      const auto y = run_linear(linear, x, {.m = rows, .options = {.kernel = kernel}});
      const auto mismatch = find_mismatch(reference, view(y, DType::f16, rows, data.out_features),
                                          /*weights_rounded=*/true);
      if (mismatch) FAIL_CHECK("kernel " << kernel << ": " << *mismatch);
    }
  }
}

}  // namespace
}  // namespace mpq::test

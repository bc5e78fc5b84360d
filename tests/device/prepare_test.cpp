// What prepare_params makes on the device, and what check_parameters refuses there.

#include "mpq/kernels/prepare.hpp"

#include <cuda_runtime_api.h>

#include <array>
#include <limits>
#include <vector>

#include "cuda/cuda_error.hpp"
#include "mpq/pack.hpp"
#include "support/catch.hpp"
#include "support/expect_error.hpp"
#include "support/random.hpp"
#include "support/run_linear.hpp"

namespace mpq::test {
namespace {

template <class Value>
std::vector<Value> download(const TensorView& view) {
  const auto count = static_cast<std::size_t>(view.shape[0] * view.shape[1]);
  std::vector<Value> values(count);
  detail::check_cuda(
      cudaMemcpy(values.data(), view.data, count * sizeof(Value), cudaMemcpyDeviceToHost), "copy");
  return values;
}

TEST_CASE("the device packs codes as the host does", "[small]") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto group_size = GENERATE(-1, 32, 100);  // with 2 bits zeros are in the codes, too
  for (const auto& [k, n] : {std::array<std::int64_t, 2>{64, 64}, {300, 130}, {1000, 65}, {5, 3}}) {
    const auto weights = random_weights({.bits = bits,
                                         .k = k,
                                         .n = n,
                                         .group_size = group_size,
                                         .act_order = group_size == 100,
                                         .seed = 9});
    AnyLinear linear(weights, Device::cuda(), DType::f16);
    linear.prepare_params();
    INFO("w" << bits << " K " << k << " N " << n << " group " << group_size);
    CHECK(download<std::uint32_t>(linear.qweight()) == pack_kernel_layout(weights));
  }
}

TEST_CASE("loaded parameters are as given until they are prepared", "[small]") {
  const auto weights =
      random_weights({.k = 256, .n = 96, .group_size = 64, .bias = true, .seed = 3});
  const WeightsData& data = data_of(weights);
  AnyLinear linear(weights, Device::cuda(), DType::f16);
  CHECK(download<std::uint32_t>(linear.qweight()) == data.qweight);
  CHECK(download<std::uint16_t>(linear.scales()) == data.scales);
  CHECK(download<std::uint16_t>(linear.zeros()) == data.zeros);
  CHECK(download<float>(linear.bias()) == data.bias);
  CHECK(linear.scales().shape == std::array<std::int64_t, 2>{4, 96});
  linear.prepare_params();
  CHECK(linear.prepared());
  linear.prepare_params();  // idempotent
  CHECK(linear.scales().shape == std::array<std::int64_t, 2>{4, 128});
}

TEST_CASE("the memory that preparing takes is told in advance", "[small]") {
  const auto bits = GENERATE(1, 2, 4, 8);
  for (const auto zeros : {ZeroKind::none, ZeroKind::integer, ZeroKind::affine}) {
    const auto weights =
        random_weights({.bits = bits, .k = 1024, .n = 256, .zero_kind = zeros, .seed = 3});
    AnyLinear linear(weights, Device::cuda(), DType::f16);
    const std::size_t told = linear.prepare_bytes();
    linear.prepare_params();
    CHECK(linear.prepare_bytes() == 0);
    std::size_t owned = 0;
    for (const TensorView& view : {linear.qweight(), linear.scales(), linear.zeros()}) {
      const std::size_t element = view.element == ElementType::u8    ? 1
                                  : view.element == ElementType::u16 ? 2
                                                                     : 4;
      owned += static_cast<std::size_t>(view.shape[0] * view.shape[1]) * element;
    }
    // Beside it only where columns and groups of the layout come from, what is found out about
    // scales and zeros, and affine zeros in 16 bits if that is found.
    const std::size_t places = 4 * (1024 + 8);
    const std::size_t found = kernels::kFusedParts * sizeof(kernels::FusedParameters);
    const std::size_t narrow = zeros == ZeroKind::affine ? 2 * 8 * 256 : 0;
    CHECK(told == owned + places + found + narrow);
    CHECK(static_cast<double>(owned) < 1.1 * bits / 8 * 1024 * 256 + 6 * 8 * 256);
  }
}

TEST_CASE("check_parameters names what is not finite", "[small]") {
  const auto zeros = GENERATE(ZeroKind::integer, ZeroKind::affine);
  const auto prepared = GENERATE(false, true);
  auto weights = random_weights(
      {.k = 256, .n = 96, .group_size = 64, .zero_kind = zeros, .bias = true, .seed = 3});
  const auto refused = [&](const char* what) {
    AnyLinear linear(weights, Device::cuda(), DType::f16);
    if (prepared) linear.prepare_params();
    return refuses([&] { linear.check_parameters(); }, ErrorCode::invalid_weights, what, "17");
  };
  SECTION("a scale that is NaN") {
    data_of(weights).scales[2 * 96 + 17] = 0x7e01;
    CHECK(refused("scale of group 2"));
  }
  SECTION("a scale that is infinite") {
    data_of(weights).scales[3 * 96 + 17] = 0xfc00;
    CHECK(refused("scale of group 3"));
  }
  SECTION("a bias that is NaN") {
    data_of(weights).bias[17] = std::numeric_limits<float>::quiet_NaN();
    CHECK(refused("bias"));
  }
  SECTION("an affine zero that is infinite") {
    if (zeros != ZeroKind::affine) return;
    data_of(weights).affine_zeros[96 + 17] = std::numeric_limits<float>::infinity();
    CHECK(refused("zero of group 1"));
  }
  SECTION("nothing") {
    AnyLinear linear(weights, Device::cuda(), DType::f16);
    CHECK_NOTHROW(linear.check_parameters());
  }
}

TEST_CASE("devices that are not there are refused", "[small]") {
  CHECK(refuses([] { Linear<4>({.in_features = 8, .out_features = 8}, Device::cuda(99)); },
                ErrorCode::device_unavailable, "cuda:99"));
  CHECK(refuses([] { Linear<4>({.in_features = 8, .out_features = 8}, Device::cuda(-3)); },
                ErrorCode::device_unavailable, "cuda:"));
  CHECK(refuses([] { DeviceBuffer(Device::cuda(), std::size_t{1} << 50); },
                ErrorCode::device_failure, std::to_string(std::size_t{1} << 50)));
}

}  // namespace
}  // namespace mpq::test

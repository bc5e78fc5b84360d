// The canonical form: what is refused, and double-quantised statistics.

#include "mpq/quantized_weights.hpp"

#include <cmath>
#include <functional>
#include <limits>

#include "mpq/pack.hpp"
#include "support/catch.hpp"
#include "support/expect_error.hpp"
#include "support/random.hpp"

namespace mpq::test {
namespace {

constexpr auto kInvalid = ErrorCode::invalid_weights;
constexpr std::uint16_t kNan = 0x7e00, kInfinity = 0x7c00;  // f16

WeightsData make(ZeroKind kind, bool act_order = false) {
  return data_of(random_weights({.k = 100,
                                 .n = 6,
                                 .group_size = 32,
                                 .zero_kind = kind,
                                 .act_order = act_order,
                                 .bias = true,
                                 .seed = 2}));
}

// Scales 1.5 and zeros 0.25, from codes (3, 1).
WeightsData make_double_quantized(DoubleQuantized::Kind kind, bool per_channel) {
  const bool with_zeros = kind == DoubleQuantized::Kind::scale_and_zero;
  WeightsData data = make(with_zeros ? ZeroKind::affine : ZeroKind::integer);
  const std::size_t parameters = per_channel ? 6 : 4 * 2;
  DoubleQuantized dq;
  dq.kind = kind;
  dq.per_channel = per_channel;
  dq.dq_group_size = 3;
  dq.codes.assign(4 * 6, with_zeros ? 0x31 : 3);
  dq.scale_scales.assign(parameters, float_to_f16(0.5f));
  dq.scale_zeros.assign(parameters, 0);
  if (with_zeros) {
    dq.zero_scales.assign(parameters, float_to_f16(0.5f));
    dq.zero_zeros.assign(parameters, float_to_f16(0.5f));
  }
  data.scales.clear();
  data.affine_zeros.clear();
  data.double_quantized = dq;
  return data;
}

bool refused(WeightsData data, const std::function<void(WeightsData&)>& spoil,
             const std::string& value, const std::string& limit) {
  check_structure(data, 4);
  spoil(data);
  return refuses([&] { check_structure(data, 4); }, kInvalid, value, limit);
}

TEST_CASE("check_structure names the value and the limit") {
  const WeightsData integer = make(ZeroKind::integer), affine = make(ZeroKind::affine),
                    none = make(ZeroKind::none), ordered = make(ZeroKind::integer, true);
  const auto dq = make_double_quantized(DoubleQuantized::Kind::scale_and_zero, false);
  const auto dq_scale = make_double_quantized(DoubleQuantized::Kind::scale, true);
  using D = WeightsData;
  CHECK(refused(
      integer, [](D& d) { d.in_features = 0; }, "in_features is 0", "1 to"));
  CHECK(refused(
      integer, [](D& d) { d.in_features = std::int64_t{1} << 40; }, "1099511627776", "to"));
  CHECK(refused(
      integer, [](D& d) { d.out_features = -1; }, "out_features is -1", "1 to"));
  CHECK(refused(
      integer, [](D& d) { d.group_size = 0; }, "group_size is 0", "-1"));
  CHECK(refused(
      integer, [](D& d) { d.qweight.pop_back(); }, "qweight has 77", "expected 78"));
  CHECK(refused(
      integer, [](D& d) { d.scales.push_back(0); }, "scales has 25", "expected 24"));
  CHECK(refused(
      integer, [](D& d) { d.zeros.clear(); }, "zeros has 0", "expected 24"));
  CHECK(refused(
      integer, [](D& d) { d.zeros[13] = 17; }, "group 2, output channel 1 is 17", "to 16"));
  CHECK(refused(
      integer, [](D& d) { d.affine_zeros = {1}; }, "affine_zeros has 1", "integer"));
  CHECK(refused(
      affine, [](D& d) { d.affine_zeros.pop_back(); }, "affine_zeros has 23", "24"));
  CHECK(refused(
      affine, [](D& d) { d.zeros = {1}; }, "zeros has 1", "affine"));
  CHECK(refused(
      none, [](D& d) { d.zeros = {1}; }, "zeros has 1", "none"));
  CHECK(refused(
      integer, [](D& d) { d.bias.pop_back(); }, "bias has 5", "expected 6"));
  CHECK(refused(
      ordered, [](D& d) { d.g_idx.pop_back(); }, "g_idx has 99", "expected 100"));
  CHECK(refused(
      ordered, [](D& d) { d.g_idx[7] = 4; }, "input feature 7 is 4", "0 to 3"));
  CHECK(refused(
      ordered, [](D& d) { d.g_idx[8] = -1; }, "input feature 8 is -1", "0 to 3"));
  CHECK(refused(
      dq, [](D& d) { d.scales = {1}; }, "scales has 1", "none"));
  CHECK(refused(
      dq, [](D& d) { d.affine_zeros = {1}; }, "affine_zeros has 1", "none"));
  CHECK(refused(
      dq, [](D& d) { d.double_quantized->dq_group_size = 4; }, "dq_group_size is 4",
      "divisor of out_features 6"));
  CHECK(refused(
      dq, [](D& d) { d.double_quantized->dq_group_size = 0; }, "dq_group_size is 0", "6"));
  CHECK(refused(
      dq, [](D& d) { d.double_quantized->codes.pop_back(); }, "codes has 23", "24"));
  CHECK(refused(
      dq, [](D& d) { d.double_quantized->scale_scales.pop_back(); }, "has 7", "8"));
  CHECK(refused(
      dq, [](D& d) { d.double_quantized->zero_zeros.clear(); }, "has 0", "8"));
  CHECK(refused(
      dq, [](D& d) { d.zero_kind = ZeroKind::none; }, "affine", "not none"));
  CHECK(refused(
      dq_scale, [](D& d) { d.double_quantized->zero_scales = {1}; }, "has 1", "0"));
  CHECK(refused(
      dq_scale, [](D& d) { d.double_quantized->scale_zeros.pop_back(); }, "has 5", "6"));
  CHECK(refuses([&] { check_structure(integer, 3); }, kInvalid, "bits is 3"));
}

TEST_CASE("check_values names the first value that is not finite") {
  WeightsData data = make(ZeroKind::affine);
  check_values(data, 4);
  const auto refused_value = [&](const char* name, const char* place, const char* value) {
    return refuses([&] { check_values(data, 4); }, kInvalid, name, place, value);
  };
  data.bias[3] = std::numeric_limits<float>::infinity();
  CHECK(refused_value("bias", "channel 3", "inf"));
  data.affine_zeros[8] = std::numeric_limits<float>::quiet_NaN();
  CHECK(refused_value("zero", "group 1, output channel 2", "nan"));
  data.scales[20] = kNan;
  CHECK(refused_value("scale", "group 3, output channel 2", "nan"));
  data.scales[5] = kInfinity;
  CHECK(refused_value("scale", "group 0, output channel 5", "inf"));

  data = make_double_quantized(DoubleQuantized::Kind::scale_and_zero, false);
  check_values(data, 4);
  data.double_quantized->scale_scales[3] = float_to_f16(60000.f);
  CHECK(refused_value("decompressed scale", "group 1, output channel 3", "inf"));
  data.double_quantized->zero_zeros[5] = kNan;
  CHECK(refused_value("zero_zeros", "group 2, channel group 1", "nan"));
}

TEST_CASE("decompress rounds every operation to the layer's type") {
  const auto per_channel = GENERATE(false, true);
  WeightsData data = make_double_quantized(DoubleQuantized::Kind::scale_and_zero, per_channel);
  // 3 - 0.1 and its product with 0.3 are not f16 values: each is rounded.
  const std::uint16_t zero = float_to_f16(0.1f), scale = float_to_f16(0.3f);
  data.double_quantized->scale_zeros[1] = zero;
  data.double_quantized->scale_scales[1] = scale;
  const AnyQuantizedWeights compressed = make_quantized_weights(4, data);
  decompress(data);
  CHECK_FALSE(data.double_quantized);
  REQUIRE(data.scales.size() == 24);
  REQUIRE(data.affine_zeros.size() == 24);
  const auto difference = float_to_f16(3.f - f16_to_float(zero));
  const auto product = float_to_f16(f16_to_float(difference) * f16_to_float(scale));
  for (std::size_t g = 0; g < 4; ++g) {
    for (std::size_t n = 0; n < 6; ++n) {
      const bool other = per_channel ? n == 1 : g == 0 && n >= 3;
      CHECK(data.scales[g * 6 + n] == (other ? product : float_to_f16(1.5f)));
      CHECK(data.affine_zeros[g * 6 + n] == -0.25f);
    }
  }
  check_structure(data, 4);
  CHECK(dequantize(compressed) == dequantize(make_quantized_weights(4, data)));

  WeightsData scales_only = make_double_quantized(DoubleQuantized::Kind::scale, per_channel);
  const auto zeros = scales_only.zeros;
  decompress(scales_only);
  check_structure(scales_only, 4);
  CHECK(scales_only.scales == std::vector<std::uint16_t>(24, float_to_f16(1.5f)));
  CHECK(scales_only.zeros == zeros);
}

TEST_CASE("make_quantized_weights chooses the width") {
  for (const int bits : {1, 2, 4, 8}) {
    CHECK(bits_of(make_quantized_weights(bits, {})) == bits);
  }
  CHECK(refuses([] { make_quantized_weights(3, {}); }, ErrorCode::unsupported, "3 bits"));
}

}  // namespace
}  // namespace mpq::test

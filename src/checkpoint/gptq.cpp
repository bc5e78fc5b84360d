// GPTQ (AutoGPTQ, GPTQModel, bitorch-engine's MPQ layer without GBA), versions 1 and 2.
//
//   qweight I32 [ceil(K*b/32), N]  the canonical order      scales [G, N]      bias [N], optional
//   qzeros  I32 [G, ceil(N*b/32)]  packed along N           g_idx I32 [K], optional
//
// w = s * (q - z), with z the stored code + 1 in version 1 and the stored code in version 2. Policy
// for version 1: always stored + 1, not masked, so z is in [1, 2^b]. Some files say "gptq" and hold
// version 2 zeros (0x88888888 where version 1 has 0x77777777); nothing in the tensors proves it, so
// it is for the caller to say, with the format "gptq_v2".

#include <array>

#include "checkpoint/format.hpp"
#include "checkpoint/packed_layer.hpp"

namespace mpq::detail {

namespace {

using namespace std::string_view_literals;

constexpr std::array kMarks{"qweight"sv, "qzeros"sv};

bool claims_v1(const LayerTensors& tensors) {
  return !tensors.has("qstatistic") && !tensors.has("qscales");
}

// Names and shapes are those of version 1: only a setting tells them apart.
bool claims_v2(const LayerTensors&) {
  return false;
}

LayerInfo inspect(const LayerTensors& tensors, const LayerSettings& settings) {
  const Tensor& scales = tensors.get("scales").of_rank(2, "groups, out_features");
  LayerInfo info = inspect_packed(tensors, settings, scales);
  scales.of_shape({groups_of(info), info.out_features}, "groups, out_features");
  inspect_qzeros(tensors, info);
  info.zero_kind = ZeroKind::integer;
  info.dtype = scales.exact_dtype();
  return info;
}

template <unsigned kZeroOffset>
WeightsData decode(const LayerTensors& tensors, const LayerInfo& info) {
  WeightsData data = decode_packed(tensors, info);
  data.scales = tensors.get("scales").halves(info.dtype);
  data.zeros = decode_qzeros(tensors, info, kZeroOffset);
  return data;
}

}  // namespace

constinit const Format kGptq{"gptq", kMarks, claims_v1, inspect, decode<1>};
constinit const Format kGptqV2{"gptq_v2", kMarks, claims_v2, inspect, decode<0>};

}  // namespace mpq::detail

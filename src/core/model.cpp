#include "mpq/model.hpp"

#include "core/format.hpp"
#include "mpq/error.hpp"

namespace mpq {
namespace {

AnyLinear::Variant make_linear(int bits, const LinearConfig& config, Device device) {
  switch (bits) {
    case 1:
      return Linear<1>(config, device);
    case 2:
      return Linear<2>(config, device);
    case 4:
      return Linear<4>(config, device);
    case 8:
      return Linear<8>(config, device);
    default:
      break;
  }
  throw Error(ErrorCode::unsupported, detail::format("w_bit is {}, must be 1, 2, 4 or 8", bits));
}

}  // namespace

AnyLinear::AnyLinear(int bits, const LinearConfig& config, Device device)
    : linear_(make_linear(bits, config, device)) {}

AnyLinear::AnyLinear(const AnyQuantizedWeights& weights, Device device, DType dtype,
                     StreamRef stream)
    : AnyLinear(bits_of(weights), config_of(data_of(weights), dtype), device) {
  load(weights, stream);
}

void AnyLinear::load(const AnyQuantizedWeights& weights, StreamRef stream) {
  std::visit(
      [&](auto& linear) {
        using Weights = QuantizedWeights<std::remove_reference_t<decltype(linear)>::w_bit>;
        const Weights* same = std::get_if<Weights>(&weights);
        if (same == nullptr) {
          throw Error(ErrorCode::invalid_argument,
                      detail::format("load: the weights have {} bits, the layer has {}",
                                     bits_of(weights), linear.w_bit));
        }
        linear.load(*same, stream);
      },
      linear_);
}

}  // namespace mpq

#include "device.hpp"

#include <fmt/format.h>

#include <charconv>

#include "mpq/column_order.hpp"
#include "mpq/error.hpp"
#include "mpq/layout.hpp"
#include "mpq/plan.hpp"

namespace mpq::tool {

Device parse_device(const std::string& text) {
  if (text == "auto") return Device::best();
  if (text == "cpu") return Device::cpu();
  if (text == "cuda") return Device::cuda(0);
  const std::string_view prefix = "cuda:";
  if (text.starts_with(prefix)) {
    int index = -1;
    const char* end = text.data() + text.size();
    const auto [at, error] = std::from_chars(text.data() + prefix.size(), end, index);
    if (error == std::errc() && at == end && index >= 0) return Device::cuda(index);
  }
  throw Error(ErrorCode::invalid_argument,
              fmt::format("--device is \"{}\", expected {}", text, kDeviceHelp));
}

PlannedDevice::PlannedDevice() {
  if (Device::cuda_count() > 0) {
    traits = traits_of(Device::cuda(0));
    name = name_of(Device::cuda(0));
  } else {
    name =
        fmt::format("compute capability {}.{} with {} SMs, assumed", traits.compute_capability / 10,
                    traits.compute_capability % 10, traits.sm_count);
  }
}

std::string kernel_text(const LayerInfo& layer, std::int64_t batch, const DeviceTraits& traits) {
  // The members of groups in act-order only need to be counted, and there are as many as usual.
  const ColumnOrder order = order_columns(layer.bits, layer.in_features, layer.group_size, {});
  Problem problem;
  problem.bits = layer.bits;
  problem.dtype = layer.dtype;
  problem.m = batch;
  problem.n = layer.out_features;
  problem.k = layer.in_features;
  problem.n_padded = round_up(layer.out_features, layout_align_n(layer.bits));
  problem.k_padded = order.k_padded;
  problem.group_columns = order.group_columns;
  problem.gathers = order.gathers() || layer.act_order;
  return to_string(plan(problem, traits));
}

}  // namespace mpq::tool

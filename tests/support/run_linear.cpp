#include "support/run_linear.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "mpq/column_order.hpp"

namespace mpq::test {
namespace {

constexpr std::uint16_t kPoison = 0xfffb;  // a NaN of both types that no kernel computes

}  // namespace

std::vector<std::uint16_t> run_linear(const AnyLinear& linear, const std::vector<std::uint16_t>& x,
                                      const RunSpec& spec) {
  const auto& config = linear.config();
  const std::int64_t m = spec.m, k = config.in_features, n = config.out_features;
  const std::int64_t ldx = k + spec.x_padding, ldy = n + spec.y_padding;
  const Device device = linear.device();

  // x, with poison between its rows: nothing there may be used.
  std::vector<std::uint16_t> x_memory(static_cast<std::size_t>(spec.x_offset + m * ldx + 8),
                                      kPoison);
  for (std::int64_t row = 0; row < m; ++row) {
    std::copy_n(x.begin() + row * k, k, x_memory.begin() + spec.x_offset + row * ldx);
  }
  const std::vector<std::uint16_t> poison(static_cast<std::size_t>(spec.y_offset + m * ldy + 8),
                                          kPoison);
  DeviceBuffer x_buffer(device, x_memory.size() * 2), y_buffer(device, poison.size() * 2);
  x_buffer.copy_from_host(x_memory.data(), x_memory.size() * 2);
  y_buffer.copy_from_host(poison.data(), poison.size() * 2);
  const DeviceBuffer workspace(device, linear.workspace_bytes(m));

  linear.forward(
      {static_cast<std::uint16_t*>(x_buffer.data()) + spec.x_offset, config.dtype, m, k, ldx},
      {static_cast<std::uint16_t*>(y_buffer.data()) + spec.y_offset, config.dtype, m, n, ldy},
      workspace, spec.options, {});
  std::vector<std::uint16_t> y_memory(poison.size());
  y_buffer.copy_to_host(y_memory.data(), y_memory.size() * 2);

  std::vector<std::uint16_t> y;
  y.reserve(static_cast<std::size_t>(m * n));
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(y_memory.size()); ++i) {
    const std::int64_t at = i - spec.y_offset;
    const bool inside = at >= 0 && at < m * ldy && at % ldy < n;
    const std::uint16_t value = y_memory[static_cast<std::size_t>(i)];
    if (inside) y.push_back(value);
    if (inside == (value == kPoison)) {
      throw std::runtime_error(fmt::format(
          "y {} at element {} (offset {}, ldy {}, {} columns, {} rows)",
          inside ? "was not written" : "was written outside", i, spec.y_offset, ldy, n, m));
    }
  }
  return y;
}

AnyLinear prepared(const AnyQuantizedWeights& weights, DType dtype, const PrepareOptions& options) {
  AnyLinear linear(weights, Device::cuda(), dtype);
  linear.prepare_params(options, {});
  return linear;
}

bool is_slow() {
  return traits_of(Device::cuda()).sm_count < 16;
}

std::vector<int> usable_kernels(const AnyQuantizedWeights& weights) {
  const DeviceTraits device = traits_of(Device::cuda());
  const WeightsData& data = data_of(weights);
  const int bits = bits_of(weights);
  const ColumnOrder order = order_columns(bits, data.in_features, data.group_size, data.g_idx);
  std::vector<int> rows;
  for (int row = 0; row < kKernelCount; ++row) {
    const KernelConfig& config = kKernelTable[static_cast<std::size_t>(row)];
    if (is_available(config, bits, device) && takes_groups(config, order.group_columns)) {
      rows.push_back(row);
    }
  }
  return rows;
}

bool splits_k(int kernel) {
  return kKernelTable[static_cast<std::size_t>(kernel)].family == KernelFamily::decode &&
         runs_sm90a_code(traits_of(Device::cuda()));
}

}  // namespace mpq::test

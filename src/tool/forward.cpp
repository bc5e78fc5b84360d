#include "forward.hpp"

#include <fmt/format.h>

#include "mpq/model.hpp"

namespace mpq::tool {

ForwardResult forward(const AnyQuantizedWeights& weights, Device device, DType dtype,
                      const std::vector<std::uint16_t>& x, std::int64_t rows) {
  const WeightsData& data = data_of(weights);
  AnyLinear linear(weights, device, dtype);
  linear.check_parameters();
  linear.prepare_params();
  ForwardResult result{
      std::vector<std::uint16_t>(static_cast<std::size_t>(rows * data.out_features)),
      linear.describe(rows)};
  if (rows == 0) return result;
  DeviceBuffer x_device(device, 2 * x.size()), y_device(device, 2 * result.y.size());
  const DeviceBuffer workspace(device, linear.workspace_bytes(rows));
  x_device.copy_from_host(x.data(), 2 * x.size());
  linear.forward({x_device.data(), dtype, rows, data.in_features},
                 {y_device.data(), dtype, rows, data.out_features}, workspace);
  y_device.copy_to_host(result.y.data(), 2 * result.y.size());
  return result;
}

ForwardResult forward(const MixedWeights& weights, Device device, DType dtype,
                      const std::vector<std::uint16_t>& x, std::int64_t rows) {
  const auto k = static_cast<std::size_t>(weights.in_features);
  std::vector<double> sums(static_cast<std::size_t>(rows * weights.out_features));
  ForwardResult result;
  for (const MixedPiece& piece : pieces_of(weights)) {
    std::vector<std::uint16_t> columns;
    for (std::size_t row = 0; row < static_cast<std::size_t>(rows); ++row) {
      for (const auto feature : piece.features) {
        const auto at = static_cast<std::size_t>(feature);
        const std::uint16_t value = x[row * k + at];
        columns.push_back(
            weights.channel_scale.empty()
                ? value
                : from_float(to_float(value, dtype) * weights.channel_scale[at], dtype));
      }
    }
    const auto part = forward(piece.weights, device, dtype, columns, rows);
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += to_float(part.y[i], dtype);
    result.kernel += fmt::format("{}{} bits: {}", result.kernel.empty() ? "" : "; ",
                                 bits_of(piece.weights), part.kernel);
  }
  for (const double sum : sums) result.y.push_back(from_float(static_cast<float>(sum), dtype));
  return result;
}

}  // namespace mpq::tool

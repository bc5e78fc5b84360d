#include "verify.hpp"

#include <algorithm>
#include <limits>
#include <random>

namespace mpq::bench {
namespace {

template <class T>
std::size_t bytes_in(const std::vector<T>& values) {
  return values.size() * sizeof(T);
}

// [0, first) and `more` random ones of [first, count), ascending and distinct.
std::vector<std::int64_t> sample_indices(std::int64_t count, std::int64_t first, std::int64_t more,
                                         std::mt19937_64& random) {
  std::vector<std::int64_t> indices;
  for (std::int64_t i = 0; i < std::min(first, count); ++i) indices.push_back(i);
  const std::int64_t rest = count - static_cast<std::int64_t>(indices.size());
  if (rest <= more) {
    for (std::int64_t i = count - rest; i < count; ++i) indices.push_back(i);
    return indices;
  }
  std::uniform_int_distribution<std::int64_t> later(first, count - 1);
  const std::size_t wanted = indices.size() + static_cast<std::size_t>(more);
  while (indices.size() < wanted) {
    const std::int64_t index = later(random);
    if (std::find(indices.begin(), indices.end(), index) == indices.end()) {
      indices.push_back(index);
    }
  }
  std::sort(indices.begin(), indices.end());
  return indices;
}

}  // namespace

Verifier::Verifier(const AnyQuantizedWeights& weights, const Stream& stream) : stream_(stream) {
  // Statistics decoded, the codes left where they are.
  WeightsData plain;
  const WeightsData& given = data_of(weights);
  if (given.double_quantized) plain = given, decompress(plain);
  const WeightsData& w = given.double_quantized ? plain : given;
  weights_ = {.qweight = upload(w.qweight),
              .scales = upload(w.scales),
              .zeros = upload(w.zeros),
              .affine_zeros = upload(w.affine_zeros),
              .g_idx = upload(w.g_idx),
              .bias = upload(w.bias),
              .k = w.in_features,
              .n = w.out_features,
              .bits = mpq::bits_of(weights),
              .group_size = w.group_size,
              .zero_kind = w.zero_kind,
              .scale_dtype = w.dtype};
}

template <class T>
const T* Verifier::upload(const std::vector<T>& values) {
  if (values.empty()) return nullptr;
  DeviceArray array(bytes_in(values));
  check(cudaMemcpyAsync(array.data(), values.data(), bytes_in(values), cudaMemcpyHostToDevice,
                        stream_.get()));
  stream_.synchronize();
  const T* data = array.data<T>();
  memory_.push_back(std::move(array));
  return data;
}

double Verifier::max_error(const void* x, const void* y, std::int64_t m, DType dtype,
                           bool rounds_weights) const {
  std::mt19937_64 random(static_cast<std::uint64_t>(m) * 1'000'003 +
                         static_cast<std::uint64_t>(weights_.n));
  const std::vector<std::int64_t> rows = sample_indices(m, 16, 16, random);
  std::vector<std::int64_t> channels = sample_indices(weights_.n, 1, 64, random);
  if (channels.back() != weights_.n - 1) channels.push_back(weights_.n - 1);

  std::vector<std::int64_t> indices = rows;
  indices.insert(indices.end(), channels.begin(), channels.end());
  DeviceArray device_indices(bytes_in(indices));
  std::vector<double> ratios(rows.size() * channels.size());
  DeviceArray device_ratios(bytes_in(ratios));
  check(cudaMemcpyAsync(device_indices.data(), indices.data(), bytes_in(indices),
                        cudaMemcpyHostToDevice, stream_.get()));
  const Sample sample{.rows = device_indices.data<std::int64_t>(),
                      .channels = device_indices.data<std::int64_t>() + rows.size(),
                      .row_count = static_cast<int>(rows.size()),
                      .channel_count = static_cast<int>(channels.size())};
  const double rounding = !rounds_weights ? 0.0 : dtype == DType::f16 ? 0x1p-11 : 0x1p-8;
  compare_with_reference(weights_, x, y, dtype, sample, {0x1p-18 + rounding},
                         device_ratios.data<double>(), stream_.get());
  check(cudaMemcpyAsync(ratios.data(), device_ratios.data(), bytes_in(ratios),
                        cudaMemcpyDeviceToHost, stream_.get()));
  stream_.synchronize();
  double largest = 0;
  for (const double ratio : ratios) {
    // NaN (which no comparison finds) is as wrong as infinity.
    largest = ratio <= largest  ? largest
              : ratio > largest ? ratio
                                : std::numeric_limits<double>::infinity();
  }
  return largest;
}

void poison(void* y, std::int64_t count, const Stream& stream) {
  check(cudaMemsetAsync(y, kPoisonByte, 2 * static_cast<std::size_t>(count + kGuardElements),
                        stream.get()));
}

void ResultScanner::reset(std::size_t slots) {
  count_ = slots;
  slots_.reserve(slots * sizeof(ScanResult));
  check(cudaMemsetAsync(slots_.data(), 0, slots * sizeof(ScanResult), stream_.get()));
}

void ResultScanner::add(std::size_t slot, const void* y, std::int64_t count, DType dtype) {
  scan(y, count, kGuardElements, dtype, slots_.data<ScanResult>() + slot, stream_.get());
}

std::vector<ScanResult> ResultScanner::results() const {
  std::vector<ScanResult> results(count_);
  check(cudaMemcpyAsync(results.data(), slots_.data(), count_ * sizeof(ScanResult),
                        cudaMemcpyDeviceToHost, stream_.get()));
  stream_.synchronize();
  return results;
}

}  // namespace mpq::bench

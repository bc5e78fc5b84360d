#include "core/group_quantizer.hpp"

#include <cmath>
#include <limits>

#include "core/format.hpp"
#include "mpq/error.hpp"

namespace mpq::detail {

namespace {

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ErrorCode::invalid_argument, detail::format(format, std::forward<Args>(args)...));
}

}  // namespace

void check_options(const QuantizeOptions& options) {
  if (!is_supported_bits(options.bits)) {
    refuse("bits is {}, expected 1, 2, 4 or 8", options.bits);
  }
  if (options.group_size < 1 && options.group_size != -1) {
    refuse("group_size is {}, expected -1 or at least 1", options.group_size);
  }
  if (options.symmetric && options.method == QuantizeMethod::half_quadratic) {
    refuse("half-quadratic optimisation is of the zero, which symmetric weights do not have");
  }
  if (options.float_zeros && options.method != QuantizeMethod::half_quadratic) {
    refuse("float_zeros come from half-quadratic optimisation only");
  }
}

void check_weight(std::span<const float> weight, std::int64_t n, std::int64_t k) {
  constexpr std::int64_t kMaxExtent = std::numeric_limits<std::int32_t>::max();
  if (n < 1 || k < 1 || n > kMaxExtent || k > kMaxExtent) {
    refuse("weight is [{}, {}], expected 1 to {} each", n, k, kMaxExtent);
  }
  if (weight.size() != static_cast<std::size_t>(n * k)) {
    refuse("weight has {} values, expected {} = {} x {}", weight.size(), n * k, n, k);
  }
}

void check_finite(std::span<const float> row, std::int64_t channel) {
  for (std::size_t i = 0; i < row.size(); ++i) {
    if (!std::isfinite(row[i])) {
      refuse("weight of output channel {}, input feature {} is {}, expected a finite value",
             channel, i, row[i]);
    }
  }
}

void refuse_scale(std::int64_t channel, std::int64_t group, DType dtype) {
  refuse("weights of output channel {}, group {} need a scale that {} cannot hold", channel, group,
         to_string(dtype));
}

WeightsData begin_weights(std::int64_t n, std::int64_t k, const QuantizeOptions& options) {
  WeightsData data;
  data.in_features = k;
  data.out_features = n;
  data.group_size = options.group_size;
  data.dtype = options.scale_dtype;
  data.zero_kind = options.symmetric     ? ZeroKind::none
                   : options.float_zeros ? ZeroKind::affine
                                         : ZeroKind::integer;
  data.scales.resize(static_cast<std::size_t>(data.groups() * n));
  if (data.zero_kind == ZeroKind::integer) data.zeros.resize(data.scales.size());
  if (data.zero_kind == ZeroKind::affine) data.affine_zeros.resize(data.scales.size());
  return data;
}

void store_group(WeightsData& data, std::size_t at, const GroupQuantizer& quantizer) {
  data.scales[at] = from_float(quantizer.scale, data.dtype);
  if (data.zero_kind == ZeroKind::integer) {
    data.zeros[at] = static_cast<std::uint16_t>(quantizer.zero);
  } else if (data.zero_kind == ZeroKind::affine) {
    data.affine_zeros[at] = -quantizer.scale * quantizer.zero;
  }
}

}  // namespace mpq::detail

// GPTQ. With H the damped Hessian in the order of quantisation and U upper triangular, U^T U =
// H^-1: when feature i is rounded, the best change of the features j > i that makes up for its
// error e = (w_i - w'_i) / U_ii is w_j -= e * U_ij. Output channels do not touch each other.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/format.hpp"
#include "core/group_quantizer.hpp"
#include "cpu/thread_pool.hpp"
#include "mpq/error.hpp"
#include "mpq/pack.hpp"
#include "mpq/quantize.hpp"

namespace mpq {
namespace {

using detail::GroupQuantizer;
using detail::Range;

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ErrorCode::invalid_argument, detail::format(format, std::forward<Args>(args)...));
}

/// Several sums, since compilers may not reorder the additions of one.
double dot(const double* a, const double* b, std::int64_t count) {
  constexpr int kSums = 16;
  double sums[kSums] = {};
  std::int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
    for (int j = 0; j < kSums; ++j) sums[j] += a[i + j] * b[i + j];
  }
  double sum = 0;
  for (const double each : sums) sum += each;
  for (; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

/// A square matrix, row-major.
struct Square {
  std::int64_t size;
  std::vector<double> values;

  explicit Square(std::int64_t size_) : size(size_) {
    values.resize(static_cast<std::size_t>(size * size));
  }
  double* row(std::int64_t i) { return values.data() + i * size; }
  const double* row(std::int64_t i) const { return values.data() + i * size; }
};

/// The lower triangle L of a = L L^T in place, in strips of columns.
void cholesky(Square& a) {
  constexpr std::int64_t kStrip = 64;
  for (std::int64_t first = 0; first < a.size; first += kStrip) {
    const std::int64_t last = std::min(a.size, first + kStrip);
    // What the columns before the strip say of it.
    detail::parallel_for(a.size - first, 8, [&](Range range) {
      for (std::int64_t i = first + range.begin; i < first + range.end; ++i) {
        for (std::int64_t j = first; j < std::min(last, i + 1); ++j) {
          a.row(i)[j] -= dot(a.row(i), a.row(j), first);
        }
      }
    });
    for (std::int64_t i = first; i < last; ++i) {
      for (std::int64_t j = first; j <= i; ++j) {
        const double rest = a.row(i)[j] - dot(a.row(i) + first, a.row(j) + first, j - first);
        if (i == j && !(rest > 0)) {
          refuse("the Hessian is not positive definite at feature {}: use more damping", i);
        }
        a.row(i)[j] = i == j ? std::sqrt(rest) : rest / a.row(j)[j];
      }
    }
    detail::parallel_for(a.size - last, 8, [&](Range range) {
      for (std::int64_t i = last + range.begin; i < last + range.end; ++i) {
        for (std::int64_t j = first; j < last; ++j) {
          const double rest = a.row(i)[j] - dot(a.row(i) + first, a.row(j) + first, j - first);
          a.row(i)[j] = rest / a.row(j)[j];
        }
      }
    });
  }
}

/// L^-1 of a lower triangle: X_i = (e_i - sum over j < i of L_ij X_j) / L_ii, columns independent.
Square lower_inverse(const Square& l) {
  Square x(l.size);
  constexpr std::int64_t kColumns = 64;
  detail::parallel_for(ceil_div(l.size, kColumns), 1, [&](Range range) {
    for (std::int64_t strip = range.begin; strip < range.end; ++strip) {
      const std::int64_t first = strip * kColumns, last = std::min(l.size, first + kColumns);
      for (std::int64_t i = first; i < l.size; ++i) {
        double* target = x.row(i);
        if (i < last) target[i] = 1;
        for (std::int64_t j = first; j < i; ++j) {
          const double factor = l.row(i)[j];
          const double* source = x.row(j);
          for (std::int64_t c = first; c < last; ++c) target[c] -= factor * source[c];
        }
        for (std::int64_t c = first; c < last; ++c) target[c] /= l.row(i)[i];
      }
    }
  });
  return x;
}

/// U [K, K], float32, for features in the order `order`. One factorisation does: with J the
/// reversal of an order, J H J = L L^T gives H = R R^T with R = J L J upper, and U = R^-1.
std::vector<float> update_factors(const Hessian& hessian, const std::vector<std::int32_t>& order,
                                  double damping) {
  const std::int64_t k = hessian.in_features();
  const auto h = hessian.matrix();
  double mean = 0;
  for (std::int64_t i = 0; i < k; ++i) mean += h[static_cast<std::size_t>(i * k + i)];
  mean /= static_cast<double>(k);
  const double added = mean > 0 ? damping * mean : 1;
  Square reversed(k);
  for (std::int64_t i = 0; i < k; ++i) {
    const std::int64_t row = order[static_cast<std::size_t>(k - 1 - i)];
    for (std::int64_t j = 0; j < k; ++j) {
      const std::int64_t column = order[static_cast<std::size_t>(k - 1 - j)];
      reversed.row(i)[j] = h[static_cast<std::size_t>(row * k + column)];
    }
    reversed.row(i)[i] += added;
  }
  cholesky(reversed);
  const Square inverse = lower_inverse(reversed);
  std::vector<float> u(static_cast<std::size_t>(k * k));
  for (std::int64_t i = 0; i < k; ++i) {
    for (std::int64_t j = i; j < k; ++j) {
      u[static_cast<std::size_t>(i * k + j)] =
          static_cast<float>(inverse.row(k - 1 - i)[k - 1 - j]);
    }
  }
  return u;
}

std::vector<std::int32_t> quantization_order(const Hessian& hessian, bool act_order) {
  const std::int64_t k = hessian.in_features();
  std::vector<std::int32_t> order(static_cast<std::size_t>(k));
  std::iota(order.begin(), order.end(), 0);
  if (act_order) {
    const auto energy = [&](std::int32_t i) {
      return hessian.matrix()[static_cast<std::size_t>(i * k + i)];
    };
    std::ranges::stable_sort(order, [&](auto a, auto b) { return energy(a) > energy(b); });
  }
  return order;
}

/// What all channels share.
struct Job {
  std::span<const float> weight;  ///< [n, k]
  std::int64_t n, k;
  detail::Grouping grouping;
  const GptqOptions& options;
  std::vector<std::int32_t> order;  ///< feature at each place of the order of quantisation
  std::vector<float> u;
  WeightsData data;
  std::vector<std::uint8_t> codes;  ///< [k, n]

  bool groups_are_static() const { return !options.act_order || options.static_groups; }
  /// Of the place in the order, or of the feature there.
  std::int64_t group_at(std::int64_t place) const {
    return (groups_are_static() ? order[static_cast<std::size_t>(place)] : place) / grouping.size;
  }
};

// Channels that a thread takes together: each row of U is then read once for all of them.
constexpr std::int64_t kChannels = 16;

/// Channels [first, first + channels).
class ChannelBlock {
 public:
  ChannelBlock(Job& job, std::int64_t first, std::int64_t channels)
      : job_(job), first_(first), channels_(channels) {
    weights_.resize(static_cast<std::size_t>(channels * job.k));
    for (std::int64_t c = 0; c < channels; ++c) {
      const auto row = job.weight.subspan(static_cast<std::size_t>((first + c) * job.k),
                                          static_cast<std::size_t>(job.k));
      detail::check_finite(row, first + c);
      for (std::int64_t i = 0; i < job.k; ++i) {
        place(c, i) = row[static_cast<std::size_t>(job.order[static_cast<std::size_t>(i)])];
      }
    }
    quantizers_.resize(static_cast<std::size_t>(channels * job.grouping.count));
    scratch_.resize(static_cast<std::size_t>(std::min(job.grouping.size, job.k)));
    // Out of their order, groups' members are only all at hand before anything has changed.
    if (job.options.act_order && job.options.static_groups) fit_static();
  }

  void run() {
    for (std::int64_t i = 0; i < job_.k; ++i) {
      if (!(job_.options.act_order && job_.options.static_groups) && i % job_.grouping.size == 0) {
        fit_at(i / job_.grouping.size);
      }
      const std::int64_t feature = job_.order[static_cast<std::size_t>(i)];
      const float* u = job_.u.data() + i * job_.k;
      for (std::int64_t c = 0; c < channels_; ++c) {
        const GroupQuantizer& quantizer = quantizer_of(c, job_.group_at(i));
        float* w = &place(c, 0);
        const std::uint8_t code = quantizer.code(w[i]);
        job_.codes[static_cast<std::size_t>(feature * job_.n + first_ + c)] = code;
        const float error = (w[i] - quantizer.weight(code)) / u[i];
        for (std::int64_t j = i + 1; j < job_.k; ++j) w[j] -= error * u[j];
      }
    }
  }

 private:
  float& place(std::int64_t c, std::int64_t i) {
    return weights_[static_cast<std::size_t>(c * job_.k + i)];
  }
  GroupQuantizer& quantizer_of(std::int64_t c, std::int64_t group) {
    return quantizers_[static_cast<std::size_t>(c * job_.grouping.count + group)];
  }
  void fit(std::int64_t c, std::int64_t group, std::span<const float> members) {
    GroupQuantizer& quantizer = quantizer_of(c, group);
    quantizer = detail::fit_range(members, job_.options, scratch_.data());
    if (!std::isfinite(quantizer.scale)) {
      detail::refuse_scale(first_ + c, group, job_.options.scale_dtype);
    }
    detail::store_group(job_.data, static_cast<std::size_t>(group * job_.n + first_ + c),
                        quantizer);
  }
  /// From its weights as they are by now.
  void fit_at(std::int64_t group) {
    for (std::int64_t c = 0; c < channels_; ++c) {
      fit(c, group, job_.grouping.of(&place(c, 0), group));
    }
  }
  void fit_static() {
    for (std::int64_t c = 0; c < channels_; ++c) {
      const float* row = job_.weight.data() + (first_ + c) * job_.k;
      for (std::int64_t g = 0; g < job_.grouping.count; ++g) fit(c, g, job_.grouping.of(row, g));
    }
  }

  Job& job_;
  std::int64_t first_, channels_;
  std::vector<float> weights_;  ///< [channels, k], in the order of quantisation
  std::vector<GroupQuantizer> quantizers_;
  std::vector<float> scratch_;  ///< of a group
};

void check_gptq(std::int64_t k, const Hessian& hessian, const GptqOptions& options) {
  detail::check_options(options);
  if (options.method != QuantizeMethod::round_to_nearest) {
    refuse("GPTQ rounds to nearest: no other method goes with it");
  }
  if (hessian.in_features() != k) {
    refuse("the Hessian has {} features, the weight {}", hessian.in_features(), k);
  }
  if (hessian.rows() == 0) refuse("the Hessian has no rows of calibration inputs");
  if (!(options.damping > 0) || !std::isfinite(options.damping)) {
    refuse("damping is {}, expected more than 0", options.damping);
  }
}

}  // namespace

Hessian::Hessian(std::int64_t in_features) : in_features_(in_features) {
  constexpr std::int64_t kMost = 1 << 20;
  if (in_features < 1 || in_features > kMost) {
    refuse("a Hessian of {} features, expected 1 to {}", in_features, kMost);
  }
  matrix_.resize(static_cast<std::size_t>(in_features * in_features));
}

void Hessian::add(std::span<const float> rows) {
  const auto k = static_cast<std::size_t>(in_features_);
  if (rows.size() % k != 0) {
    refuse("{} calibration values are no rows of {}", rows.size(), in_features_);
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (!std::isfinite(rows[i])) {
      refuse("calibration input [{}, {}] is {}, expected a finite value", i / k, i % k, rows[i]);
    }
  }
  detail::parallel_for(in_features_, 8, [&](Range range) {
    for (std::int64_t i = range.begin; i < range.end; ++i) {
      double* target = matrix_.data() + i * in_features_;
      for (std::size_t row = 0; row < rows.size(); row += k) {
        const double x = rows[row + static_cast<std::size_t>(i)];
        if (x == 0) continue;
        for (std::size_t j = 0; j < k; ++j) target[j] += x * double{rows[row + j]};
      }
    }
  });
  rows_ += static_cast<std::int64_t>(rows.size() / k);
}

AnyQuantizedWeights quantize_gptq(std::span<const float> weight, std::int64_t out_features,
                                  std::int64_t in_features, const Hessian& hessian,
                                  const GptqOptions& options) {
  const std::int64_t n = out_features, k = in_features;
  check_gptq(k, hessian, options);
  detail::check_weight(weight, n, k);
  Job job{.weight = weight,
          .n = n,
          .k = k,
          .grouping = {k, options.group_size},
          .options = options,
          .order = quantization_order(hessian, options.act_order),
          .u = {},
          .data = detail::begin_weights(n, k, options),
          .codes = std::vector<std::uint8_t>(static_cast<std::size_t>(n * k))};
  job.u = update_factors(hessian, job.order, options.damping);
  detail::parallel_for(ceil_div(n, kChannels), 1, [&](Range range) {
    for (std::int64_t block = range.begin; block < range.end; ++block) {
      const std::int64_t first = block * kChannels;
      ChannelBlock(job, first, std::min(kChannels, n - first)).run();
    }
  });
  job.data.qweight = pack(job.codes, k, n, options.bits);
  if (!job.groups_are_static() && job.grouping.count > 1) {
    job.data.g_idx.resize(static_cast<std::size_t>(k));
    for (std::int64_t i = 0; i < k; ++i) {
      job.data.g_idx[static_cast<std::size_t>(job.order[static_cast<std::size_t>(i)])] =
          static_cast<std::int32_t>(i / job.grouping.size);
    }
  }
  return make_quantized_weights(options.bits, std::move(job.data));
}

double relative_output_error(std::span<const float> weight, const AnyQuantizedWeights& quantized,
                             const Hessian& hessian) {
  const WeightsData& data = data_of(quantized);
  const std::int64_t n = data.out_features, k = data.in_features;
  detail::check_weight(weight, n, k);
  if (hessian.in_features() != k) {
    refuse("the Hessian has {} features, the weight {}", hessian.in_features(), k);
  }
  const std::vector<float> dense = dequantize(quantized);
  // v H v^T by channel, so that the order of additions does not depend on the threads.
  std::vector<double> errors(static_cast<std::size_t>(n)), outputs(errors.size());
  detail::parallel_for(n, 1, [&](Range range) {
    std::vector<double> error(static_cast<std::size_t>(k)), whole(error.size());
    for (std::int64_t row = range.begin; row < range.end; ++row) {
      for (std::size_t i = 0; i < error.size(); ++i) {
        const auto at = static_cast<std::size_t>(row * k) + i;
        whole[i] = weight[at];
        error[i] = whole[i] - double{dense[at]};
      }
      for (std::int64_t i = 0; i < k; ++i) {
        const double* h = hessian.matrix().data() + i * k;
        const auto at = static_cast<std::size_t>(i);
        errors[static_cast<std::size_t>(row)] += error[at] * dot(h, error.data(), k);
        outputs[static_cast<std::size_t>(row)] += whole[at] * dot(h, whole.data(), k);
      }
    }
  });
  const double error = std::accumulate(errors.begin(), errors.end(), 0.0);
  const double output = std::accumulate(outputs.begin(), outputs.end(), 0.0);
  return error <= 0 ? 0 : std::sqrt(error / output);
}

}  // namespace mpq

#include "host_throughput.hpp"

#include <chrono>

#include "cuda_support.hpp"
#include "mpq/model.hpp"
#include "mpq/pack.hpp"
#include "random_weights.hpp"

namespace mpq::bench {
namespace {

template <class Work>
double wall_ms(const Work& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
      .count();
}

}  // namespace

std::vector<HostRow> measure_host_throughput(const Options& options) {
  std::vector<HostRow> rows;
  const Stream stream;
  int device = 0;
  check(cudaGetDevice(&device));
  for (const int bits : options.bits) {
    const LayerSpec spec{options.shapes.front(), bits, options.dtypes.front(),
                         options.zeros.front(), options.groups.front()};
    const AnyQuantizedWeights weights =
        make_random_weights(spec, options.act_order, options.bias, 1);
    const LinearConfig config = config_of(data_of(weights), spec.dtype);
    std::vector<double> pack, load, prepare;
    for (int i = 0; i <= options.repetitions; ++i) {
      const double pack_ms = wall_ms([&] { pack_kernel_layout(weights); });
      AnyLinear linear(bits, config, Device::cuda(device));
      stream.synchronize();
      const double load_ms = wall_ms([&] {
        linear.load(weights, stream.get());
        stream.synchronize();
      });
      const double prepare_ms = wall_ms([&] {
        linear.prepare_params(stream.get());
        stream.synchronize();
      });
      if (i == 0) continue;  // the first touches everything for the first time
      pack.push_back(pack_ms);
      load.push_back(load_ms);
      prepare.push_back(prepare_ms);
    }
    rows.push_back({"pack_kernel_layout", spec, median(pack)});
    rows.push_back({"load", spec, median(load)});
    rows.push_back({"prepare_params", spec, median(prepare)});
  }
  return rows;
}

}  // namespace mpq::bench

// Streams, graphs, repetition: how forward runs rather than what it computes.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <thread>
#include <vector>

#include "cuda/cuda_error.hpp"
#include "support/catch.hpp"
#include "support/expect_error.hpp"
#include "support/random.hpp"
#include "support/run_linear.hpp"

namespace mpq::test {
namespace {

constexpr std::int64_t kK = 640, kN = 320;

AnyLinear make_layer(int bits, bool act_order, std::uint64_t seed) {
  AnyLinear linear(random_weights({.bits = bits,
                                   .k = kK,
                                   .n = kN,
                                   .group_size = 64,
                                   .act_order = act_order,
                                   .bias = true,
                                   .seed = seed}),
                   Device::cuda(), DType::f16);
  linear.prepare_params();
  return linear;
}

class Stream {
 public:
  Stream() {
    detail::check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "create");
  }
  ~Stream() { (void)cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }
  operator StreamRef() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// Device memory of one call with fixed addresses.
struct Call {
  Call(const AnyLinear& layer, std::int64_t batch)
      : linear(layer),
        m(batch),
        x(Device::cuda(), static_cast<std::size_t>(batch * kK * 2)),
        y(Device::cuda(), static_cast<std::size_t>(batch * kN * 2)),
        workspace(Device::cuda(), layer.workspace_bytes(batch)) {}

  void put(const std::vector<std::uint16_t>& values, StreamRef stream) {
    x.copy_from_host(values.data(), x.size(), 0, stream);
  }
  void run(StreamRef stream) const {
    linear.forward({x.data(), DType::f16, m, kK}, {y.data(), DType::f16, m, kN}, workspace, stream);
  }
  std::vector<std::uint16_t> get(StreamRef stream) const {
    std::vector<std::uint16_t> values(y.size() / 2);
    y.copy_to_host(values.data(), y.size(), 0, stream);
    return values;
  }

  const AnyLinear& linear;
  std::int64_t m;
  DeviceBuffer x, y, workspace;
};

TEST_CASE("a captured forward follows its inputs through 1000 replays") {
  const auto act_order = GENERATE(false, true);
  const auto m = GENERATE(1, 9, 100);
  const AnyLinear linear = make_layer(4, act_order, 4);
  Call call(linear, m);
  const Stream stream;
  // Global mode: an allocation, a synchronisation or a legacy-stream call inside would fail here.
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  detail::check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "begin");
  call.run(stream);
  detail::check_cuda(cudaStreamEndCapture(stream, &graph), "end");
  detail::check_cuda(cudaGraphInstantiate(&executable, graph, 0), "instantiate");

  std::vector<std::vector<std::uint16_t>> inputs, expected;
  for (std::uint64_t i = 0; i < 10; ++i) {
    inputs.push_back(random_activations(m, kK, DType::f16, 40 + i));
    expected.push_back(run_linear(linear, inputs.back(), {.m = m}));
  }
  int wrong = 0;
  for (std::size_t i = 0; i < 1000; ++i) {
    call.put(inputs[i % 10], stream);
    detail::check_cuda(cudaGraphLaunch(executable, stream), "launch");
    wrong += call.get(stream) != expected[i % 10];
  }
  CHECK(wrong == 0);
  (void)cudaGraphExecDestroy(executable);
  (void)cudaGraphDestroy(graph);
}

TEST_CASE("1000 runs give the same bits") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto m = GENERATE(3, 80);
  const AnyLinear linear = make_layer(bits, bits == 4, 5);
  Call call(linear, m);
  const Stream stream;
  call.put(random_activations(m, kK, DType::f16, 50), stream);
  call.run(stream);
  const auto first = call.get(stream);
  int different = 0;
  for (int i = 1; i < 1000; ++i) {
    call.run(stream);
    different += call.get(stream) != first;
  }
  CHECK(different == 0);
}

TEST_CASE("threads with streams of their own share a layer") {
  const AnyLinear linear = make_layer(4, true, 6);
  const auto work = [&](std::int64_t m, std::uint64_t seed, int& wrong) {
    const auto x = random_activations(m, kK, DType::f16, seed);
    Call call(linear, m);
    const Stream stream;
    call.put(x, stream);
    const auto expected = run_linear(linear, x, {.m = m});
    for (int i = 0; i < 200; ++i) {
      for (int burst = 0; burst < 5; ++burst) call.run(stream);
      wrong += call.get(stream) != expected;
    }
  };
  int wrong_small = 0, wrong_large = 0;
  {
    const std::jthread small([&] { work(4, 60, wrong_small); });
    const std::jthread large([&] { work(130, 61, wrong_large); });
  }
  CHECK(wrong_small == 0);
  CHECK(wrong_large == 0);
}

enum class Chain { one_by_one, in_stream, in_graph };

// x -> layer -> layer ... between two buffers, by programmatic launches; one by one none has a
// predecessor that still runs.
std::vector<std::uint16_t> run_chain(const std::vector<AnyLinear>& layers,
                                     const std::vector<std::uint16_t>& input, std::int64_t m,
                                     Chain chain) {
  const std::int64_t width = layers[0].config().in_features;
  const auto bytes = static_cast<std::size_t>(2 * m * width);
  DeviceBuffer buffers[] = {{Device::cuda(), bytes}, {Device::cuda(), bytes}};
  std::size_t workspace_bytes = 0;
  for (const AnyLinear& layer : layers) {
    workspace_bytes = std::max(workspace_bytes, layer.workspace_bytes(m));
  }
  const DeviceBuffer workspace(Device::cuda(), workspace_bytes);
  const DeviceBuffer pristine = [&] {
    DeviceBuffer buffer(Device::cuda(), bytes);
    buffer.copy_from_host(input.data(), bytes);
    return buffer;
  }();
  const Stream stream;
  const auto enqueue = [&] {
    // The predecessor of the first forward is a copy, which knows nothing of dependent launches.
    detail::check_cuda(cudaMemcpyAsync(buffers[0].data(), pristine.data(), bytes,
                                       cudaMemcpyDeviceToDevice, stream),
                       "copy");
    for (std::size_t i = 0; i < 24; ++i) {
      layers[i % layers.size()].forward({buffers[i % 2].data(), DType::f16, m, width},
                                        {buffers[1 - i % 2].data(), DType::f16, m, width},
                                        workspace, {.programmatic = true}, stream);
      if (chain == Chain::one_by_one) {
        detail::check_cuda(cudaStreamSynchronize(stream), "synchronize");
      }
    }
  };
  if (chain == Chain::in_graph) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    detail::check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "begin");
    enqueue();
    detail::check_cuda(cudaStreamEndCapture(stream, &graph), "end");
    detail::check_cuda(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
    for (int i = 0; i < 20; ++i) detail::check_cuda(cudaGraphLaunch(executable, stream), "launch");
    detail::check_cuda(cudaStreamSynchronize(stream), "synchronize");
    (void)cudaGraphExecDestroy(executable);
    (void)cudaGraphDestroy(graph);
  } else {
    const int times = chain == Chain::one_by_one ? 1 : 20;
    for (int i = 0; i < times; ++i) enqueue();
  }
  std::vector<std::uint16_t> result(input.size());
  buffers[0].copy_to_host(result.data(), bytes, 0, stream);
  return result;
}

std::vector<AnyLinear> chain_layers(int bits, std::int64_t width, bool act_order) {
  std::vector<AnyLinear> layers;
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    auto weights = random_weights({.bits = bits,
                                   .k = width,
                                   .n = width,
                                   .group_size = 64,
                                   .act_order = act_order,
                                   .seed = 70 + seed});
    // A layer's gain is about 1, of noise or of the mean (q - z is -1/2 in the mean), so that a
    // long chain neither overflows nor dies out.
    const auto columns = static_cast<double>(width);
    const double code_rms = (1 << bits) / std::sqrt(6.0);
    const double gain = std::max(code_rms * std::sqrt(columns), 0.5 * columns);
    auto& scales = data_of(weights).scales;
    std::fill(scales.begin(), scales.end(), float_to_f16(static_cast<float>(1 / gain)));
    layers.emplace_back(weights, Device::cuda(), DType::f16);
    layers.back().prepare_params();
  }
  return layers;
}

void check_chain(const std::vector<AnyLinear>& layers, std::int64_t m) {
  const std::int64_t width = layers[0].config().in_features;
  const auto x = random_activations(m, width, DType::f16, 90);
  const auto expected = run_chain(layers, x, m, Chain::one_by_one);
  const auto alive = std::count_if(expected.begin(), expected.end(), [](std::uint16_t y) {
    return (y & 0x7fff) != 0 && (y & 0x7c00) != 0x7c00;
  });
  CHECK(alive > m * width * 9 / 10);
  CHECK(run_chain(layers, x, m, Chain::in_stream) == expected);
  CHECK(run_chain(layers, x, m, Chain::in_graph) == expected);
}

TEST_CASE("that a layer begins before the one before has ended changes no bit") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const auto act_order = GENERATE(false, true);
  const auto layers = chain_layers(bits, 512, act_order);
  for (const std::int64_t m : {1, 8, 20, 64, 200}) {
    INFO("w" << bits << " m " << m << " act-order " << act_order);
    check_chain(layers, m);
  }
}

TEST_CASE("nor does it where layers are two launches") {
  const DeviceTraits device = traits_of(Device::cuda());
  if (!runs_sm90a_code(device)) return;
  const std::int64_t width = (device.sm_count / 2 + 6) * std::int64_t{128};
  const auto layers = chain_layers(1, width, GENERATE(false, true));
  CHECK(layers[0].describe(512).find("from channel") != std::string::npos);
  check_chain(layers, 512);
}

TEST_CASE("batch-invariant rows do not depend on the batch", "[small]") {
  const auto bits = GENERATE(1, 2, 4, 8);
  const AnyLinear linear = make_layer(bits, false, 9);
  const auto x = random_activations(64, kK, DType::f16, 91);
  const ForwardOptions options{.batch_invariant = true};
  const auto all = run_linear(linear, x, {.m = 64, .options = options});
  for (const std::int64_t m : {1, 2, 7, 8, 9, 16, 17, 32, 33, 63}) {
    const auto y = run_linear(linear, x, {.m = m, .options = options});
    CHECK(std::equal(y.begin(), y.end(), all.begin()));
  }
  // Alone, and in another row.
  const std::vector<std::uint16_t> last(x.end() - kK, x.end());
  const auto y = run_linear(linear, last, {.m = 1, .options = options});
  CHECK(std::equal(y.begin(), y.end(), all.end() - kN));
}

TEST_CASE("the workspace is told in advance, and is monotone", "[small]") {
  const AnyLinear plain = make_layer(4, false, 7), ordered = make_layer(4, true, 8);
  CHECK(plain.workspace_bytes(1000) == 0);
  std::size_t last = 0;
  for (const std::int64_t m : {0, 1, 2, 15, 16, 1000, 8192}) {
    const std::size_t bytes = ordered.workspace_bytes(m);
    CHECK(bytes >= last);
    last = bytes;
  }
  Call call(ordered, 8);
  const Workspace small(call.workspace.data(), call.workspace.size() - 1);
  CHECK(refuses(
      [&] {
        ordered.forward({call.x.data(), DType::f16, 8, kK}, {call.y.data(), DType::f16, 8, kN},
                        small);
      },
      ErrorCode::invalid_argument, "workspace", std::to_string(call.workspace.size())));
}

}  // namespace
}  // namespace mpq::test

// The CPU back end against a plain read of the same bytes, by the same number of threads, in turns.
//
// Weights rotate over copies of the layer that are larger together than the caches, as those of a
// model do, unless --pool says otherwise. us, GB/s and share compare the least times of both: what
// else runs on the machine only adds to them.

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "mpq/mpq.hpp"

namespace {

using Clock = std::chrono::steady_clock;

struct Shape {
  std::int64_t n, k;
};

struct Case {
  Shape shape;
  int bits;
  std::int64_t batch;
};

struct Settings {
  int group = 128;
  mpq::ZeroKind zero_kind = mpq::ZeroKind::integer;
  std::size_t pool_bytes = std::size_t{256} << 20;
};

struct Bytes {
  const std::byte* data;
  std::size_t size;
};

// Sums 8 bytes at a time in independent chains, so that only memory limits it.
std::uint64_t sum_of(const std::byte* data, std::size_t size) {
  constexpr std::size_t kBlock = 512;
  std::uint64_t sums[kBlock / 8] = {};
  for (std::size_t at = 0; at + kBlock <= size; at += kBlock) {
    std::uint64_t block[kBlock / 8];
    std::memcpy(block, data + at, kBlock);
    for (std::size_t i = 0; i < kBlock / 8; ++i) sums[i] += block[i];
  }
  std::uint64_t total = 0;
  for (const std::uint64_t sum : sums) total += sum;
  return total;
}

// Threads that read memory together.
class Readers {
 public:
  Readers()
      : count_(std::max(1u, std::thread::hardware_concurrency())), start_(count_), end_(count_) {
    for (unsigned i = 1; i < count_; ++i) {
      threads_.emplace_back([this, i] {
        for (;;) {
          start_.arrive_and_wait();
          if (stop_) return;
          read_part(i);
          end_.arrive_and_wait();
        }
      });
    }
  }
  ~Readers() {
    stop_ = true;
    start_.arrive_and_wait();
  }

  unsigned count() const { return count_; }
  void read(const std::vector<Bytes>& tensors) {
    tensors_ = &tensors;
    start_.arrive_and_wait();
    read_part(0);
    end_.arrive_and_wait();
  }

 private:
  void read_part(unsigned part) {
    for (const Bytes& tensor : *tensors_) {
      const std::size_t begin = tensor.size / count_ * part;
      const std::size_t end = part + 1 == count_ ? tensor.size : tensor.size / count_ * (part + 1);
      benchmark::DoNotOptimize(sum_of(tensor.data + begin, end - begin));
    }
  }

  unsigned count_;
  std::barrier<> start_, end_;
  bool stop_ = false;
  const std::vector<Bytes>* tensors_ = nullptr;
  std::vector<std::jthread> threads_;
};

std::size_t element_bytes(mpq::ElementType type) {
  switch (type) {
    case mpq::ElementType::u8:
      return 1;
    case mpq::ElementType::u16:
    case mpq::ElementType::f16:
    case mpq::ElementType::bf16:
      return 2;
    case mpq::ElementType::u32:
    case mpq::ElementType::i32:
    case mpq::ElementType::f32:
      break;
  }
  return 4;
}

std::vector<Bytes> tensors_of(const mpq::AnyLinear& linear) {
  std::vector<Bytes> tensors;
  for (const auto& view : {linear.qweight(), linear.scales(), linear.zeros()}) {
    tensors.push_back(
        {static_cast<const std::byte*>(view.data),
         static_cast<std::size_t>(view.shape[0] * view.shape[1]) * element_bytes(view.element)});
  }
  return tensors;
}

mpq::AnyQuantizedWeights random_weights(const Shape& shape, int bits, const Settings& settings) {
  std::mt19937_64 random(42);
  mpq::WeightsData data;
  data.in_features = shape.k;
  data.out_features = shape.n;
  data.group_size = settings.group;
  data.zero_kind = settings.zero_kind;
  data.qweight.resize(static_cast<std::size_t>(mpq::ceil_div(shape.k * bits, 32) * shape.n));
  for (auto& word : data.qweight) word = static_cast<std::uint32_t>(random());
  const auto statistics = static_cast<std::size_t>(data.groups() * shape.n);
  data.scales.assign(statistics, mpq::float_to_f16(1.0f / 64));
  if (settings.zero_kind == mpq::ZeroKind::integer) {
    data.zeros.assign(statistics, static_cast<std::uint16_t>(1 << (bits - 1)));
  } else if (settings.zero_kind == mpq::ZeroKind::affine) {
    data.affine_zeros.assign(statistics, -static_cast<float>(1 << (bits - 1)) / 64);
  }
  return mpq::make_quantized_weights(bits, std::move(data));
}

template <class Call>
double seconds_of(Call&& call) {
  const auto begin = Clock::now();
  call();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Layers of one shape and width, kept while its batches are measured.
class Layers {
 public:
  const std::vector<mpq::AnyLinear>& get(const Case& c, const Settings& settings) {
    if (linears_.empty() || c.bits != bits_ || c.shape.n != shape_.n || c.shape.k != shape_.k) {
      linears_.clear();
      const mpq::AnyQuantizedWeights weights = random_weights(c.shape, c.bits, settings);
      std::size_t bytes = 0;
      do {
        linears_.emplace_back(weights, mpq::Device::cpu(), mpq::DType::f16);
        linears_.back().prepare_params();
        for (const Bytes& tensor : tensors_of(linears_.back())) bytes += tensor.size;
      } while (bytes < settings.pool_bytes);
      bits_ = c.bits;
      shape_ = c.shape;
    }
    return linears_;
  }

 private:
  int bits_ = 0;
  Shape shape_{};
  std::vector<mpq::AnyLinear> linears_;
};

void run_case(benchmark::State& state, const Case& c, const Settings& settings, Layers& layers,
              Readers& readers) {
  const auto& linears = layers.get(c, settings);
  const std::vector<std::uint16_t> x(static_cast<std::size_t>(c.batch * c.shape.k),
                                     mpq::float_to_f16(0.5f));
  std::vector<std::uint16_t> y(static_cast<std::size_t>(c.batch * c.shape.n));
  const mpq::DeviceBuffer workspace(mpq::Device::cpu(), linears[0].workspace_bytes(c.batch));
  std::vector<std::vector<Bytes>> tensors;
  for (const auto& linear : linears) tensors.push_back(tensors_of(linear));
  std::size_t bytes = 0;
  for (const Bytes& tensor : tensors[0]) bytes += tensor.size;

  double forward = std::numeric_limits<double>::infinity(), read = forward;
  std::size_t at = 0;
  for (auto _ : state) {
    const double seconds = seconds_of([&] {
      linears[at].forward({x.data(), mpq::DType::f16, c.batch, c.shape.k},
                          {y.data(), mpq::DType::f16, c.batch, c.shape.n}, workspace);
    });
    at = (at + 1) % linears.size();
    read = std::min(read, seconds_of([&] { readers.read(tensors[at]); }));
    at = (at + 1) % linears.size();
    forward = std::min(forward, seconds);
    state.SetIterationTime(seconds);
  }
  const auto size = static_cast<double>(bytes);
  state.counters["us"] = forward * 1e6;
  state.counters["GB/s"] = size / forward * 1e-9;
  state.counters["read_GB/s"] = size / read * 1e-9;
  state.counters["share"] = read / forward;
  state.counters["GFLOP/s"] = 2e-9 * static_cast<double>(c.batch * c.shape.n * c.shape.k) / forward;
  state.SetLabel(linears[0].describe(c.batch));
}

std::vector<Shape> parse_shapes(const std::vector<std::string>& texts) {
  std::vector<Shape> shapes;
  for (const std::string& text : texts) {
    Shape shape{};
    char end = 0;
    if (std::sscanf(text.c_str(), "%ldx%ld%c", &shape.n, &shape.k, &end) != 2) {
      throw CLI::ValidationError("--shapes", fmt::format("'{}' is not NxK", text));
    }
    shapes.push_back(shape);
  }
  return shapes;
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);  // takes the --benchmark_ options
  CLI::App app("Times the CPU back end against a plain read of the same bytes");
  std::vector<std::string> shape_texts{"4096x4096", "8192x8192"};
  std::vector<std::int64_t> batches{1, 8};
  std::vector<int> widths{1, 2, 4, 8};
  Settings settings;
  std::size_t pool_mib = 256;
  std::string zeros = "int";
  app.add_option("--shapes", shape_texts, "NxK,...")->delimiter(',')->capture_default_str();
  app.add_option("--batch", batches, "rows of x")->delimiter(',')->capture_default_str();
  app.add_option("--bits", widths, "1, 2, 4, 8")->delimiter(',')->capture_default_str();
  app.add_option("--group", settings.group, "group size, -1 for one group")->capture_default_str();
  app.add_option("--zeros", zeros)->check(CLI::IsMember({"int", "affine", "none"}));
  app.add_option("--pool", pool_mib, "MiB of weights to rotate over")->capture_default_str();
  try {
    app.parse(argc, argv);
    settings.pool_bytes = pool_mib << 20;
    settings.zero_kind = zeros == "int"      ? mpq::ZeroKind::integer
                         : zeros == "affine" ? mpq::ZeroKind::affine
                                             : mpq::ZeroKind::none;
    Layers layers;
    Readers readers;
    for (const Shape& shape : parse_shapes(shape_texts)) {
      for (const int bits : widths) {
        for (const std::int64_t batch : batches) {
          const std::string name = fmt::format("w{} {}x{} M={}", bits, shape.n, shape.k, batch);
          benchmark::RegisterBenchmark(
              name.c_str(),
              [=, &layers, &readers](benchmark::State& s) {
                run_case(s, {shape, bits, batch}, settings, layers, readers);
              })
              ->UseManualTime()
              ->Unit(benchmark::kMicrosecond);
        }
      }
    }
    benchmark::RunSpecifiedBenchmarks();
  } catch (const CLI::Error& error) {
    return app.exit(error);
  } catch (const mpq::Error& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return 1;
  }
  return 0;
}

// Replays of a CUDA graph, timed by events, and the bench's read ceiling.
#include <algorithm>

#include "cuda_support.hpp"
#include "random_pool.hpp"
#include "read_ceiling.hpp"
#include "timers.hpp"

namespace example {
namespace {

namespace bench = mpq::bench;

constexpr int kRepetitions = 5;
constexpr std::size_t kPoolBytes = std::size_t{1} << 30;

class CudaTimer final : public DeviceTimer {
 public:
  explicit CudaTimer(mpq::Device device)
      : stream_(on_device(device)), timer_(stream_), pool_(stream_) {
    pool_.reserve(std::min(kPoolBytes, bench::available_bytes() / 2), mpq::DType::f16);
  }

  double call_us(const std::vector<std::function<void(mpq::StreamRef)>>& calls) override {
    // At least 100 calls a replay, so that starting the graph does not count.
    const int rounds = std::max(1, static_cast<int>(100 / calls.size()));
    std::vector<bench::Candidate> candidates;
    candidates.push_back({bench::Graph::capture(stream_,
                                                [&] {
                                                  for (int i = 0; i < rounds; ++i) {
                                                    for (const auto& call : calls) {
                                                      call(stream_.get());
                                                    }
                                                  }
                                                }),
                          rounds * static_cast<int>(calls.size())});
    bench::time_interleaved(timer_, candidates, kRepetitions);
    return bench::median(candidates[0].us);
  }

  double read_us(double bytes) override {
    if (!ceiling_) {
      ceiling_ =
          std::make_unique<bench::ReadCeiling>(timer_, pool_, bench::Mode::isolated, kRepetitions);
    }
    return ceiling_->us(bytes);
  }

  const char* fixed_cost() const override { return "a launch"; }

 private:
  static bench::Stream on_device(mpq::Device device) {
    bench::check(cudaSetDevice(device.index()));
    return {};
  }

  bench::Stream stream_;
  bench::StreamTimer timer_;
  bench::RandomPool pool_;
  std::unique_ptr<bench::ReadCeiling> ceiling_;
};

}  // namespace

std::unique_ptr<DeviceTimer> make_cuda_timer(mpq::Device device) {
  return std::make_unique<CudaTimer>(device);
}

}  // namespace example

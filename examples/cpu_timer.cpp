// Wall-clock times, and a read by all cores of memory that is larger than the caches.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <thread>

#include "timers.hpp"

namespace example {
namespace {

using Clock = std::chrono::steady_clock;

double us_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Sums in many independent chains, so that nothing but memory limits it.
std::uint64_t sum_of(const std::uint64_t* data, std::size_t count) {
  constexpr std::size_t kChains = 16;
  std::uint64_t sums[kChains] = {};
  for (std::size_t at = 0; at + kChains <= count; at += kChains) {
    for (std::size_t i = 0; i < kChains; ++i) sums[i] += data[at + i];
  }
  std::uint64_t total = 0;
  for (const std::uint64_t sum : sums) total += sum;
  return total;
}

class CpuTimer final : public DeviceTimer {
 public:
  double call_us(const std::vector<std::function<void(mpq::StreamRef)>>& calls) override {
    for (const auto& call : calls) call({});
    std::vector<double> times;
    const auto begin = Clock::now();
    do {
      for (const auto& call : calls) {
        const auto start = Clock::now();
        call({});
        times.push_back(us_since(start));
      }
    } while (us_since(begin) < 0.5e6);
    return median(times);
  }

  double read_us(double bytes) override {
    if (us_per_byte_ == 0) us_per_byte_ = measure();
    return bytes * us_per_byte_;
  }

  const char* fixed_cost() const override { return "waking the threads"; }

 private:
  // All threads read at once, each its own share. The median over short pieces leaves out what
  // other programs on the machine take away for a while.
  static double measure() {
    constexpr std::size_t kBytes = std::size_t{256} << 20;
    constexpr std::size_t kPiece = (std::size_t{1} << 20) / sizeof(std::uint64_t);
    constexpr int kPasses = 6;
    const std::size_t threads = std::max(1u, std::thread::hardware_concurrency());
    const std::size_t pieces =
        std::max<std::size_t>(1, kBytes / sizeof(std::uint64_t) / kPiece / threads);
    const std::vector<std::uint64_t> data(pieces * kPiece * threads, 1);
    std::vector<double> bytes_per_us(threads);
    std::atomic<std::uint64_t> sum = 0;  // keeps the compiler from leaving the reading out
    {
      std::vector<std::jthread> readers;
      for (std::size_t t = 0; t < threads; ++t) {
        readers.emplace_back([&, t] {
          std::vector<double> times;
          for (std::size_t i = 0; i < kPasses * pieces; ++i) {
            const auto begin = Clock::now();
            sum += sum_of(data.data() + (t * pieces + i % pieces) * kPiece, kPiece);
            times.push_back(us_since(begin));
          }
          bytes_per_us[t] = static_cast<double>(kPiece * sizeof(std::uint64_t)) / median(times);
        });
      }
    }
    return 1 / std::accumulate(bytes_per_us.begin(), bytes_per_us.end(), 0.0);
  }

  double us_per_byte_ = 0;
};

}  // namespace

std::unique_ptr<DeviceTimer> make_cpu_timer() {
  return std::make_unique<CpuTimer>();
}

}  // namespace example

// No single grid is the fastest at every size: short reads want few, wide blocks (launching and
// draining dominate), long ones enough loads in flight, and overlapping launches want blocks small
// enough that two kernels fit an SM. So a dozen are timed at each size and the fastest is the
// ceiling.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "mpq/kernels/ptx/memory.cuh"
#include "read_ceiling.hpp"

namespace mpq::bench {
namespace {

// A block reads consecutive bytes, or all blocks advance together.
enum class Walk { chunk, stride };

// Loads that the compiler may reorder will not do: it keeps only half of eight in flight and moves
// the last ones behind the wait for the kernel before, which is what the chained ceiling must
// overlap. And without the 1 in the launch bounds ptxas saves registers at the same cost.
template <int kInFlight, Walk kWalk, int kThreads>
__global__ void __launch_bounds__(kThreads, 1)
    read_kernel(const uint4* __restrict__ data, std::int64_t count, unsigned* sink) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
  std::int64_t at, end, step;
  if constexpr (kWalk == Walk::chunk) {
    constexpr std::int64_t kLine = 128 / sizeof(uint4);  // chunks begin where cache lines do
    const std::int64_t lines = (count + kLine - 1) / kLine;
    const std::int64_t chunk = (lines + gridDim.x - 1) / gridDim.x * kLine;
    at = chunk * blockIdx.x + threadIdx.x;
    end = min(count, chunk * (static_cast<std::int64_t>(blockIdx.x) + 1));
    step = blockDim.x;
  } else {
    at = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    end = count;
    step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  }
  unsigned folded = 0;
  for (; at + (kInFlight - 1) * step < end; at += kInFlight * step) {
    uint4 values[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      values[i] = kernels::ptx::ld_global_nc_no_allocate(data + at + i * step);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      folded ^= values[i].x ^ values[i].y ^ values[i].z ^ values[i].w;
    }
  }
  // What is left over is in flight together as well: for small reads it is all there is. Beyond the
  // end the last element is read again, out of L1 or L2.
  if (at < end) {
    uint4 rest[kInFlight - 1];
#pragma unroll
    for (int i = 0; i < kInFlight - 1; ++i) {
      rest[i] = kernels::ptx::ld_global_nc_no_allocate(data + min(at + i * step, end - 1));
    }
#pragma unroll
    for (int i = 0; i < kInFlight - 1; ++i) {
      folded ^= rest[i].x ^ rest[i].y ^ rest[i].z ^ rest[i].w;
    }
  }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
  if (folded == 0x9e3779b9u) *sink = folded;  // hardly ever; the compiler cannot know
}

struct Variant {
  void (*kernel)(const uint4*, std::int64_t, unsigned*);
  Walk walk;
  int in_flight, threads, blocks_per_sm;
};

template <int kInFlight, Walk kWalk, int kThreads>
constexpr Variant variant(int blocks_per_sm) {
  return {read_kernel<kInFlight, kWalk, kThreads>, kWalk, kInFlight, kThreads, blocks_per_sm};
}

const std::array kVariants{
    variant<8, Walk::chunk, 512>(1),  variant<8, Walk::chunk, 512>(2),
    variant<8, Walk::chunk, 512>(4),  variant<8, Walk::chunk, 256>(1),
    variant<8, Walk::chunk, 256>(2),  variant<8, Walk::chunk, 256>(4),
    variant<4, Walk::chunk, 1024>(1), variant<4, Walk::chunk, 1024>(2),
    variant<4, Walk::chunk, 256>(8),  variant<4, Walk::stride, 256>(8),
    variant<8, Walk::stride, 512>(2), variant<4, Walk::stride, 512>(4),
};

// Windows of the pool read by one graph: so many that no replay finds its bytes in L2.
int forwards_over(const RandomPool& pool, std::size_t bytes) {
  constexpr std::size_t kColdBytes = std::size_t{400} << 20;
  constexpr std::size_t kFewest = ReadCeiling::kChainedWindows;
  return static_cast<int>(std::max(kFewest, std::min(pool.windows(bytes), kColdBytes / bytes)));
}

}  // namespace

ReadCeiling::ReadCeiling(const StreamTimer& timer, const RandomPool& pool, Mode mode,
                         int repetitions)
    : timer_(timer), pool_(pool), mode_(mode), sink_(sizeof(unsigned)) {
  int device = 0, major = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&sm_count_, cudaDevAttrMultiProcessorCount, device));
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  programmatic_launch_ = mode == Mode::chained && major >= 9;
  const std::size_t windows = programmatic_launch_ ? kChainedWindows : 2;
  const std::size_t largest = std::min(kLargestRead, pool.size() / windows);
  // Powers of two and the middle between them.
  for (std::size_t power = std::size_t{256} << 10; power <= largest; power *= 2) {
    for (const std::size_t bytes : {power, power + power / 2}) {
      if (bytes > largest) continue;
      const int forwards = forwards_over(pool, bytes);
      std::vector<Candidate> candidates;
      for (int v = 0; v < static_cast<int>(kVariants.size()); ++v) {
        candidates.push_back({graph(v, bytes, forwards), forwards});
      }
      time_interleaved(timer, candidates, repetitions);
      Point best{bytes, median(candidates[0].us), 0};
      for (int v = 1; v < static_cast<int>(kVariants.size()); ++v) {
        const double us = median(candidates[static_cast<std::size_t>(v)].us);
        if (us < best.us) best = {bytes, us, v};
      }
      points_.push_back(best);
    }
  }
  if (points_.empty()) throw MemoryShortage("too little device memory for the read ceiling");
}

double ReadCeiling::us(double bytes) const {
  const auto size_of = [](const Point& p) { return static_cast<double>(p.bytes); };
  if (bytes <= size_of(points_.front())) return points_.front().us;
  if (bytes >= size_of(points_.back())) return points_.back().us * bytes / size_of(points_.back());
  const auto above = std::find_if(points_.begin(), points_.end(),
                                  [&](const Point& p) { return size_of(p) >= bytes; });
  const auto below = above - 1;
  const double t = (bytes - size_of(*below)) / (size_of(*above) - size_of(*below));
  return below->us + t * (above->us - below->us);
}

Candidate ReadCeiling::candidate(std::size_t bytes, int forwards) const {
  const auto distance = [&](const Point& p) {
    return std::abs(std::log(static_cast<double>(p.bytes) / static_cast<double>(bytes)));
  };
  const auto nearest =
      std::min_element(points_.begin(), points_.end(),
                       [&](const Point& a, const Point& b) { return distance(a) < distance(b); });
  return {graph(nearest->variant, bytes, forwards), forwards};
}

std::string ReadCeiling::describe(int index) {
  const Variant& v = kVariants.at(static_cast<std::size_t>(index));
  return std::string(v.walk == Walk::chunk ? "chunk" : "stride") + ", " +
         std::to_string(v.in_flight) + " in flight, " + std::to_string(v.threads) + " threads, " +
         std::to_string(v.blocks_per_sm) + " per SM";
}

Graph ReadCeiling::graph(int index, std::size_t bytes, int forwards) const {
  const Variant& v = kVariants.at(static_cast<std::size_t>(index));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(sm_count_ * v.blocks_per_sm));
  config.blockDim = dim3(static_cast<unsigned>(v.threads));
  config.stream = timer_.stream().get();
  config.attrs = &attribute;
  config.numAttrs = programmatic_launch_ ? 1 : 0;
  cudaFuncAttributes loaded{};  // loads the kernel, which capture would have to do otherwise
  check(cudaFuncGetAttributes(&loaded, reinterpret_cast<const void*>(v.kernel)));
  return Graph::capture(timer_.stream(), [&] {
    for (int i = 0; i < forwards; ++i) {
      const auto* data =
          static_cast<const uint4*>(pool_.window(static_cast<std::size_t>(i), bytes));
      check(cudaLaunchKernelEx(&config, v.kernel, data,
                               static_cast<std::int64_t>(bytes / sizeof(uint4)),
                               sink_.data<unsigned>()));
    }
  });
}

}  // namespace mpq::bench

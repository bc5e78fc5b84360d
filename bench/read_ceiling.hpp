#pragma once
// The read ceiling: how long the device takes to read n bytes, by the fastest of several plain
// kernels.

#include <cstddef>
#include <string>
#include <vector>

#include "cases.hpp"
#include "cuda_support.hpp"
#include "random_pool.hpp"

namespace mpq::bench {

class ReadCeiling {
 public:
  struct Point {
    std::size_t bytes = 0;
    double us = 0;
    int variant = 0;  ///< the kernel and grid that took it
  };

  /// Windows that take turns where launches overlap: one more than there can be of these kernels at
  /// once, eight blocks of 256 threads a multiprocessor, or they find each other's bytes in L2.
  static constexpr std::size_t kChainedWindows = 9;
  /// The largest size that is measured, and the pool that takes for every mode.
  static constexpr std::size_t kLargestRead = std::size_t{512} << 20,
                               kPoolBytes = kChainedWindows * kLargestRead;

  /// Measures, with L2 cold: sizes from 256 KiB to kLargestRead, or what the pool holds.
  ReadCeiling(const StreamTimer& timer, const RandomPool& pool, Mode mode, int repetitions);

  /// Time to read `bytes`, us: linear between the measured sizes, in proportion above the largest,
  /// and never less than the smallest takes.
  double us(double bytes) const;

  /// The fastest kernel for about `bytes`, reading exactly that, `forwards` times over rotating
  /// windows of the pool.
  Candidate candidate(std::size_t bytes, int forwards) const;

  Mode mode() const noexcept { return mode_; }
  const std::vector<Point>& points() const noexcept { return points_; }
  /// "chunks of a block, 8 loads in flight, 512 threads, 2 blocks per SM", for instance.
  static std::string describe(int variant);

 private:
  Graph graph(int variant, std::size_t bytes, int forwards) const;

  const StreamTimer& timer_;
  const RandomPool& pool_;
  Mode mode_;
  int sm_count_ = 0;
  bool programmatic_launch_ = false;
  DeviceArray sink_;
  std::vector<Point> points_;
};

}  // namespace mpq::bench

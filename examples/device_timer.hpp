#pragma once
// Times on one device: what calls take, and how long a plain read of as many bytes takes.

#include <cstddef>
#include <functional>
#include <memory>
#include <mpq/device.hpp>
#include <vector>

namespace example {

class DeviceTimer {
 public:
  virtual ~DeviceTimer() = default;

  /// Median time of one call, us. The calls follow each other in turn, again and again; caches are
  /// cold if the calls together read more than those hold.
  virtual double call_us(const std::vector<std::function<void(mpq::StreamRef)>>& calls) = 0;

  /// Time to read `bytes` that are in no cache, us.
  virtual double read_us(double bytes) = 0;

  /// Why a call that reads next to nothing cannot come near read_us.
  virtual const char* fixed_cost() const = 0;
};

/// Takes a second or two on a GPU, where it measures the reads.
std::unique_ptr<DeviceTimer> make_timer(mpq::Device device);

}  // namespace example

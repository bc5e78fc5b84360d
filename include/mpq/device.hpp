#pragma once
// Where a layer lives, what that device can do, and the memory and streams that callers hand over.
// No CUDA header is needed to use any of this.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

struct CUstream_st;  // what cudaStream_t points to

namespace mpq {

/// A CUDA device or the host's CPU.
class Device {
 public:
  static constexpr Device cpu() noexcept { return Device(-1); }
  /// The CUDA device with this index, as the CUDA runtime counts. Checked when it is first used.
  static constexpr Device cuda(int index = 0) noexcept { return Device(index < 0 ? kBad : index); }
  /// cuda(0) where this build has CUDA and a device answers, else cpu().
  static Device best() noexcept;
  /// Number of CUDA devices that mpq can use; 0 in a build without CUDA or with no driver.
  static int cuda_count() noexcept;

  constexpr bool is_cpu() const noexcept { return index_ == -1; }
  constexpr bool is_cuda() const noexcept { return index_ != -1; }
  /// CUDA index; -1 for the CPU.
  constexpr int index() const noexcept { return index_; }
  constexpr bool operator==(const Device&) const = default;

 private:
  static constexpr int kBad =
      1 << 30;  // a negative index: refused on first use like any missing one
  constexpr explicit Device(int index) noexcept : index_(index) {}
  int index_;
};

/// "cpu" or "cuda:0".
std::string to_string(Device device);

/// What planning needs to know of a device; a plain value, so that plans are testable with no GPU.
struct DeviceTraits {
  int compute_capability = 90;                      ///< 10 * major + minor
  bool sm90a_code = true;                           ///< this build has machine code for sm_90a
  int sm_count = 132;                               ///< multiprocessors
  std::int64_t l2_bytes = 50 << 20;                 ///< L2 cache
  double memory_gb_per_s = 4917;                    ///< of its clock and width; an H200's
  std::int64_t shared_bytes_per_block = 227 << 10;  ///< shared memory a block may opt in to
  /// Clusters of 2, 3, ... 8 CTAs that run at once, a CTA a multiprocessor. They are fewer than
  /// sm_count / CTAs, because a cluster runs inside one GPC; and not the same on all parts of a
  /// kind.
  std::array<int, 7> resident_clusters{66, 39, 30, 22, 20, 16, 14};
  /// The same with two CTAs a multiprocessor, each with half of its shared memory.
  std::array<int, 7> paired_clusters{132, 79, 62, 47, 39, 32, 30};
  bool operator==(const DeviceTraits&) const = default;
};

/// Reads the traits of a CUDA device. Throws Error(device_unavailable) for the CPU or a missing
/// device.
DeviceTraits traits_of(Device device);

/// The name that the driver or the operating system gives the device.
std::string name_of(Device device);

/// A CUDA stream, not owned. Default: the legacy default stream. Ignored by the CPU.
class StreamRef {
 public:
  constexpr StreamRef() noexcept = default;
  constexpr StreamRef(CUstream_st* stream) noexcept : stream_(stream) {}
  constexpr CUstream_st* get() const noexcept { return stream_; }
  /// Waits until all work in the stream on this device is done.
  void synchronize(Device device) const;

 private:
  CUstream_st* stream_ = nullptr;
};

/// Owned bytes on a device (cudaMalloc, or host memory aligned to 256 bytes). Move-only.
class DeviceBuffer {
 public:
  DeviceBuffer() noexcept = default;
  /// Throws Error(device_failure) naming the bytes when there is no room.
  DeviceBuffer(Device device, std::size_t bytes);
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;

  void* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return bytes_; }
  Device device() const noexcept { return device_; }

  /// Copies [offset, offset + bytes) from or to host memory, in stream order; the host memory may
  /// be reused when the call returns (copy_from_host) or holds the result then (copy_to_host).
  void copy_from_host(const void* source, std::size_t bytes, std::size_t offset = 0,
                      StreamRef stream = {});
  void copy_to_host(void* target, std::size_t bytes, std::size_t offset = 0,
                    StreamRef stream = {}) const;

 private:
  Device device_ = Device::cpu();
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace mpq

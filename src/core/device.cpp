#include "mpq/device.hpp"

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <utility>

#include "core/cuda_runtime.hpp"
#include "core/format.hpp"
#include "mpq/error.hpp"
#include "mpq/types.hpp"

namespace mpq {

Device Device::best() noexcept {
  return cuda_count() > 0 ? cuda(0) : cpu();
}

int Device::cuda_count() noexcept {
  return detail::cuda_device_count();
}

std::string to_string(Device device) {
  return device.is_cpu() ? "cpu" : detail::format("cuda:{}", device.index());
}

DeviceTraits traits_of(Device device) {
  if (device.is_cpu()) {
    throw Error(ErrorCode::device_unavailable, "traits_of: the CPU has no CUDA device traits");
  }
  return detail::cuda_traits(device);
}

std::string name_of(Device device) {
  if (device.is_cuda()) return detail::cuda_name(device);
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.starts_with("model name")) {
      const auto colon = line.find(": ");
      if (colon != std::string::npos) return line.substr(colon + 2);
    }
  }
  return "CPU";
}

void StreamRef::synchronize(Device device) const {
  if (device.is_cuda()) detail::cuda_synchronize(device, *this);
}

namespace {

constexpr std::size_t kHostAlignment = 256;

void check_range(const DeviceBuffer& buffer, const char* what, std::size_t bytes,
                 std::size_t offset) {
  if (offset > buffer.size() || bytes > buffer.size() - offset) {
    throw Error(ErrorCode::invalid_argument,
                detail::format("{}: bytes [{}, {} + {}) lie outside the buffer of {} bytes", what,
                               offset, offset, bytes, buffer.size()));
  }
}

}  // namespace

DeviceBuffer::DeviceBuffer(Device device, std::size_t bytes) : device_(device), bytes_(bytes) {
  if (bytes == 0) return;
  if (device.is_cuda()) {
    data_ = detail::cuda_allocate(device, bytes);
    return;
  }
  const std::size_t rounded = bytes + (kHostAlignment - bytes % kHostAlignment) % kHostAlignment;
  data_ = rounded < bytes ? nullptr : std::aligned_alloc(kHostAlignment, rounded);
  if (data_ == nullptr) {
    throw Error(ErrorCode::device_failure, detail::format("cpu: no memory for {} bytes", bytes));
  }
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ == nullptr) return;
  if (device_.is_cuda()) {
    detail::cuda_free(device_, data_);
  } else {
    std::free(data_);
  }
}

DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : device_(other.device_),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void DeviceBuffer::copy_from_host(const void* source, std::size_t bytes, std::size_t offset,
                                  StreamRef stream) {
  check_range(*this, "copy_from_host", bytes, offset);
  if (bytes == 0) return;
  auto* target = static_cast<std::byte*>(data_) + offset;
  if (device_.is_cpu()) {
    std::memcpy(target, source, bytes);
  } else {
    detail::cuda_copy(device_, target, source, bytes, detail::CopyDirection::host_to_device,
                      stream);
  }
}

void DeviceBuffer::copy_to_host(void* target, std::size_t bytes, std::size_t offset,
                                StreamRef stream) const {
  check_range(*this, "copy_to_host", bytes, offset);
  if (bytes == 0) return;
  const auto* source = static_cast<const std::byte*>(data_) + offset;
  if (device_.is_cpu()) {
    std::memcpy(target, source, bytes);
  } else {
    detail::cuda_copy(device_, target, source, bytes, detail::CopyDirection::device_to_host,
                      stream);
  }
}

}  // namespace mpq

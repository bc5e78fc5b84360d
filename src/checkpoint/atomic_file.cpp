#include "checkpoint/atomic_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <system_error>
#include <utility>

#include "checkpoint/text.hpp"

namespace mpq::detail {

namespace {

constexpr std::size_t kBufferBytes = std::size_t{1} << 20;

}  // namespace

AtomicFile::AtomicFile(const std::filesystem::path& target) : target_(target) {
  std::error_code error;
  const auto status = std::filesystem::status(target_, error);
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
    fail(ErrorCode::invalid_argument, "{}: exists and is not a regular file", target_.string());
  }
  // Through a link its target is replaced, not the link.
  if (std::filesystem::is_symlink(std::filesystem::symlink_status(target_, error))) {
    target_ = std::filesystem::weakly_canonical(target_, error);
    if (error) fail_io("cannot resolve", error.value());
  }
  if (target_.filename().empty()) {
    fail(ErrorCode::invalid_argument, "\"{}\" is not a file name", target_.string());
  }
  static std::atomic<unsigned> count{0};
  do {
    temporary_ = target_.parent_path() / detail::format(".mpq-{}-{}.tmp", ::getpid(), count++);
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  } while (fd_ < 0 && errno == EEXIST);
  if (fd_ < 0) fail_io("cannot create", errno);
  try {
    buffer_.reserve(kBufferBytes);
  } catch (...) {
    ::close(fd_);
    ::unlink(temporary_.c_str());
    throw;
  }
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  if (buffer_.size() + bytes.size() > kBufferBytes) flush();
  if (bytes.size() >= kBufferBytes) {
    put(bytes);
  } else {
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  }
}

void AtomicFile::flush() {
  put(buffer_);
  buffer_.clear();
}

void AtomicFile::put(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t wrote = ::write(fd_, bytes.data(), bytes.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) fail_io("cannot write", errno);
    bytes = bytes.subspan(static_cast<std::size_t>(wrote));
  }
}

void AtomicFile::commit() {
  flush();
  if (::fsync(fd_) != 0) fail_io("cannot write", errno);
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0 || ::rename(temporary_.c_str(), target_.c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary_.c_str());
    fail_io("cannot write", error);
  }
  // The name is durable when its directory is; a file system without that must not fail the write.
  const auto parent = target_.has_parent_path() ? target_.parent_path() : ".";
  const int directory = ::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory >= 0) {
    ::fsync(directory);
    ::close(directory);
  }
}

void AtomicFile::fail_io(const char* what, int error) const {
  fail(ErrorCode::io_failure, "{}: {}: {}", target_.string(), what,
       std::generic_category().message(error));
}

}  // namespace mpq::detail

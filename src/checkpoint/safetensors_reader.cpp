// Reading: the file is mapped, so that a checkpoint larger than memory can be opened and a tensor
// that is not asked for is not read. (A file that another process cuts short while it is mapped
// raises SIGBUS on access, as with every mapped file; writers should rename, as write_safetensors
// does.)

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "checkpoint/safetensors_header.hpp"
#include "checkpoint/text.hpp"
#include "mpq/checkpoint.hpp"

namespace mpq {

static_assert(std::endian::native == std::endian::little,
              "tensors are used as they lie in the file");

namespace {

constexpr std::size_t kLengthBytes = 8;

/// A whole file, mapped for reading.
class Mapping {
 public:
  explicit Mapping(const std::filesystem::path& path) {
    // Non-blocking, so that opening a FIFO by mistake does not wait for a writer.
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) fail_io(path, "cannot open", errno);
    struct stat status {};
    if (::fstat(fd, &status) != 0) {
      const int error = errno;
      ::close(fd);
      fail_io(path, "cannot read", error);
    }
    if (!S_ISREG(status.st_mode)) {
      ::close(fd);
      detail::fail(ErrorCode::io_failure, "{}: not a regular file", path.string());
    }
    bytes_ = static_cast<std::size_t>(status.st_size);
    if (bytes_ > 0) data_ = ::mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, fd, 0);
    const int error = errno;
    ::close(fd);
    if (data_ == MAP_FAILED) {
      data_ = nullptr;
      fail_io(path, "cannot map", error);
    }
  }
  ~Mapping() {
    if (data_ != nullptr) ::munmap(data_, bytes_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::span<const std::byte> bytes() const noexcept {
    return {static_cast<const std::byte*>(data_), bytes_};
  }

 private:
  [[noreturn]] static void fail_io(const std::filesystem::path& path, const char* what, int error) {
    detail::fail(ErrorCode::io_failure, "{}: {}: {}", path.string(), what,
                 std::generic_category().message(error));
  }

  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace

struct SafetensorsFile::Impl {
  std::filesystem::path path;
  Mapping mapping;
  std::span<const std::byte> data;
  detail::SafetensorsHeader header;

  explicit Impl(const std::filesystem::path& path_) : path(path_), mapping(path_) {
    const auto all = mapping.bytes();
    const std::string where = path.string();
    if (all.size() < kLengthBytes) {
      detail::fail(ErrorCode::invalid_file, "{}: {} bytes, too short for the {} of a header length",
                   where, all.size(), kLengthBytes);
    }
    std::uint64_t length = 0;
    std::memcpy(&length, all.data(), kLengthBytes);
    if (length > detail::kMaxHeaderBytes) {
      detail::fail(ErrorCode::invalid_file, "{}: header length {}, limit {}", where, length,
                   detail::kMaxHeaderBytes);
    }
    if (length > all.size() - kLengthBytes) {
      detail::fail(ErrorCode::invalid_file,
                   "{}: header length {}, the file has only {} bytes after it", where, length,
                   all.size() - kLengthBytes);
    }
    const auto text = all.subspan(kLengthBytes, length);
    data = all.subspan(kLengthBytes + length);
    header = detail::parse_header({reinterpret_cast<const char*>(text.data()), text.size()},
                                  data.size(), where);
  }
};

SafetensorsFile::SafetensorsFile(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SafetensorsFile::~SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  return SafetensorsFile(std::make_unique<Impl>(path));
}

const std::filesystem::path& SafetensorsFile::path() const noexcept {
  return impl_->path;
}

const std::vector<SafetensorsEntry>& SafetensorsFile::entries() const noexcept {
  return impl_->header.entries;
}

const std::map<std::string, std::string>& SafetensorsFile::metadata() const noexcept {
  return impl_->header.metadata;
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const noexcept {
  const auto& all = impl_->header.entries;
  const auto at = std::ranges::lower_bound(
      all, name, {}, [](const auto& e) -> std::string_view { return e.name; });
  return at != all.end() && at->name == name ? &*at : nullptr;
}

std::span<const std::byte> SafetensorsFile::bytes(const SafetensorsEntry& entry) const noexcept {
  return impl_->data.subspan(entry.begin, entry.end - entry.begin);
}

void SafetensorsFile::release(const SafetensorsEntry& entry) const noexcept {
  static const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto span = bytes(entry);
  const auto first = (reinterpret_cast<std::uintptr_t>(span.data()) + page - 1) / page * page;
  const auto last = reinterpret_cast<std::uintptr_t>(span.data() + span.size()) / page * page;
  // The mapping is private and never written to, so its pages are the file's.
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

}  // namespace mpq

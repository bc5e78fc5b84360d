#pragma once
// A file that appears whole or not at all.

#include <cstddef>
#include <filesystem>
#include <span>
#include <vector>

namespace mpq::detail {

/// Writes beside the target and renames on commit(); without commit() nothing remains.
/// Throws Error(io_failure) naming the file, Error(invalid_argument) for a target that a rename
/// would destroy (a device, a directory).
class AtomicFile {
 public:
  explicit AtomicFile(const std::filesystem::path& target);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  /// Flushes to the disk and gives the file its name, replacing a file that has it.
  void commit();

 private:
  void flush();
  void put(std::span<const std::byte> bytes);
  [[noreturn]] void fail_io(const char* what, int error) const;

  std::filesystem::path target_, temporary_;
  int fd_ = -1;
  std::vector<std::byte> buffer_;  ///< gathers small pieces
};

}  // namespace mpq::detail

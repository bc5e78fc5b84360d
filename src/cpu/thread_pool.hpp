#pragma once
// The process's worker threads, shared by everything in mpq that uses more than one core.

#include <cstdint>
#include <memory>
#include <type_traits>

namespace mpq::detail {

/// Threads that parallel_for uses when called from this thread, the caller included.
int thread_count() noexcept;

/// Sets thread_count for calls from this thread, in [1, 256], until destroyed; 0 keeps the default.
/// More than there are cores is fine: the parts are then shared out.
class ThreadLimit {
 public:
  explicit ThreadLimit(int threads) noexcept;
  ~ThreadLimit();
  ThreadLimit(const ThreadLimit&) = delete;
  ThreadLimit& operator=(const ThreadLimit&) = delete;

 private:
  int before_;
};

/// A half-open range of items.
struct Range {
  std::int64_t begin, end;
};

using RangeFunction = void (*)(void* context, Range range);
void parallel_for(std::int64_t items, std::int64_t grain, RangeFunction function, void* context);

/// Calls function(Range) on disjoint ranges that cover [0, items), on up to thread_count() threads,
/// and returns when all are done; rethrows the first exception. The ranges are as equal as can be,
/// a multiple of `grain` long but for the last, and the first runs on the calling thread. Idle
/// workers sleep. May be called from several threads at once and from within itself.
template <class F>
void parallel_for(std::int64_t items, std::int64_t grain, F&& function) {
  using Function = std::remove_reference_t<F>;
  parallel_for(
      items, grain, [](void* context, Range range) { (*static_cast<Function*>(context))(range); },
      const_cast<void*>(static_cast<const void*>(std::addressof(function))));
}

}  // namespace mpq::detail

#include "cpu/thread_pool.hpp"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "mpq/types.hpp"

namespace mpq::detail {
namespace {

constexpr int kMaxThreads = 256;

int core_count() noexcept {
  static const int count =
      std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxThreads);
  return count;
}

// One parallel_for, on the caller's stack. Everything but function and context is guarded by the
// pool's mutex; parts are so large that taking them under a lock costs nothing that can be
// measured.
struct Job {
  RangeFunction function;
  void* context;
  std::int64_t items, part_items;
  int parts;
  int next = 0;     // first part that nobody has taken
  int running = 0;  // parts taken and not finished
  std::exception_ptr error;

  Range range(int part) const {
    const std::int64_t begin = part * part_items;
    return {begin, std::min(items, begin + part_items)};
  }
};

class ThreadPool {
 public:
  static ThreadPool& instance() {
    static ThreadPool pool(core_count() - 1);
    return pool;
  }

  void run(Job& job) {
    std::unique_lock lock(mutex_);
    jobs_.push_back(&job);
    const int wanted = std::min(job.parts - 1, static_cast<int>(workers_.size()));
    for (int i = 0; i < wanted; ++i) work_.notify_one();
    // The caller works on its own job only, so that one thread's small call does not wait for
    // another's large one.
    while (job.next < job.parts) run_part(job, lock);
    finished_.wait(lock, [&] { return job.running == 0; });
  }

 private:
  explicit ThreadPool(int workers) {
    workers_.reserve(static_cast<std::size_t>(workers));
    for (int i = 0; i < workers; ++i) {
      workers_.emplace_back([this](const std::stop_token& stop) {
        std::unique_lock lock(mutex_);
        while (work_.wait(lock, stop, [&] { return !jobs_.empty(); })) {
          run_part(*jobs_.front(), lock);
        }
      });
    }
  }

  // Takes the next part of a job that has one, runs it without the lock and finishes it. A job
  // leaves the queue with its last part; its caller returns, and so ends its life, after the last
  // has run.
  void run_part(Job& job, std::unique_lock<std::mutex>& lock) {
    const int part = job.next++;
    ++job.running;
    if (job.next == job.parts) jobs_.erase(std::find(jobs_.begin(), jobs_.end(), &job));
    lock.unlock();
    std::exception_ptr error;
    try {
      job.function(job.context, job.range(part));
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error && !job.error) job.error = error;
    if (--job.running == 0 && job.next == job.parts) finished_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable_any work_;
  std::condition_variable finished_;
  std::deque<Job*> jobs_;
  std::vector<std::jthread> workers_;  // last: joined before the rest goes
};

thread_local int thread_limit = 0;

}  // namespace

int thread_count() noexcept {
  return thread_limit > 0 ? thread_limit : core_count();
}

ThreadLimit::ThreadLimit(int threads) noexcept : before_(thread_limit) {
  thread_limit = std::clamp(threads, 0, kMaxThreads);
}
ThreadLimit::~ThreadLimit() {
  thread_limit = before_;
}

void parallel_for(std::int64_t items, std::int64_t grain, RangeFunction function, void* context) {
  if (items <= 0) return;
  const std::int64_t grains = ceil_div(items, grain);
  const std::int64_t part_items = ceil_div(grains, thread_count()) * grain;
  const int parts = static_cast<int>(ceil_div(items, part_items));
  if (parts == 1) return function(context, {0, items});
  Job job{.function = function,
          .context = context,
          .items = items,
          .part_items = part_items,
          .parts = parts,
          .next = 0,
          .running = 0,
          .error = {}};
  ThreadPool::instance().run(job);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace mpq::detail

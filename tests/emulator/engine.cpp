#include "engine.hpp"

#include <algorithm>
#include <boost/context/fiber.hpp>
#include <boost/context/fixedsize_stack.hpp>
#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <string>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace mpq::emulator {

namespace context = boost::context;

struct Thread {
  context::fiber fiber;
  Warp* warp = nullptr;
  Index index;
  int lane = 0;
  const char* at = "nothing";
  const std::uint32_t* counter = nullptr;  // waits while *counter == value
  std::uint32_t value = 0;
  std::uint32_t arrived_generation = 0;
  bool done = false;
  std::exception_ptr error;
  std::vector<Later> copies;
  std::deque<std::vector<Later>> groups;
  void* stack_bottom = nullptr;
  std::size_t stack_size = 0;
  bool runnable() const { return !done && (counter == nullptr || *counter != value); }
};

namespace {

constexpr std::size_t kStackBytes = 128 << 10;

Thread* running = nullptr;
context::fiber scheduler;
LaunchShape launched;
bool launch_is_late = false;
unsigned launches = 0;
std::recursive_mutex one_launch_at_a_time;

#if defined(__SANITIZE_ADDRESS__)
void* scheduler_fake_stack = nullptr;
const void* scheduler_bottom = nullptr;
std::size_t scheduler_size = 0;
#endif

// Stacks are kept from launch to launch.
class StackPool {
 public:
  context::stack_context get() {
    if (free_.empty()) return context::fixedsize_stack(kStackBytes).allocate();
    const auto stack = free_.back();
    free_.pop_back();
    return stack;
  }
  void put(context::stack_context stack) { free_.push_back(stack); }
  ~StackPool() {
    for (auto& stack : free_) context::fixedsize_stack(kStackBytes).deallocate(stack);
  }

 private:
  std::vector<context::stack_context> free_;
};
StackPool stacks;

struct PooledStack {
  context::stack_context allocate() { return stacks.get(); }
  void deallocate(context::stack_context& stack) { stacks.put(stack); }
};

void suspend() {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(running->done ? nullptr : &fake, scheduler_bottom, scheduler_size);
#endif
  scheduler = std::move(scheduler).resume();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, &scheduler_bottom, &scheduler_size);
#endif
}

void resume(Thread& thread) {
  running = &thread;
  thread.counter = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, thread.stack_bottom, thread.stack_size);
#endif
  thread.fiber = std::move(thread.fiber).resume();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
  running = nullptr;
  if (thread.error) std::rethrow_exception(thread.error);
}

void start(Thread& thread, const std::function<void()>& kernel) {
  auto stack = stacks.get();
  thread.stack_bottom = static_cast<char*>(stack.sp) - stack.size;
  thread.stack_size = stack.size;
  thread.fiber =
      context::fiber(std::allocator_arg, context::preallocated(stack.sp, stack.size, stack),
                     PooledStack{}, [&thread, &kernel](context::fiber&& from) {
#if defined(__SANITIZE_ADDRESS__)
                       __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
#endif
                       scheduler = std::move(from);
                       try {
                         kernel();
                       } catch (...) {
                         thread.error = std::current_exception();
                       }
                       thread.done = true;
#if defined(__SANITIZE_ADDRESS__)
                       __sanitizer_start_switch_fiber(nullptr, scheduler_bottom, scheduler_size);
#endif
                       return std::move(scheduler);
                     });
}

// What the threads that have not ended wait at, and how many.
std::string where_all_are(const std::vector<Thread>& threads) {
  std::map<std::string, int> waiting;
  for (const Thread& thread : threads) {
    if (thread.done) continue;
    const Index block = thread.warp->cta->block;
    ++waiting["CTA " + std::to_string(block.x) + " " + std::to_string(block.y) + " warp " +
              std::to_string(thread.index.x / kWarp) + ": " + thread.at];
  }
  std::string text;
  for (const auto& [place, count] : waiting) {
    text += "\n  " + place + ", " + std::to_string(count) + " threads";
  }
  return text;
}

void run_cluster(Cluster& cluster, const std::function<void()>& kernel, std::mt19937& random) {
  const int per_cta = cluster.threads_per_cta;
  const int warps_per_cta = (per_cta + kWarp - 1) / kWarp;
  std::vector<Warp> warps(cluster.ctas.size() * static_cast<std::size_t>(warps_per_cta));
  std::vector<Thread> threads(cluster.ctas.size() * static_cast<std::size_t>(per_cta));
  for (std::size_t i = 0; i < threads.size(); ++i) {
    const std::size_t rank = i / static_cast<std::size_t>(per_cta);
    const auto in_cta = static_cast<unsigned>(i % static_cast<std::size_t>(per_cta));
    Thread& thread = threads[i];
    thread.warp = &warps[rank * static_cast<std::size_t>(warps_per_cta) + in_cta / kWarp];
    thread.warp->cta = &cluster.ctas[rank];
    thread.index = {in_cta, 0, 0};
    thread.lane = static_cast<int>(in_cta % kWarp);
    start(thread, kernel);
  }
  // Warps in an order of their own each time; a warp runs until all its threads wait.
  std::vector<std::size_t> order(warps.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  const auto first_of = [&](std::size_t warp) {
    return warp / static_cast<std::size_t>(warps_per_cta) * static_cast<std::size_t>(per_cta) +
           warp % static_cast<std::size_t>(warps_per_cta) * kWarp;
  };
  for (;;) {
    bool any = false, all_done = true;
    std::shuffle(order.begin(), order.end(), random);
    for (const std::size_t warp : order) {
      const std::size_t begin = first_of(warp);
      const std::size_t end = std::min(begin + kWarp, begin / per_cta * per_cta + per_cta);
      for (bool progress = true; progress;) {
        progress = false;
        for (std::size_t i = begin; i < end; ++i) {
          if (!threads[i].runnable()) continue;
          progress = any = true;
          resume(threads[i]);
        }
      }
      for (std::size_t i = begin; i < end; ++i) all_done = all_done && threads[i].done;
    }
    if (!any || all_done) {
      if (cluster.pending.empty()) {
        if (all_done) return;
        throw std::logic_error("emulator: deadlock at" + where_all_are(threads));
      }
      if (all_done) throw std::logic_error("emulator: a CTA ended with copies under way");
      auto pending = std::move(cluster.pending);
      cluster.pending.clear();
      std::shuffle(pending.begin(), pending.end(), random);
      for (const auto& what : pending) what();
    }
  }
}

}  // namespace

Warp& warp() {
  return *running->warp;
}
Cta& cta() {
  return *running->warp->cta;
}
int lane() {
  return running->lane;
}
Index thread_index() {
  return running->index;
}
Index block_index() {
  return cta().block;
}
Index block_dimensions() {
  return {launched.threads, 1, 1};
}
Index grid_dimensions() {
  return launched.grid;
}
std::uint32_t& arrived_generation() {
  return running->arrived_generation;
}
bool late() {
  return launch_is_late;
}

void wait_while(const char* at, const std::uint32_t& counter, std::uint32_t value) {
  while (counter == value) {
    running->counter = &counter;
    running->value = value;
    running->at = at;
    suspend();
  }
}

void do_later(Later what) {
  if (late()) {
    cta().cluster->pending.push_back(std::move(what));
  } else {
    what();
  }
}

void add_copy(Later copy) {
  if (late()) {
    running->copies.push_back(std::move(copy));
  } else {
    copy();
  }
}

void commit_copies() {
  running->groups.push_back(std::move(running->copies));
  running->copies.clear();
}

void wait_for_copies(std::size_t most_pending) {
  while (running->groups.size() > most_pending) {
    for (const auto& copy : running->groups.front()) copy();
    running->groups.pop_front();
  }
}

void arrive(int id, int threads) {
  cta().barriers[static_cast<std::size_t>(id)].arrive(threads);
}

void sync(int id, int threads) {
  const Rendezvous& barrier = cta().barriers[static_cast<std::size_t>(id)];
  const std::uint32_t generation = barrier.generation;
  arrive(id, threads);
  wait_while(id == 0 ? "__syncthreads" : "bar.sync", barrier.generation, generation);
}

unsigned char* in_cta(const void* address, int rank) {
  Cta& mine = cta();
  const auto* place = static_cast<const unsigned char*>(address);
  if (place < mine.shared.begin() || place >= mine.shared.end()) {
    throw std::logic_error("emulator: an address that is not in shared memory");
  }
  return mine.cluster->ctas.at(static_cast<std::size_t>(rank)).shared.begin() +
         (place - mine.shared.begin());
}

TransactionBarrier& transaction_barrier(const void* address, int rank) {
  Cta& mine = cta();
  Cta& owner = rank < 0 ? mine : mine.cluster->ctas.at(static_cast<std::size_t>(rank));
  const void* place = rank < 0 ? address : in_cta(address, rank);
  const auto found = owner.transaction_barriers.find(place);
  if (found == owner.transaction_barriers.end()) {
    throw std::logic_error("emulator: an mbarrier that was not initialised");
  }
  return found->second;
}

void run(const LaunchShape& shape, const std::function<void()>& kernel) {
  const std::lock_guard lock(one_launch_at_a_time);
  launch_is_late = ++launches % 2 == 0;
  std::mt19937 random(launches);
  launched = shape;
  for (unsigned y = 0; y < shape.grid.y; ++y) {
    for (unsigned x = 0; x < shape.grid.x; x += shape.cluster) {
      Cluster cluster;
      cluster.threads_per_cta = static_cast<int>(shape.threads);
      cluster.ctas.resize(shape.cluster);
      for (unsigned rank = 0; rank < shape.cluster; ++rank) {
        Cta& each = cluster.ctas[rank];
        each.cluster = &cluster;
        each.block = {x + rank, y, 0};
        each.rank = static_cast<int>(rank);
        each.shared = SharedMemory(shape.shared_bytes);
      }
      run_cluster(cluster, kernel, random);
    }
  }
}

}  // namespace mpq::emulator

#pragma once
// Runs CUDA kernels on the host, for tests of their logic where there is no GPU: every CUDA thread
// of a cluster is a fiber, and what PTX instructions do between threads happens when the last of
// them has come. Kernels are compiled from their own sources; only kernels/ptx and launch.cuh are
// replaced.
//
// What is asynchronous on a device happens as late as it may in every second launch (a copy that
// nobody waited for is then seen to be missing) and at once in the others (a place that is still
// read is then seen to be overwritten). Shared memory begins as NaN and has exactly the launched
// size.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace mpq::emulator {

constexpr int kWarp = 32;

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

/// What is done later on behalf of a kernel.
using Later = std::function<void()>;

/// An mbarrier: phases that end when all arrivals and bytes have come.
struct TransactionBarrier {
  int expected = 0, pending = 0;
  std::int64_t bytes = 0;
  std::uint32_t phase = 0;
  void check() {
    if (pending == 0 && bytes == 0) ++phase, pending = expected;
    if (pending < 0) throw std::logic_error("emulator: more arrivals than an mbarrier expects");
  }
};

/// A barrier of threads: a generation ends when so many have arrived.
struct Rendezvous {
  int arrived = 0;
  std::uint32_t generation = 0;
  void arrive(int expected) {
    if (++arrived == expected) arrived = 0, ++generation;
  }
};

/// Of a CTA: an allocation of its own, so that the address sanitizer sees what is beyond.
class SharedMemory {
 public:
  SharedMemory() = default;
  explicit SharedMemory(std::size_t bytes)
      : bytes_(bytes), data_(new (std::align_val_t{kAlignment}) unsigned char[bytes]) {
    std::memset(data_.get(), 0xff, bytes);
  }
  unsigned char* begin() const { return data_.get(); }
  unsigned char* end() const { return begin() + bytes_; }

 private:
  static constexpr std::size_t kAlignment = 1024;
  struct Delete {
    void operator()(unsigned char* data) const {
      operator delete[](data, std::align_val_t{kAlignment});
    }
  };
  std::size_t bytes_ = 0;
  std::unique_ptr<unsigned char[], Delete> data_;
};

struct Cluster;

struct Cta {
  Cluster* cluster = nullptr;
  Index block;
  int rank = 0;
  SharedMemory shared;
  std::array<Rendezvous, 16> barriers;
  std::unordered_map<const void*, TransactionBarrier> transaction_barriers;
};

struct Warp {
  Cta* cta = nullptr;
  Rendezvous exchange;
  std::array<void*, kWarp> lanes{};
  const char* instruction = nullptr;
};

struct Cluster {
  std::vector<Cta> ctas;
  int threads_per_cta = 0;
  Rendezvous barrier;
  std::vector<Later> pending;  ///< copies under way
};

/// The running thread's.
Warp& warp();
Cta& cta();
int lane();
Index thread_index();
Index block_index();
Index block_dimensions();
Index grid_dimensions();
bool late();  ///< whether this launch does things as late as it may

/// The cluster barrier's generation at the running thread's last arrival.
std::uint32_t& arrived_generation();

/// Suspends the running thread until *counter is not value; at: for the report of a deadlock.
void wait_while(const char* at, const std::uint32_t& counter, std::uint32_t value);

/// Something to be done between now and when all threads wait for something.
void do_later(Later what);

/// cp.async groups of the running thread, or its bulk groups: no thread has both.
void add_copy(Later copy);
void commit_copies();
void wait_for_copies(std::size_t most_pending);

/// All lanes of a warp come together; compute gets their operands, and runs once.
template <class Lane, class Compute>
void collective(const char* instruction, Lane& mine, Compute&& compute) {
  Warp& w = warp();
  if (w.exchange.arrived == 0) w.instruction = instruction;
  if (w.instruction != instruction) {
    throw std::logic_error(std::string("emulator: lanes of a warp are at ") + w.instruction +
                           " and " + instruction);
  }
  w.lanes[static_cast<std::size_t>(lane())] = &mine;
  const std::uint32_t generation = w.exchange.generation;
  if (w.exchange.arrived == kWarp - 1) {
    std::array<Lane*, kWarp> all;
    for (int i = 0; i < kWarp; ++i) all[i] = static_cast<Lane*>(w.lanes[i]);
    compute(all);
  }
  w.exchange.arrive(kWarp);
  wait_while(instruction, w.exchange.generation, generation);
}

/// The running CTA's barrier `id`.
void arrive(int id, int threads);
void sync(int id, int threads);

TransactionBarrier& transaction_barrier(const void* address, int rank = -1);
/// The place of `address` in another CTA of the cluster.
unsigned char* in_cta(const void* address, int rank);

struct LaunchShape {
  Index grid{1, 1, 1};
  unsigned threads = 1, cluster = 1;
  std::size_t shared_bytes = 0;
};

/// Runs `kernel` for all threads of the grid. Throws std::logic_error on a deadlock or misuse.
void run(const LaunchShape& shape, const std::function<void()>& kernel);

}  // namespace mpq::emulator

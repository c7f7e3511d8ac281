// Runs the blocks of a launch in one operating-system thread. Each CUDA thread is a fiber; for
// ThreadSanitizer switches between fibers order nothing, only barriers do. The blocks of a cluster
// run concurrently, clusters one after another.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "async_copies.h"
#include "fiber.h"
#include "schedule.h"
#include "shared_memory.h"
#include "site.h"

namespace powergrad::host_cuda {

struct Launch {
  dim3 grid;
  dim3 block;
  unsigned cluster_size;
  std::size_t shared_memory;
  std::function<void()> kernel;  // the kernel with its arguments
};

inline constexpr int kEveryLane = -1;

struct Shuffle {
  unsigned mask;
  int source;  // kEveryLane: a vote, whose result has a bit for each
  uint64_t value;
  uint64_t result;
};

struct Thread {
  enum class State { ready, waiting, shuffling, exited };

  Fiber* fiber;
  Place place;
  uint3 index;
  State state = State::ready;
  Site site;  // while it is not ready
  Shuffle shuffle;
  AsyncCopies copies;
};

// A barrier of `count` adjacent threads: a warp, a block or a cluster.
struct Barrier {
  Thread* threads;
  int count;
  int waiting = 0;
  int exited = 0;
  Site site{};       // of those that wait
  bool odd = false;  // how often it was passed
  char tokens[2]{};  // alternate, so that a fast thread's next arrival is not taken for this one
};

struct Block {
  uint3 index;
  Barrier barrier;
  std::vector<Barrier> warps;
  bool begun = false;
  char end_token{};
};

// Consecutive clusters alternate between two of these, so that ThreadSanitizer takes them for
// concurrent, as they are on a device. Each is reused by the next cluster but one.
struct Cluster {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<SharedMemory> memories;
  std::vector<Thread> threads;  // block after block
  std::vector<Block> blocks;
  Barrier barrier{};
  char token{};
};

class Machine {
 public:
  // For the host. A launch ends at the first error, which failure() describes.
  cudaError_t run(const Launch& launch, uint64_t seed, std::optional<uint64_t> only_block);
  const std::string& failure() const { return failure_; }
  void set_failure(std::string text) { failure_ = std::move(text); }

  void* host_identity() const { return host_.identity(); }

  // For the threads of a kernel.
  void synchronise_warp(Site site);
  void synchronise_block(Site site);
  void synchronise_cluster(Site site);
  void copy_async(void* to, const void* from, std::size_t size, Site site);
  AsyncCopies& copies() { return current_->copies; }
  int lane() const { return current_->place.lane; }
  uint64_t shuffle(unsigned mask, uint64_t value, int source, Site site);
  unsigned block_rank() const { return current_->place.block; }
  unsigned cluster_size() const { return launch_->cluster_size; }
  SharedMemory& shared_memory() { return cluster_->memories[block_rank()]; }
  SharedMemory& shared_memory_of(unsigned rank) { return cluster_->memories[rank]; }
  [[noreturn, gnu::format(printf, 3, 4)]] void fail(cudaError_t error, const char* format, ...);

 private:
  void prepare(Cluster& cluster, unsigned threads);
  void abandon(Cluster& cluster);
  void run_cluster(uint64_t first_block);
  void place_block(unsigned rank, uint64_t block);
  static void enter_thread();
  void end_thread();
  void run_next(Fiber& left);
  void suspend(Thread& thread, Thread::State state, Site site);
  void wake(Thread& thread);
  void describe_deadlock();

  void meet(Barrier& barrier, Site site);
  void leave(Barrier& barrier);
  bool all_shuffle(const Thread& thread);
  static uint64_t votes(const Barrier& warp, unsigned mask);
  void finish_shuffle(Barrier& warp, unsigned mask);

  Block& block_of(const Thread& thread) { return cluster_->blocks[thread.place.block]; }
  Barrier& warp_of(const Thread& thread) { return block_of(thread).warps[thread.place.warp]; }

  const Launch* launch_ = nullptr;
  Schedule schedule_{0};
  Cluster clusters_[2];
  Cluster* cluster_ = nullptr;  // the one that runs
  Thread* current_ = nullptr;
  Fiber host_;
  cudaError_t error_ = cudaSuccess;
  std::string failure_;
};

Machine& machine();

}  // namespace powergrad::host_cuda

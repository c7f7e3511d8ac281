#include "machine.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <tuple>

#include "kernel_indices.h"
#include "sanitizers.h"

namespace powergrad::host_cuda {
namespace {

// Sanitizers report on the stack of the faulty thread.
constexpr std::size_t kStackSize = 256 * 1024;

// Larger clusters do not alternate: ThreadSanitizer takes a millisecond to create a thread, and has
// at most 8128.
constexpr unsigned kThreadsToAlternate = 1024;

unsigned volume(const dim3& size) { return size.x * size.y * size.z; }

uint3 unflatten(uint64_t index, const dim3& size) {
  return {static_cast<unsigned>(index % size.x), static_cast<unsigned>(index / size.x % size.y),
          static_cast<unsigned>(index / size.x / size.y)};
}

}  // namespace

Machine& machine() {
  static Machine instance;
  return instance;
}

cudaError_t Machine::run(const Launch& launch, uint64_t seed, std::optional<uint64_t> only_block) {
  launch_ = &launch;
  schedule_ = Schedule(seed);
  error_ = cudaSuccess;
  failure_.clear();
  running.grid_size = launch.grid;
  running.block_size = launch.block;
  const unsigned threads = launch.cluster_size * volume(launch.block);
  const uint64_t alternating = threads <= kThreadsToAlternate ? 2 : 1;
  for (uint64_t i = 0; i < alternating; ++i) prepare(clusters_[i], threads);
  const uint64_t blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  const uint64_t count = only_block ? 1 : blocks / launch.cluster_size;
  for (uint64_t done = 0; done < count && error_ == cudaSuccess; ++done) {
    const uint64_t index =
        only_block ? *only_block / launch.cluster_size : schedule_.cluster(done, count);
    cluster_ = &clusters_[done % alternating];
    run_cluster(index * launch.cluster_size);
  }
  if (error_ != cudaSuccess) abandon(*cluster_);
  for (Cluster& cluster : clusters_) {
    acquire(&cluster.token);
    cluster.memories.clear();
  }
  return error_;
}

void Machine::prepare(Cluster& cluster, unsigned threads) {
  while (cluster.fibers.size() < threads) {
    cluster.fibers.push_back(std::make_unique<Fiber>(kStackSize));
  }
  for (unsigned rank = 0; rank < launch_->cluster_size; ++rank) {
    cluster.memories.emplace_back(launch_->shared_memory);
  }
  release(&cluster.token);
}

// Of a cluster whose threads have not all ended.
void Machine::abandon(Cluster& cluster) {
  for (const auto& fiber : cluster.fibers) {
    fiber->abandon();
    assume_identity(fiber->identity());
    release(&cluster.token);
  }
  assume_identity(host_.identity());
}

void Machine::run_cluster(uint64_t first_block) {
  const unsigned block_threads = volume(launch_->block);
  cluster_->blocks.clear();
  cluster_->threads.resize(launch_->cluster_size * block_threads);
  cluster_->barrier = {cluster_->threads.data(), static_cast<int>(cluster_->threads.size())};
  for (unsigned rank = 0; rank < launch_->cluster_size; ++rank) {
    place_block(rank, first_block + rank);
  }
  run_next(host_);
  if (error_ == cudaSuccess && cluster_->barrier.exited < cluster_->barrier.count) {
    describe_deadlock();
  }
}

void Machine::place_block(unsigned rank, uint64_t index) {
  const int count = static_cast<int>(volume(launch_->block));
  Thread* threads = &cluster_->threads[rank * count];
  Block& block = cluster_->blocks.emplace_back();
  block.index = unflatten(index, launch_->grid);
  block.barrier = {threads, count};
  for (int first = 0; first < count; first += kWarpSize) {
    block.warps.push_back({threads + first, std::min(kWarpSize, count - first)});
  }
  for (int i = 0; i < count; ++i) {
    Thread& thread = threads[i];
    thread.fiber = cluster_->fibers[rank * count + i].get();
    thread.fiber->restart(enter_thread);
    thread.place = {static_cast<int>(rank), i / kWarpSize, i % kWarpSize};
    thread.index = unflatten(i, launch_->block);
    thread.state = Thread::State::ready;
    thread.copies.forget();
    schedule_.add(thread.place);
  }
  cluster_->memories[rank].close();
}

void Machine::enter_thread() {
  Machine& self = machine();
  acquire(&self.cluster_->token);
  self.launch_->kernel();
  self.end_thread();
}

void Machine::end_thread() {
  Thread& thread = *current_;
  Block& block = block_of(thread);
  if (const Site* site = thread.copies.outstanding()) {
    fail(cudaErrorLaunchFailure, "a thread exits without having waited for its copy at %s:%d",
         site->file, site->line);
  }
  suspend(thread, Thread::State::exited, Site::here());
  Barrier& warp = warp_of(thread);
  for (int lane = 0; lane < warp.count; ++lane) {
    // Fails if that lane waits for this one.
    if (warp.threads[lane].state == Thread::State::shuffling) all_shuffle(warp.threads[lane]);
  }
  leave(warp);
  leave(block.barrier);
  leave(cluster_->barrier);
  release(&block.end_token);
  if (block.barrier.exited == block.barrier.count) {
    acquire(&block.end_token);
    cluster_->memories[thread.place.block].close_for_good();
    release(&cluster_->token);
  }
  run_next(*thread.fiber);
}

void Machine::copy_async(void* to, const void* from, std::size_t size, Site site) {
  const auto is_aligned = [&](const void* address) {
    return reinterpret_cast<std::uintptr_t>(address) % size == 0;
  };
  auto* last = static_cast<unsigned char*>(to) + size - 1;
  const char* wrong = nullptr;
  if (!shared_memory().contains(to) || !shared_memory().contains(last)) {
    wrong = "does not lead into this block's shared memory";
  } else if (!is_aligned(to)) {
    wrong = "leads to an address that is not a multiple of its size";
  } else if (!is_aligned(from)) {
    wrong = "is from an address that is not a multiple of its size";
  } else if (is_poisoned(from, size)) {
    wrong = "reads what it may not";
  }
  if (wrong != nullptr) {
    fail(cudaErrorIllegalAddress, "the copy of %d bytes at %s:%d %s", static_cast<int>(size),
         site.file, site.line, wrong);
  }
  current_->copies.issue(to, from, size, schedule_.lands_early(), site);
}

// Switches from `left` to the next thread, or to the host if no thread is ready.
void Machine::run_next(Fiber& left) {
  const std::optional<Place> place = schedule_.choose();
  if (!place) return left.switch_to(host_);
  Block& block = cluster_->blocks[place->block];
  current_ = &block.warps[place->warp].threads[place->lane];
  running.thread = current_->index;
  running.block = block.index;
  if (!block.begun) {
    block.begun = true;
    cluster_->memories[place->block].open();
  }
  if (current_->fiber != &left) left.switch_to(*current_->fiber);
}

void Machine::suspend(Thread& thread, Thread::State state, Site site) {
  thread.state = state;
  thread.site = site;
  schedule_.remove(thread.place);
}

void Machine::wake(Thread& thread) {
  thread.state = Thread::State::ready;
  schedule_.add(thread.place);
}

// The thread's fiber never runs again: for ThreadSanitizer the host does what follows.
void Machine::fail(cudaError_t error, const char* format, ...) {
  assume_identity(host_.identity());
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  const uint3& thread = running.thread;
  const uint3& block = running.block;
  char where[128];
  std::snprintf(where, sizeof(where), " [block (%u, %u, %u), thread (%u, %u, %u)]", block.x,
                block.y, block.z, thread.x, thread.y, thread.z);
  error_ = error;
  failure_ = std::string(text) + where;
  current_->fiber->switch_to(host_);
  __builtin_unreachable();
}

void Machine::describe_deadlock() {
  std::map<std::tuple<int, std::string, int>, int> waiting;
  int exited = 0;
  for (const Thread& thread : cluster_->threads) {
    if (thread.state == Thread::State::exited) {
      ++exited;
    } else {
      ++waiting[{thread.place.block, thread.site.file, thread.site.line}];
    }
  }
  error_ = cudaErrorLaunchTimeout;
  failure_ = "deadlock: " + std::to_string(exited) + " threads have exited";
  for (const auto& [where, count] : waiting) {
    const auto& [block, file, line] = where;
    failure_ += "; " + std::to_string(count) + " of block " + std::to_string(block) + " wait at " +
                file + ':' + std::to_string(line);
  }
}

}  // namespace powergrad::host_cuda

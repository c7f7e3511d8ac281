// Barriers, shuffles and votes.
#include "machine.h"
#include "sanitizers.h"

namespace powergrad::host_cuda {

void Machine::synchronise_warp(Site site) { meet(warp_of(*current_), site); }
void Machine::synchronise_block(Site site) { meet(block_of(*current_).barrier, site); }
void Machine::synchronise_cluster(Site site) { meet(cluster_->barrier, site); }

void Machine::meet(Barrier& barrier, Site site) {
  Thread& thread = *current_;
  if (barrier.exited > 0) {
    fail(cudaErrorLaunchFailure, "%d of %d threads exited before the barrier at %s:%d",
         barrier.exited, barrier.count, site.file, site.line);
  }
  if (barrier.waiting == 0) barrier.site = site;
  if (site != barrier.site) {
    fail(cudaErrorLaunchFailure, "threads of one barrier meet at %s:%d and %s:%d",
         barrier.site.file, barrier.site.line, site.file, site.line);
  }
  char* token = &barrier.tokens[barrier.odd ? 1 : 0];
  release(token);
  suspend(thread, Thread::State::waiting, site);
  if (++barrier.waiting == barrier.count) {
    barrier.waiting = 0;
    barrier.odd = !barrier.odd;
    for (int i = 0; i < barrier.count; ++i) wake(barrier.threads[i]);
  }
  run_next(*thread.fiber);
  acquire(token);
}

void Machine::leave(Barrier& barrier) {
  ++barrier.exited;
  if (barrier.waiting == 0) return;
  fail(cudaErrorLaunchFailure, "a thread exits while %d of %d wait at the barrier at %s:%d",
       barrier.waiting, barrier.count, barrier.site.file, barrier.site.line);
}

// The last lane to arrive computes all results. It orders no memory accesses.
uint64_t Machine::shuffle(unsigned mask, uint64_t value, int source, Site site) {
  Thread& thread = *current_;
  if ((mask >> thread.place.lane & 1) == 0) {
    fail(cudaErrorLaunchFailure, "the shuffle at %s:%d is called by lane %d, not in its mask %08x",
         site.file, site.line, thread.place.lane, mask);
  }
  thread.shuffle = {mask, source, value, 0};
  suspend(thread, Thread::State::shuffling, site);
  if (all_shuffle(thread)) finish_shuffle(warp_of(thread), mask);
  run_next(*thread.fiber);
  return thread.shuffle.result;
}

// Whether every lane in the thread's mask has arrived, each with the same mask at the same line.
bool Machine::all_shuffle(const Thread& thread) {
  const Barrier& warp = warp_of(thread);
  const Site& site = thread.site;
  bool all = true;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((thread.shuffle.mask >> lane & 1) == 0) continue;
    if (lane >= warp.count || warp.threads[lane].state == Thread::State::exited) {
      fail(cudaErrorLaunchFailure, "lane %d, in the mask of the shuffle at %s:%d, has exited", lane,
           site.file, site.line);
    }
    const Thread& other = warp.threads[lane];
    if (other.state != Thread::State::shuffling) {
      all = false;
    } else if (other.site != site || other.shuffle.mask != thread.shuffle.mask) {
      fail(cudaErrorLaunchFailure,
           "lanes meet in different shuffles: mask %08x at %s:%d, mask %08x at %s:%d",
           other.shuffle.mask, other.site.file, other.site.line, thread.shuffle.mask, site.file,
           site.line);
    }
  }
  return all;
}

// A bit for each lane of the mask whose vote is true.
uint64_t Machine::votes(const Barrier& warp, unsigned mask) {
  uint64_t result = 0;
  for (int lane = 0; lane < warp.count; ++lane) {
    if ((mask >> lane & 1) != 0) result |= warp.threads[lane].shuffle.value << lane;
  }
  return result;
}

void Machine::finish_shuffle(Barrier& warp, unsigned mask) {
  for (int lane = 0; lane < warp.count; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    Thread& thread = warp.threads[lane];
    const int source = thread.shuffle.source;
    if (source == kEveryLane) {
      thread.shuffle.result = votes(warp, mask);
      wake(thread);
      continue;
    }
    if ((mask >> source & 1) == 0) {
      fail(cudaErrorLaunchFailure, "the shuffle at %s:%d reads lane %d, not in its mask %08x",
           thread.site.file, thread.site.line, source, mask);
    }
    thread.shuffle.result = warp.threads[source].shuffle.value;
    wake(thread);
  }
}

}  // namespace powergrad::host_cuda

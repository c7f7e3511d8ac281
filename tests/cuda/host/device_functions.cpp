#include "device_functions.h"

#include "machine.h"

namespace powergrad::host_cuda {

void synchronise_warp(Site site) { machine().synchronise_warp(site); }
void synchronise_block(Site site) { machine().synchronise_block(site); }
void cluster_sync(Site site) { machine().synchronise_cluster(site); }

// Lanes are in segments of `width`.
uint64_t shuffle(unsigned mask, uint64_t value, int source, int width, Site site) {
  const int segment = machine().lane() & ~(width - 1);
  return machine().shuffle(mask, value, segment | (source & (width - 1)), site);
}

uint64_t shuffle_xor(unsigned mask, uint64_t value, int lanes, int width, Site site) {
  const int lane = machine().lane();
  const int last = lane | (width - 1);
  const int source = lane ^ lanes;
  return machine().shuffle(mask, value, source <= last ? source : lane, site);
}

unsigned vote(unsigned mask, bool holds, Site site) {
  const uint64_t value = holds ? 1 : 0;
  return static_cast<unsigned>(machine().shuffle(mask, value, kEveryLane, site));
}

unsigned char* dynamic_shared_memory() { return machine().shared_memory().begin(); }
unsigned cluster_rank() { return machine().block_rank(); }
unsigned cluster_size() { return machine().cluster_size(); }

void* map_address_to_rank(const void* address, unsigned rank) {
  if (rank >= cluster_size()) {
    machine().fail(cudaErrorIllegalAddress, "map_to_rank: there is no block %u in a cluster of %u",
                   rank, cluster_size());
  }
  const SharedMemory& own = machine().shared_memory();
  if (!own.contains(address)) {
    machine().fail(cudaErrorIllegalAddress,
                   "map_to_rank: the pointer is not into this block's shared memory");
  }
  const auto offset = static_cast<const unsigned char*>(address) - own.begin();
  return machine().shared_memory_of(rank).begin() + offset;
}

void copy_async_bytes(void* shared, const void* global, std::size_t size, Site site) {
  machine().copy_async(shared, global, size, site);
}
void commit_copies() { machine().copies().commit(); }
void wait_for_copies_but(int pending) {
  machine().copies().wait(static_cast<std::size_t>(pending));
}

void device_assertion_failed(const char* what, const char* file, int line) {
  machine().fail(cudaErrorAssert, "%s:%d: device assertion failed: %s", file, line, what);
}

}  // namespace powergrad::host_cuda

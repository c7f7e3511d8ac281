// How the rows of a call are shared out among threads: the one place where that is chosen.
//
// A block, or a cluster of them, copies what it works on into shared memory and goes over it there:
// a row with neighbouring classes (`rows`), a run of short ones (`chunks`), or neighbouring
// positions whose classes lie a stride apart (`tiles`; segmentation). It is not persistent: several
// blocks on a multiprocessor overlap one's loading with another's arithmetic and a third's stores,
// which was faster everywhere than a loop with stages.
//
// `lanes` threads of a warp and `warps` warps of each of `parts` blocks are on the same row. Each
// has slots in shared memory: 16 bytes of neighbouring classes in rows, one class in chunks, one
// class of one or four positions in tiles. What does not fit comes in several rounds, and is read
// again for the gradient.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <initializer_list>

#include "powergrad.h"

namespace powergrad {

inline constexpr int kWarp = 32;
inline constexpr int kMostThreads = 512;    // of a block
inline constexpr int kVectorBytes = 16;     // of one transaction of a thread, at a multiple of 16
inline constexpr int kPortableCluster = 8;  // more blocks have to be asked for
inline constexpr int kLargestCluster = 16;
inline constexpr int kMostPositions = 4;  // of a thread, in tiles

enum class Layout { rows, chunks, tiles };

// A tensor of a call, as far as the layout depends on it; none where `data` is null.
struct Extent {
  const void* data;
  Strides strides;
};

struct Arrangement {
  Layout layout;
  int positions;  // tiles: copied at once, 1 or kMostPositions
};

// For a call's tensors of the logits' type, the logits first.
Arrangement arrangement_of(const Shape& shape, DataType dtype,
                           std::initializer_list<Extent> tensors);

// What a kernel does, as far as sharing out depends on it.
struct Work {
  DataType dtype;
  int positions;               // of a slot of a tile
  int tensors = 1;             // in slots side by side
  bool is_map = false;         // nobody meets: each part of a row is on its own
  bool is_persistent = false;  // a grid that may find nothing to do, and had better be small
  int maxima_bytes = 0;        // what a row's threads of a warp bring to a meeting about maxima,
  int sums_bytes = 0;          // to one about sums,
  int state_bytes = 0;         // and its block to the cluster's
};

// Passed to the kernels. Lanes and warps are powers of two, as kernels have to divide by them.
struct Plan {
  int64_t rows;       // of the call
  int units;          // blocks, or clusters, that all rows take
  int tiles;          // of one outer index
  int threads;        // of a block
  int lanes_bits;     // threads of one warp on the same row
  int warps_bits;     // warps of one block on the same row
  int parts;          // blocks on the same row
  bool is_cluster;    // they are a cluster, and merge what they found
  int steps;          // slots of a thread
  int rounds;         // times that they are filled
  int scratch_bytes;  // of shared memory, where the block's warps meet; slots follow
  int tensor_bytes;   // of the slots of one tensor
  int blocks;         // of the grid

  POWERGRAD_FUNCTION int lanes() const { return 1 << lanes_bits; }
  POWERGRAD_FUNCTION int warps() const { return 1 << warps_bits; }
  // Of a block's threads on the same row.
  POWERGRAD_FUNCTION int row_bits() const { return lanes_bits + warps_bits; }

  // Room for one meeting of a block's warps.
  POWERGRAD_FUNCTION int meeting_bytes(int bytes_of_row) const {
    return warps_bits == 0 ? 0 : (kWarp >> lanes_bits) * (threads / kWarp) * bytes_of_row;
  }
};

// Of a block on the current device.
cudaError_t most_shared_bytes(int* bytes);

// For `kernel` on the current device, which may run code of the kernel for an older one.
// `largest_cluster`: blocks of a cluster, at most.
cudaError_t make_plan(Layout layout, const Shape& shape, const Work& work, const void* kernel,
                      int largest_cluster, Plan* plan);

}  // namespace powergrad

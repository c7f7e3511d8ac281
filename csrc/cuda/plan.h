// How the rows of a call are divided among threads: the only place where that is decided.
//
// A block, or a cluster of blocks, copies its rows into shared memory and makes all passes over
// them there. Blocks are not persistent: several on a multiprocessor overlap one's loads with
// another's arithmetic and a third's stores, which was faster everywhere than a persistent loop
// with stages.
//
// `lanes` threads of a warp and `warps` warps of each of `blocks_per_row` blocks work on the same
// row. Each thread owns vectors in shared memory; what a vector holds depends on the layout. Rows
// that do not fit are loaded in several passes, and loaded again for the gradient.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <initializer_list>

#include "powergrad.h"

namespace powergrad {

inline constexpr int kWarp = 32;
inline constexpr int kMostThreads = 512;    // of a block
inline constexpr int kVectorBytes = 16;     // the widest load or store of a thread
inline constexpr int kPortableCluster = 8;  // larger clusters need an opt-in
inline constexpr int kLargestCluster = 16;
inline constexpr int kMostPositions = 4;  // of a thread, in strided rows

enum class RowLayout {
  contiguous,  // a row's classes are adjacent; a vector is 16 bytes of them
  packed,      // short contiguous rows without gaps between them; a vector is one class, or two
  strided,     // classes are a stride apart, rows adjacent (segmentation); a vector is one class
               // of one or kMostPositions rows
};

// What the layout depends on of a tensor. Tensors with null `data` are not there.
struct Extent {
  const void* data;
  Strides strides;
};

struct LayoutChoice {
  RowLayout layout;
  int positions;  // rows of a thread: 1, or kMostPositions in strided rows
};

// For a call's tensors of the logits' type, the logits first.
LayoutChoice choose_layout(const Shape& shape, DataType dtype,
                           std::initializer_list<Extent> tensors);

// What the plan depends on of a kernel.
struct Work {
  DataType dtype;
  int positions;                // of a vector of strided rows
  int classes = 1;              // of a vector of packed rows
  int tensors = 1;              // in shared memory
  bool is_elementwise = false;  // no cross-thread reduction
  bool is_persistent = false;  // a small grid whose blocks loop, for a kernel that may return early
  int maxima_bytes = 0;        // a thread's share of a row in the block reduction of maxima,
  int sums_bytes = 0;          // in that of sums,
  int state_bytes = 0;         // and a block's share in the cluster reduction
};

// Passed to the kernels. Lanes and warps are powers of two, since kernels divide by them.
struct Plan {
  int64_t rows;            // of the call
  int row_groups;          // blocks, or clusters, that all rows take
  int groups_per_outer;    // strided rows: blocks for one outer index
  int threads;             // of a block
  int lanes_log2;          // threads of one warp on the same row
  int warps_log2;          // warps of one block on the same row
  int blocks_per_row;      // blocks on the same row
  bool is_cluster;         // these blocks are a cluster, and reduce together
  int vectors_per_thread;  // in one pass
  int passes;              // over global memory
  int scratch_bytes;       // of shared memory for reductions; the tensors' vectors follow
  int tensor_bytes;        // of the vectors of one tensor
  int blocks;              // of the grid

  POWERGRAD_FUNCTION int lanes() const { return 1 << lanes_log2; }
  POWERGRAD_FUNCTION int warps() const { return 1 << warps_log2; }
  // A block's threads on the same row.
  POWERGRAD_FUNCTION int row_threads_log2() const { return lanes_log2 + warps_log2; }

  // Scratch of one block reduction.
  POWERGRAD_FUNCTION int reduction_bytes(int bytes_of_row) const {
    return warps_log2 == 0 ? 0 : (kWarp >> lanes_log2) * (threads / kWarp) * bytes_of_row;
  }
};

// The most shared memory that a block of the current device can have.
cudaError_t most_shared_bytes(int* bytes);

// For `kernel` on the current device, which may run code compiled for an older one. Clusters have
// at most `largest_cluster` blocks.
cudaError_t make_plan(RowLayout layout, const Shape& shape, const Work& work, const void* kernel,
                      int largest_cluster, Plan* plan);

}  // namespace powergrad

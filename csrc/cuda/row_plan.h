// How the rows of a call are shared out among threads: the one place where a strategy is chosen.
//
// A row is cut into packs: the 16-byte vectors of memory that cover it, where its classes are
// neighbours, or single classes where neighbouring rows are (segmentation layouts, whose threads
// then run across rows). `lanes` threads share the packs of a row evenly: lane l takes the packs
// l, l + lanes, l + 2 lanes, ...
//
// Rows with neighbouring classes, by how many packs they have:
//   a few          several rows per warp; lanes meet by shuffles
//   up to 512      a warp per row
//   up to 4096     a block per row; warps meet in shared memory
//   above          a cluster of up to 8 blocks per row, which meet in distributed shared memory
//                  (sm_90 and later; before, still one block)
// A kernel that needs a row twice keeps it in shared memory between its passes, so that it is read
// from device memory once: 8 blocks' shared memory hold some 900,000 classes of 2 bytes on sm_90
// (227 KB a block), 400,000 on sm_120 (99 KB). What does not fit is read again, backwards, to find
// in the L2 cache what was read last.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "powergrad.h"

namespace powergrad {

inline constexpr int kWarp = 32;
inline constexpr int kVectorBytes = 16;  // of one transaction of a thread, at a multiple of 16

// Passed to the kernels.
struct RowPlan {
  int64_t rows;
  int packs;           // of a row; one more than needed where rows start at any address
  int threads;         // of a block
  int lanes;           // threads of one block on the same row
  int parts;           // blocks on the same row
  bool is_cluster;     // they are a cluster, and merge what they found
  int steps;           // packs of one thread, at most
  bool is_resident;    // packs stay in shared memory from the first pass to the second
  int scratch_bytes;   // of shared memory, where the block's threads meet; packs follow
  int64_t row_blocks;  // blocks, or clusters of them, that all rows take

  int shared_bytes(int pack_bytes) const {
    return scratch_bytes + (is_resident ? steps * threads * pack_bytes : 0);
  }
};

// What a kernel does with a row.
enum class RowWork {
  reduce,          // reads it once
  reduce_and_map,  // reads it, meets the other lanes, and comes back to it
  map,             // reads it once, without meeting
};

// For `kernel` on the current device, which may run code of the kernel for an older one.
// `state_bytes`: what one thread brings to a meeting.
cudaError_t plan_rows(const Shape& shape, const Strides& strides, DataType dtype, RowWork work,
                      int state_bytes, const void* kernel, RowPlan* plan);

}  // namespace powergrad

// Kernels to test the host layer with: right, and with each of the bugs that it is there to find.
#pragma once

#include <cstdint>

#include "host_cuda.h"

namespace powergrad::test {

enum class Bug {
  none,
  missing_warp_barrier,
  missing_block_barrier,
  barriers_at_two_lines,
  exit_before_barrier,
  exit_during_barrier,
  exit_before_shuffle,
  shuffle_in_two_branches,
  caller_outside_mask,
  source_outside_mask,
  missing_first_cluster_barrier,
  missing_last_cluster_barrier,
  rank_outside_cluster,
  peer_of_global_memory,
  shared_memory_past_end,
  shared_memory_unwritten,
  read_past_end,
  write_past_end,
  offset_of_32_bits,
  write_by_all_threads,
  write_to_neighbours_row,
  barrier_against_barrier,
  assertion,
  read_before_wait,
  neighbours_copy_without_barrier,
  wait_for_too_few,
  missing_commit,
  missing_wait,
  copy_misaligned,
  copy_past_end,
  copy_outside_shared_memory,
  one_place_for_exchanges,
};

// sums[row] = factor * (the sum of a row).
struct RowSums {
  Bug bug;
  const float* rows;
  int stride;
  int columns;
  float factor;
  float* sums;
  int count;  // of sums
};

inline constexpr unsigned kAllLanes = 0xffffffff;

__device__ inline float warp_sum(Bug bug, float value) {
  const unsigned lane = threadIdx.x % 32;
  unsigned mask = kAllLanes;
  if (bug == Bug::caller_outside_mask) mask = kAllLanes << 1;
  if (bug == Bug::source_outside_mask) {
    if (lane >= 16) return value;
    mask = 0xffff;
  }
  if (bug == Bug::shuffle_in_two_branches && lane < 16) {
    value += __shfl_xor_sync(mask, value, 16);
  } else {
    value += __shfl_xor_sync(mask, value, 16);
  }
  for (int lanes = 8; lanes > 0; lanes /= 2) value += __shfl_xor_sync(mask, value, lanes);
  return value;
}

// Leaves the block's sum at shared[warps].
__device__ inline void block_sum(const RowSums& p, float value, float* shared) {
  const unsigned lane = threadIdx.x % 32;
  const unsigned warp = threadIdx.x / 32;
  const unsigned warps = blockDim.x / 32;
  value = warp_sum(p.bug, value);
  if (lane == 31) shared[warp] = value;
  if (p.bug != Bug::missing_warp_barrier) __syncwarp();
  if (lane == 0) shared[warp] *= p.factor;

  if (p.bug == Bug::barriers_at_two_lines && warp == 0) {
    __syncthreads();
  } else if (p.bug == Bug::barrier_against_barrier && warp == 0) {
    host_cuda::cluster_sync();
  } else if (p.bug != Bug::missing_block_barrier) {
    __syncthreads();
  }
  if (warp > 0) return;
  float total = warp_sum(p.bug, lane < warps ? shared[lane] : 0.0f);
  if (lane > 0) return;
  if (p.bug == Bug::shared_memory_unwritten) total += shared[warps];
  shared[warps + (p.bug == Bug::shared_memory_past_end ? 1 : 0)] = total;
}

// A cluster for each row; warps + 1 floats of shared memory.
__global__ void __launch_bounds__(1024) row_sums(RowSums p) {
  const Bug bug = p.bug;
  const unsigned thread = threadIdx.x;
  const unsigned rank = host_cuda::cluster_rank();
  const unsigned size = host_cuda::cluster_size();
  const int row = static_cast<int>(blockIdx.x / size);
  if (bug == Bug::exit_before_shuffle && thread == 31) return;
  if (bug == Bug::exit_before_barrier && thread < 32) return;
  if (bug == Bug::exit_during_barrier && thread >= 32) return;

  const int64_t begin =
      bug == Bug::offset_of_32_bits ? row * p.stride : row * static_cast<int64_t>(p.stride);
  const int end = p.columns + (bug == Bug::read_past_end ? 1 : 0);
  float value = 0.0f;
  for (int i = static_cast<int>(rank * blockDim.x + thread); i < end;
       i += static_cast<int>(size * blockDim.x)) {
    value += __ldcs(p.rows + begin + i);
  }

  float* shared = reinterpret_cast<float*>(host_cuda::dynamic_shared_memory());
  block_sum(p, value, shared);
  if (bug == Bug::assertion && thread == 7) {
    host_cuda::device_assertion_failed("thread != 7", __FILE__, __LINE__);
  }
  if (bug != Bug::missing_first_cluster_barrier) host_cuda::cluster_sync();
  if (rank == 0 && thread < 32) {
    float* total = shared + blockDim.x / 32;
    if (bug == Bug::peer_of_global_memory) total = p.sums;
    const unsigned peers = bug == Bug::rank_outside_cluster ? size + 1 : size;
    value = warp_sum(bug, thread < peers ? *host_cuda::map_to_rank(total, thread) : 0.0f);
    int place = row;
    if (bug == Bug::write_past_end && row == p.count - 1) place = p.count;
    if (bug == Bug::write_to_neighbours_row) place = row / 2;
    if (thread == 0 || bug == Bug::write_by_all_threads) p.sums[place] = value;
  }
  if (bug != Bug::missing_last_cluster_barrier) host_cuda::cluster_sync();
}

// sums[i]: of the kCopied floats of thread i and of its right neighbour, which are copied in two
// groups. A block; kCopied floats of shared memory a thread.
inline constexpr int kCopied = 8;
__global__ void copied_sums(Bug bug, const float* rows, float* sums) {
  const unsigned thread = threadIdx.x;
  const unsigned neighbour = (thread + 1) % blockDim.x;
  float* shared = reinterpret_cast<float*>(host_cuda::dynamic_shared_memory());
  float* own = shared + thread * kCopied;
  const float* from = rows + thread * kCopied;
  if (bug == Bug::copy_misaligned) ++from;
  if (bug == Bug::copy_past_end) from += blockDim.x * kCopied;
  host_cuda::copy_async<16>(bug == Bug::copy_outside_shared_memory ? sums : own, from);
  host_cuda::commit_copies();
  host_cuda::copy_async<8>(own + 4, from + 4);
  host_cuda::copy_async<4>(own + 6, from + 6);
  host_cuda::copy_async<4>(own + 7, from + 7);
  if (bug != Bug::missing_commit) host_cuda::commit_copies();
  if (bug == Bug::missing_wait) return;
  float sum = 0.0f;
  if (bug == Bug::read_before_wait) sum -= own[0] - own[0];
  host_cuda::wait_for_copies<1>();
  for (int i = 0; i < 4; ++i) sum += own[i];
  if (bug != Bug::wait_for_too_few) host_cuda::wait_for_copies<0>();
  for (int i = 4; i < kCopied; ++i) sum += own[i];
  if (bug != Bug::neighbours_copy_without_barrier) __syncthreads();
  for (int i = 0; i < kCopied; ++i) sum += shared[neighbour * kCopied + i];
  if (bug == Bug::wait_for_too_few) host_cuda::wait_for_copies<0>();
  sums[thread] = sum;
}

// sums[i]: of 0, 1, 2 and 3, exchanged through two alternating places with one barrier each. A
// block; two floats of shared memory.
__global__ void alternating_exchanges(Bug bug, float* sums) {
  float* shared = reinterpret_cast<float*>(host_cuda::dynamic_shared_memory());
  float total = 0.0f;
  for (int turn = 0; turn < 4; ++turn) {
    const int place = bug == Bug::one_place_for_exchanges ? 0 : turn % 2;
    if (threadIdx.x == static_cast<unsigned>(turn)) shared[place] = static_cast<float>(turn);
    __syncthreads();
    total += shared[place];
  }
  sums[threadIdx.x] = total;
}

// Counts at visits[index of the block][index of the thread], both along x first.
__global__ void count_visits(int* visits) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  ++visits[block * blockDim.x * blockDim.y * blockDim.z + thread];
}

// By one warp; true for each lane that got what it should.
__global__ void check_shuffles(bool* right) {
  const int lane = static_cast<int>(threadIdx.x);
  const double large = lane + 0.5;
  const int64_t far = (int64_t{1} << 40) + lane;
  right[lane] = __shfl_xor_sync(kAllLanes, large, 5) == (lane ^ 5) + 0.5 &&
                __shfl_sync(kAllLanes, far, 9) == (int64_t{1} << 40) + 9 &&
                __shfl_sync(kAllLanes, lane, 3, 8) == (lane & ~7) + 3 &&
                __shfl_xor_sync(kAllLanes, -lane, 9, 8) == ((lane & 8) != 0 ? -(lane ^ 9) : -lane);
}

}  // namespace powergrad::test

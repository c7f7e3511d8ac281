// Reductions over the threads on the same rows: by shuffles within a warp, through shared memory
// between the warps of a block, through distributed shared memory between the blocks of a cluster.
// Every thread gets the same bits, and the order of operations never depends on timing.
#pragma once

#include "cuda/numbers.cuh"
#include "cuda/plan.h"

namespace powergrad {
namespace {

struct Addition {
  template <class Scalar>
  __device__ __forceinline__ static Scalar of(Scalar a, Scalar b) {
    return a + b;
  }
};
struct Maximum {
  template <class Scalar>
  __device__ __forceinline__ static Scalar of(Scalar a, Scalar b) {
    return std::fmax(a, b);
  }
};

// A butterfly: both operations commute, so all lanes end with the same bits.
template <class Operation, class Scalar>
__device__ __forceinline__ Scalar warp_reduce(Scalar x) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    x = Operation::of(x, __shfl_xor_sync(kAllLanes, x, distance));
  }
  return x;
}

// Reductions over a block's threads on the same row. Those of a warp are adjacent lanes in
// contiguous and packed rows; in strided rows adjacent lanes are on adjacent rows.
template <class Rows>
class BlockReduction {
 public:
  __device__ explicit BlockReduction(const Plan& plan)
      : plan_(plan),
        lane_stride_(Rows::kLayout == RowLayout::strided ? kWarp >> plan.lanes_log2 : 1) {}

  // `scratch_offset`, in bytes of shared memory: consecutive reductions need different places, as
  // threads may still be reading from that of the one before.
  template <class Operation, int kCount, class Scalar>
  __device__ __forceinline__ void reduce(int scratch_offset, Scalar (&values)[kCount]) const {
    within_warp<Operation>(values);
    if constexpr (kHasWarps) across_warps<Operation>(scratch_offset, values);
  }

 private:
  // Threads of several warps, or a whole one, may be on a row.
  static constexpr bool kHasWarps = Rows::kLayout != RowLayout::packed;

  template <class Operation, int kCount, class Scalar>
  __device__ __forceinline__ void within_warp(Scalar (&values)[kCount]) const {
    if (kHasWarps && plan_.lanes_log2 == 5) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) values[k] = warp_reduce<Operation>(values[k]);
    } else {
      for (int distance = plan_.lanes() / 2 * lane_stride_; distance >= lane_stride_;
           distance /= 2) {
        exchange<Operation>(distance, values);
      }
    }
  }

  template <class Operation, int kCount, class Scalar>
  __device__ __forceinline__ void across_warps(int scratch_offset, Scalar (&values)[kCount]) const {
    if (plan_.warps_log2 == 0) return;
    Scalar* scratch = reinterpret_cast<Scalar*>(dynamic_shared_memory() + scratch_offset);
    const unsigned warp = threadIdx.x / kWarp;
    const unsigned lane = threadIdx.x % kWarp;
    const unsigned columns = kWarp >> plan_.lanes_log2;  // rows of a warp
    const unsigned column = lane & (columns - 1);
    if (lane < columns) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) scratch[(warp * columns + column) * kCount + k] = values[k];
    }
    __syncthreads();
    // Each lane loads the values of one warp, and a butterfly reduces them.
    const unsigned first = warp & ~(plan_.warps() - 1u);
    const unsigned from = first + (lane / columns & (plan_.warps() - 1));
#pragma unroll
    for (int k = 0; k < kCount; ++k) values[k] = scratch[(from * columns + column) * kCount + k];
    for (unsigned distance = plan_.warps() / 2 * columns; distance >= columns; distance /= 2) {
      exchange<Operation>(static_cast<int>(distance), values);
    }
  }

  template <class Operation, int kCount, class Scalar>
  __device__ __forceinline__ static void exchange(int distance, Scalar (&values)[kCount]) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      values[k] = Operation::of(values[k], __shfl_xor_sync(kAllLanes, values[k], distance));
    }
  }

  const Plan& plan_;
  int lane_stride_;  // between lanes on the same row
};

// Over the blocks of a cluster: merge.warp(state) merges the states of a warp's lanes. A kernel
// does this once.
template <class State, class Merge>
__device__ void cluster_reduce(const Plan& plan, int scratch_offset, State& state,
                               const Merge& merge) {
  if (!plan.is_cluster) return;
  State* own = reinterpret_cast<State*>(dynamic_shared_memory() + scratch_offset);
  if (threadIdx.x == 0) *own = state;
  cluster_sync();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  state = lane < plan.blocks_per_row ? *map_to_rank(own, lane) : State{};
  merge.warp(state);
}

struct MergeSums {
  template <class Scalar>
  __device__ void warp(Scalar& sum) const {
    sum = warp_reduce<Addition>(sum);
  }
};

// A kernel's last statement: no block exits while others may read its shared memory.
__device__ inline void leave_cluster(const Plan& plan) {
  if (plan.is_cluster) cluster_sync();
}

}  // namespace
}  // namespace powergrad

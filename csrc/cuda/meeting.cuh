// How the threads on the same rows put together what each has found: by shuffles within a warp, in
// shared memory between warps, in distributed shared memory between the blocks of a cluster. Every
// one of them gets the same bits, and the order never depends on timing.
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

// Both operations commute, so all lanes of a butterfly end with the same bits.
template <class Operation, class Scalar>
__device__ __forceinline__ Scalar of_warp(Scalar x) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    x = Operation::of(x, __shfl_xor_sync(kAllLanes, x, distance));
  }
  return x;
}

// Where the threads of a plan meet. Rows of a warp are neighbouring lanes in rows and chunks,
// neighbouring lanes are on neighbouring rows in tiles.
template <class Rows>
class Meeting {
 public:
  __device__ explicit Meeting(const Plan& plan)
      : plan_(plan), nearest_(Rows::kLayout == Layout::tiles ? kWarp >> plan.lanes_bits : 1) {}

  template <class Operation, int kCount, class Scalar>
  __device__ __forceinline__ void in_warp(Scalar (&values)[kCount]) const {
    if (plan_.lanes_bits == 5) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) values[k] = of_warp<Operation>(values[k]);
    } else {
      for (int distance = plan_.lanes() / 2 * nearest_; distance >= nearest_; distance /= 2) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          values[k] = Operation::of(values[k], __shfl_xor_sync(kAllLanes, values[k], distance));
        }
      }
    }
  }

  // Behind in_warp. `place` is where in shared memory, in bytes: threads may still look there at
  // what they left at the last meeting but one.
  template <class Operation, int kCount, class Scalar>
  __device__ __forceinline__ void of_warps(int place, Scalar (&values)[kCount]) const {
    if (plan_.warps_bits == 0) return;
    Scalar* scratch = reinterpret_cast<Scalar*>(dynamic_shared_memory() + place);
    const unsigned warp = threadIdx.x / kWarp;
    const unsigned lane = threadIdx.x % kWarp;
    const unsigned columns = kWarp >> plan_.lanes_bits;  // rows of a warp, one beside the other
    const unsigned column = lane & (columns - 1);
    if (lane < columns) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) scratch[(warp * columns + column) * kCount + k] = values[k];
    }
    __syncthreads();
    // Every lane takes in one warp's, and meets those that took in the others'.
    const unsigned first = warp & ~(plan_.warps() - 1u);
    const unsigned taken = first + (lane / columns & (plan_.warps() - 1));
#pragma unroll
    for (int k = 0; k < kCount; ++k) values[k] = scratch[(taken * columns + column) * kCount + k];
    for (unsigned distance = plan_.warps() / 2 * columns; distance >= columns; distance /= 2) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        values[k] = Operation::of(values[k], __shfl_xor_sync(kAllLanes, values[k], distance));
      }
    }
  }

 private:
  const Plan& plan_;
  int nearest_;  // lanes on the same row are this far apart
};

// What the blocks of a cluster know of their row: merge.warp(state) puts together the states of a
// warp's lanes. All meet once, so a single place is enough.
template <class State, class Merge>
__device__ void meet_in_cluster(const Plan& plan, int place, State& state, const Merge& merge) {
  if (!plan.is_cluster) return;
  State* exchange = reinterpret_cast<State*>(dynamic_shared_memory() + place);
  if (threadIdx.x == 0) *exchange = state;
  cluster_sync();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  state = lane < plan.parts ? *map_to_rank(exchange, lane) : State{};
  merge.warp(state);
}

// A sum of which each block has a part.
struct MergeSums {
  template <class Scalar>
  __device__ void warp(Scalar& sum) const {
    sum = of_warp<Addition>(sum);
  }
};

// To be called last: nobody leaves while others may read its shared memory.
__device__ inline void leave(const Plan& plan) {
  if (plan.is_cluster) cluster_sync();
}

}  // namespace
}  // namespace powergrad

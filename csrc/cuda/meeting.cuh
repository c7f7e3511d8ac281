// How the lanes of a row put together what each has found: by shuffles within a warp, in shared
// memory between warps, in distributed shared memory between the blocks of a cluster. Every lane
// gets the same bits, and the order never depends on timing.
#pragma once

#include "cuda/numbers.cuh"
#include "cuda/row_plan.h"

namespace powergrad {
namespace {

// Operations among `lanes` neighbouring lanes of a warp, a power of two. Addition and maximum
// commute, so all lanes of a butterfly end with the same bits.
template <class Scalar>
__device__ __forceinline__ Scalar sum_of_lanes(Scalar x, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    x += __shfl_xor_sync(kAllLanes, x, distance);
  }
  return x;
}
template <class Scalar>
__device__ __forceinline__ Scalar maximum_of_lanes(Scalar x, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    x = fmax(x, __shfl_xor_sync(kAllLanes, x, distance));
  }
  return x;
}

// merge.lanes(state, n) puts together n neighbouring lanes of a warp, merge.in_order(states,
// stride, n) an array of n. A state is empty when it is default-constructed.
template <int kPack, class State, class Merge>
__device__ void meet(const RowPlan& plan, State& state, const Merge& merge) {
  State* scratch = reinterpret_cast<State*>(dynamic_shared_memory());
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (kPack == 1) {
    // Neighbouring threads are on neighbouring rows.
    if (plan.lanes == 1) return;
    const int rows = plan.threads / plan.lanes;
    scratch[thread] = state;
    __syncthreads();
    state = merge.in_order(scratch + thread % rows, rows, plan.lanes);
  } else {
    if (plan.lanes <= kWarp) {
      merge.lanes(state, plan.lanes);
      return;
    }
    const int warps = plan.threads / kWarp;
    const int lane = thread % kWarp;
    merge.lanes(state, kWarp);
    if (lane == 0) scratch[thread / kWarp] = state;
    __syncthreads();
    state = lane < warps ? scratch[lane] : State{};
    merge.lanes(state, kWarp);
    if (!plan.is_cluster) return;
    if (thread == 0) scratch[warps] = state;
    cluster_sync();
    state = lane < plan.parts ? *map_to_rank(scratch + warps, lane) : State{};
    merge.lanes(state, kWarp);
  }
}

// A sum that the lanes have parts of.
template <class Scalar>
struct Sum {
  Scalar value = 0;
};
struct MergeSums {
  template <class Scalar>
  __device__ void lanes(Sum<Scalar>& sum, int lanes) const {
    sum.value = sum_of_lanes(sum.value, lanes);
  }
  template <class Scalar>
  __device__ Sum<Scalar> in_order(const Sum<Scalar>* sums, int stride, int count) const {
    Sum<Scalar> total;
    for (int i = 0; i < count; ++i) total.value += sums[i * stride].value;
    return total;
  }
};

// To be called last: nobody leaves while others may read its shared memory.
__device__ inline void leave(const RowPlan& plan) {
  if (plan.is_cluster) cluster_sync();
}

}  // namespace
}  // namespace powergrad

// The sums over a row, and how those of a cluster's blocks merge.
#pragma once

#include "cuda/exponentials.cuh"
#include "cuda/reductions.cuh"

namespace powergrad {
namespace {

// A thread's sums over one row, relative to the row's maximum.
template <class Scalar>
struct RowSums : ExponentialSums<Scalar> {
  int ones = 0;  // elements equal to the maximum that the sums leave out; they add 0 to the entropy
  // Sums of target_j and of target_j (maximum - z_j) where every class has a target.
  Scalar target_weight = 0;
  Scalar distance = 0;
};

// The sums over all of a row. Those of no classes at all are -1.
template <class Scalar>
struct SoftmaxState {
  Scalar maximum = kLowest<Scalar>;
  Scalar sumexp_m1 = -1;        // sum of exp(z - maximum) without one maximum
  Scalar alpha_sumexp_m1 = -1;  // sum of exp(alpha (z - maximum)) without one maximum
  Scalar target_weight = 0;     // as in RowSums
  Scalar distance = 0;
  Scalar entropy_sum = 0;  // sum of exp(z - maximum) (maximum - z)
};

// The entropy sum of terms whose maximum is no longer the row's: each (maximum - z) grows by the
// difference. `sum` is that of all their exponentials, which have still to be multiplied by e.
template <class Scalar>
__device__ __forceinline__ Scalar rescaled_entropy(Scalar entropy_sum, Scalar sum, Scalar from,
                                                   Scalar to, Scalar e) {
  if (e == 0) return 0;  // the difference may be infinite
  return rounded_product(entropy_sum + sum * (to - from), e);
}

template <class Kind, class Scalar, bool kDenseTarget>
struct MergeStates {
  const Evaluator<Kind, Scalar>& evaluate;

  __device__ void warp(SoftmaxState<Scalar>& state) const {
    const Scalar maximum = warp_reduce<Maximum>(state.maximum);
    const bool has_maximum = state.maximum == maximum;
    const auto maxima = __popc(__ballot_sync(kAllLanes, has_maximum));
    if (!has_maximum) {
      // What was the maximum becomes an ordinary term. The products must not be fused with the
      // reductions that follow: each lane would add its own product exactly and the others'
      // rounded, and no two lanes would have the same bits.
      const auto e = exponentials(evaluate, state.maximum - maximum);
      if constexpr (kHasEntropy<Kind>) {
        state.entropy_sum = rescaled_entropy(state.entropy_sum, 1 + state.sumexp_m1, state.maximum,
                                             maximum, e.plain);
      }
      state.sumexp_m1 = rounded_product(1 + state.sumexp_m1, e.plain);
      state.alpha_sumexp_m1 = rounded_product(1 + state.alpha_sumexp_m1, e.powered);
      state.distance +=
          rounded_product(state.target_weight, reference_of(maximum) - reference_of(state.maximum));
    }
    state.maximum = maximum;
    const auto ones = static_cast<Scalar>(maxima - 1);
    state.sumexp_m1 = warp_reduce<Addition>(state.sumexp_m1) + ones;
    if constexpr (Evaluator<Kind, Scalar>::kTwoSums) {
      state.alpha_sumexp_m1 = warp_reduce<Addition>(state.alpha_sumexp_m1) + ones;
    } else {
      state.alpha_sumexp_m1 = state.sumexp_m1;
    }
    if constexpr (kHasEntropy<Kind>) {
      state.entropy_sum = warp_reduce<Addition>(state.entropy_sum);
    }
    if constexpr (kDenseTarget) {
      state.target_weight = warp_reduce<Addition>(state.target_weight);
      state.distance = warp_reduce<Addition>(state.distance);
    }
  }
};

}  // namespace
}  // namespace powergrad

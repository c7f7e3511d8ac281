// What a thread, a warp, a block or a cluster knows of a row: its maximum and sums "1 + r" relative
// to it, as powergrad.h derives them.
#pragma once

#include "cuda/exponentials.cuh"
#include "cuda/meeting.cuh"

namespace powergrad {
namespace {

// With a mass for every class: sums of mass_j and of mass_j (reference - z_j).
template <class Scalar, bool kClassMass>
struct MassSums {
  Scalar mass = 0;
  Scalar distance = 0;
};
template <class Scalar>
struct MassSums<Scalar, false> {};

template <class Scalar, bool kClassMass>
struct SoftmaxState : MassSums<Scalar, kClassMass> {
  Scalar maximum = kLowest<Scalar>;
  Scalar rest = 0;        // sum of exp(z - maximum) without one maximum
  Scalar alpha_rest = 0;  // sum of exp(alpha (z - maximum)) without one maximum

  // What exponentials are relative to: where every class so far is masked out, 0 instead of a
  // difference of infinities.
  __device__ Scalar reference() const { return maximum == kLowest<Scalar> ? Scalar(0) : maximum; }
};

// A state of nothing, or of masked classes only, has no maximum that stands for a 1. Its sums are 0
// and stay so, unless there was a NaN.
template <class Kind, class Scalar, bool kClassMass>
struct SoftmaxMerge {
  using State = SoftmaxState<Scalar, kClassMass>;
  static constexpr bool kHasAlpha = !std::is_same_v<Kind, NoAlpha>;
  Evaluator<Kind, Scalar> evaluate;

  // Makes the sums relative to a maximum of all that is merged. One that is raised turns its own 1
  // into an ordinary term.
  __device__ void rebase(State& state, Scalar maximum) const {
    if (state.maximum == maximum) return;
    const Exponentials<Scalar> e = evaluate(state.maximum - maximum, 0);
    // Not to be fused with the sum of lanes that follows: each lane would add another's product
    // rounded and its own exact, and no two would have the same bits.
    state.rest = rounded_product(1 + state.rest, e.plain);
    if constexpr (kHasAlpha) state.alpha_rest = rounded_product(1 + state.alpha_rest, e.powered);
    const Scalar before = state.reference();
    state.maximum = maximum;
    if constexpr (kClassMass) state.distance += state.mass * (state.reference() - before);
  }

  // Several states that hold the maximum: all of their ones but one count.
  __device__ static Scalar surplus(const State& state, int holders) {
    return state.maximum == kLowest<Scalar> ? Scalar(0) : static_cast<Scalar>(holders - 1);
  }

  __device__ void lanes(State& state, int lanes) const {
    const Scalar maximum = maximum_of_lanes(state.maximum, lanes);
    const unsigned holders = __ballot_sync(kAllLanes, state.maximum == maximum);
    rebase(state, maximum);
    const int first = static_cast<int>(threadIdx.x) % kWarp / lanes * lanes;
    const unsigned group = lanes == kWarp ? kAllLanes : ((1u << lanes) - 1u) << first;
    const Scalar ones = surplus(state, __popc(holders & group));
    state.rest = sum_of_lanes(state.rest, lanes) + ones;
    if constexpr (kHasAlpha) state.alpha_rest = sum_of_lanes(state.alpha_rest, lanes) + ones;
    if constexpr (kClassMass) {
      state.mass = sum_of_lanes(state.mass, lanes);
      state.distance = sum_of_lanes(state.distance, lanes);
    }
  }

  __device__ State in_order(const State* states, int stride, int count) const {
    State total;
    for (int i = 0; i < count; ++i) {
      total.maximum = fmax(total.maximum, states[i * stride].maximum);
    }
    int holders = 0;
    for (int i = 0; i < count; ++i) {
      State state = states[i * stride];
      holders += state.maximum == total.maximum ? 1 : 0;
      rebase(state, total.maximum);
      total.rest += state.rest;
      total.alpha_rest += state.alpha_rest;
      if constexpr (kClassMass) {
        total.mass += state.mass;
        total.distance += state.distance;
      }
    }
    const Scalar ones = surplus(total, holders);
    total.rest += ones;
    total.alpha_rest += ones;
    return total;
  }
};

// NaN for a row whose maximum is infinite (every class masked out, or a logit of +infinity), else
// 0: what torch gives.
template <class Scalar>
__device__ __forceinline__ Scalar poison(Scalar maximum) {
  return maximum - maximum;
}

}  // namespace
}  // namespace powergrad

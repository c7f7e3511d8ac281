// One thread's share of a row, tile by tile: each tile is some packs of logits in registers.
#pragma once

#include "cuda/compensated_sum.cuh"
#include "cuda/softmax_state.cuh"
#include "cuda/walk.cuh"

namespace powergrad {
namespace {

template <class Kind, class Scalar, bool kClassMass>
class SoftmaxAccumulator {
 public:
  using Merge = SoftmaxMerge<Kind, Scalar, kClassMass>;
  using State = typename Merge::State;

  __device__ explicit SoftmaxAccumulator(const Merge& merge) : merge_(merge) {}

  // One exponential per element, or two, and none of an element again: a maximum that rises
  // rescales the sums.
  template <int kSteps, int kPack>
  __device__ void add(const Numbers<Scalar, kSteps, kPack>& z) {
    Scalar maximum = maximum_;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) maximum = fmax(maximum, z.at[s][i]);
    }
    int ones = 0;
    if (maximum != maximum_) {
      raise(maximum);
      ones = -1;  // the new maximum is among these
    }
    const Scalar reference = this->reference();
    Scalar rest = 0;
    Scalar alpha_rest = 0;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        const bool is_one = z.at[s][i] == reference;
        ones += is_one ? 1 : 0;
        const Scalar t = is_one ? kLowest<Scalar> : z.at[s][i] - reference;  // whose terms are 0
        const Exponentials<Scalar> e = merge_.evaluate(t, s * kPack + i);
        rest += e.plain;
        if constexpr (Merge::kHasAlpha) alpha_rest += e.powered;
      }
    }
    rest_.add(rest + static_cast<Scalar>(ones));
    if constexpr (Merge::kHasAlpha) alpha_rest_.add(alpha_rest + static_cast<Scalar>(ones));
  }

  // What distances of the masses added so far, and of those to be added next, are taken from.
  __device__ Scalar reference() const { return maximum_ == kLowest<Scalar> ? Scalar(0) : maximum_; }
  // Sums of mass_j and of mass_j (reference - z_j).
  __device__ void add_mass(Scalar mass, Scalar distance) {
    mass_.add(mass);
    distance_.add(distance);
  }

  __device__ State state() const {
    State state;
    state.maximum = maximum_;
    state.rest = rest_.value;
    state.alpha_rest = alpha_rest_.value;
    if constexpr (kClassMass) {
      state.mass = mass_.value;
      state.distance = distance_.value;
    }
    return state;
  }

 private:
  __device__ void raise(Scalar maximum) {
    State state = this->state();
    merge_.rebase(state, maximum);
    maximum_ = maximum;
    rest_.set(state.rest);
    alpha_rest_.set(state.alpha_rest);
    if constexpr (kClassMass) distance_.set(state.distance);
  }

  Merge merge_;
  Scalar maximum_ = kLowest<Scalar>;
  CompensatedSum<Scalar> rest_;
  CompensatedSum<Scalar> alpha_rest_;
  CompensatedSum<Scalar> mass_;
  CompensatedSum<Scalar> distance_;
};

}  // namespace
}  // namespace powergrad

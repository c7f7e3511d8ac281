// Sums of very many terms.
#pragma once

#include "cuda/primitives.cuh"

namespace powergrad {
namespace {

// With compensation (Kahan): a plain chain of thousands of terms would drift, by most where all of
// them are equal.
template <class Scalar>
struct CompensatedSum {
  Scalar value = 0;
  Scalar lost = 0;

  __device__ void add(Scalar x) {
    const Scalar term = x - lost;
    const Scalar next = value + term;
    const Scalar error = (next - value) - term;
    lost = error == error ? error : Scalar(0);  // an infinite sum stays infinite
    value = next;
  }
  __device__ void set(Scalar x) {
    value = x;
    lost = 0;
  }
};

}  // namespace
}  // namespace powergrad

// exp(t) and exp(alpha t) for t = z - max(z) <= 0, and their sums.
//
// exp(factor t) in float is fast_exp2(t * scale), with scale = factor log2(e) rounded. Valid for
// all t <= 0, -infinity included; results below 2^-126 are 0. Maximum error: 2 ulp of fast_exp2,
// and 2 |factor t| ulp from rounding the scale and the product. In double it is std::exp(factor *
// t): 1 ulp, and |factor t| ulp from rounding the product.
#pragma once

#include "alpha.h"
#include "cuda/numbers.cuh"

namespace powergrad {
namespace {

// 2^x in float, e^x in double.
__device__ __forceinline__ float exponential(float x) { return fast_exp2(x); }
__device__ __forceinline__ double exponential(double x) { return std::exp(x); }

// The scale at which exponential(t * scale) is exp(factor t). NaN unless factor > 0, since nothing
// has checked an alpha on the device.
template <class Scalar>
POWERGRAD_FUNCTION Scalar scale_of(double factor) {
  if constexpr (std::is_same_v<Scalar, double>) {
    return factor > 0.0 ? (factor < kLargest<double> ? factor : kLargest<double>) : NAN;
  } else {
    return exponent_scale<float>(factor);
  }
}

// The scale of a call's alpha, computed by the host unless alpha is on the device.
template <class Scalar>
struct Alpha {
  Scalar scale;
  const double* on_device;

  template <class Params>
  explicit Alpha(const Params& p)
      : scale(p.alpha_on_device != nullptr ? Scalar(0) : scale_of<Scalar>(p.alpha)),
        on_device(p.alpha_on_device) {}
  __device__ __forceinline__ Scalar scaled() const {
    return on_device != nullptr ? scale_of<Scalar>(*on_device) : scale;
  }
};

template <class Scalar>
struct ExponentialSums {
  Scalar plain = 0;    // of exp(t)
  Scalar powered = 0;  // of exp(alpha t)
  Scalar entropy = 0;  // of -t exp(t), for EntropyTerms
};

// Evaluator<Kind, Scalar> computes kExponentials exponentials of an element, one for each scale;
// add() adds exp(t) and exp(alpha t) to the sums. kTwoSums: the two differ.
template <int kDenominator, class Scalar>
struct Evaluator<RationalAlpha<1, kDenominator>, Scalar> {
  static constexpr int kExponentials = 1;
  static constexpr bool kTwoSums = kDenominator > 1;
  Scalar scale[1];
  __device__ explicit Evaluator(const Alpha<Scalar>&)
      : scale{scale_of<Scalar>(1.0 / kDenominator)} {}
  __device__ __forceinline__ static void add(const Scalar (&u)[1], ExponentialSums<Scalar>& sums) {
    if constexpr (kTwoSums) {
      const auto [first, second] = factors_of_power<kDenominator>(u[0]);
      sums.plain = std::fma(first, second, sums.plain);
      sums.powered += u[0];
    } else {
      sums.plain += u[0];
    }
  }
};

template <class Scalar>
struct Evaluator<AnyAlpha, Scalar> {
  static constexpr int kExponentials = 2;
  static constexpr bool kTwoSums = true;
  Scalar scale[2];
  __device__ explicit Evaluator(const Alpha<Scalar>& alpha)
      : scale{scale_of<Scalar>(1.0), alpha.scaled()} {}
  __device__ __forceinline__ static void add(const Scalar (&e)[2], ExponentialSums<Scalar>& sums) {
    sums.plain += e[0];
    sums.powered += e[1];
  }
};

template <class Scalar>
struct Evaluator<EntropyTerms, Scalar> : Evaluator<AnyAlpha, Scalar> {
  using Evaluator<AnyAlpha, Scalar>::Evaluator;
};
template <class Kind>
inline constexpr bool kHasEntropy = std::is_same_v<Kind, EntropyTerms>;

template <class Scalar>
struct Evaluator<NoAlpha, Scalar> {
  static constexpr int kExponentials = 1;
  static constexpr bool kTwoSums = false;
  Scalar scale[1];
  __device__ explicit Evaluator(const Alpha<Scalar>&) : scale{scale_of<Scalar>(1.0)} {}
  __device__ __forceinline__ static void add(const Scalar (&e)[1], ExponentialSums<Scalar>& sums) {
    sums.plain += e[0];
  }
};

// Adds exp(t) and exp(alpha t); t may be -infinity or NaN.
template <class Kind, class Scalar>
__device__ __forceinline__ void add_exponentials(const Evaluator<Kind, Scalar>& evaluate, Scalar t,
                                                 ExponentialSums<Scalar>& sums) {
  using E = Evaluator<Kind, Scalar>;
  Scalar e[E::kExponentials];
#pragma unroll
  for (int k = 0; k < E::kExponentials; ++k) e[k] = exponential(t * evaluate.scale[k]);
  E::add(e, sums);
  // 0 times an infinite t would be NaN; where t is NaN, the exponential is.
  if constexpr (kHasEntropy<Kind>) {
    sums.entropy =
        std::fma(-std::fmax(t, static_cast<Scalar>(-kLargest<Scalar>)), e[0], sums.entropy);
  }
}
template <class Kind, class Scalar>
__device__ __forceinline__ ExponentialSums<Scalar> exponentials(
    const Evaluator<Kind, Scalar>& evaluate, Scalar t) {
  ExponentialSums<Scalar> result;
  add_exponentials(evaluate, t, result);
  return result;
}

}  // namespace
}  // namespace powergrad

// exp(t) and exp(alpha t) for t = z - max(z) <= 0, and how sums take them in.
#pragma once

#include "alpha.h"
#include "cuda/numbers.cuh"

namespace powergrad {
namespace {

// 2^x in float, e^x in double: what exponents have been scaled for.
__device__ __forceinline__ float exponential(float x) { return fast_exp2(x); }
__device__ __forceinline__ double exponential(double x) { return std::exp(x); }

// What an exponent is multiplied by for exponential() to give exp(factor t). NaN for a factor that
// is not > 0: an alpha on a device is not checked before.
template <class Scalar>
POWERGRAD_FUNCTION Scalar scale_of(double factor) {
  if constexpr (std::is_same_v<Scalar, double>) {
    return factor > 0.0 ? (factor < kLargest<double> ? factor : kLargest<double>) : NAN;
  } else {
    return exponent_scale<float>(factor);
  }
}

// The exponent of a call, scaled: by the host, unless a schedule keeps it on the device.
template <class Scalar>
struct Exponent {
  Scalar scale;
  const double* on_device;

  template <class Params>
  explicit Exponent(const Params& p)
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
};

// Evaluator<Kind, Scalar>: kExponentials scales; add() takes the exponentials of one element into
// the sums. kPowersApart: the powered sum is not the plain one.
template <int kDenominator, class Scalar>
struct Evaluator<RationalAlpha<1, kDenominator>, Scalar> {
  static constexpr int kExponentials = 1;
  static constexpr bool kPowersApart = kDenominator > 1;
  Scalar scale[1];
  __device__ explicit Evaluator(const Exponent<Scalar>&)
      : scale{scale_of<Scalar>(1.0 / kDenominator)} {}
  __device__ __forceinline__ static void add(const Scalar (&u)[1], ExponentialSums<Scalar>& sums) {
    if constexpr (kPowersApart) {
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
  static constexpr bool kPowersApart = true;
  Scalar scale[2];
  __device__ explicit Evaluator(const Exponent<Scalar>& exponent)
      : scale{scale_of<Scalar>(1.0), exponent.scaled()} {}
  __device__ __forceinline__ static void add(const Scalar (&e)[2], ExponentialSums<Scalar>& sums) {
    sums.plain += e[0];
    sums.powered += e[1];
  }
};

template <class Scalar>
struct Evaluator<NoAlpha, Scalar> {
  static constexpr int kExponentials = 1;
  static constexpr bool kPowersApart = false;
  Scalar scale[1];
  __device__ explicit Evaluator(const Exponent<Scalar>&) : scale{scale_of<Scalar>(1.0)} {}
  __device__ __forceinline__ static void add(const Scalar (&e)[1], ExponentialSums<Scalar>& sums) {
    sums.plain += e[0];
  }
};

// Adds exp(t) and exp(alpha t), of t = -infinity and NaN too.
template <class Kind, class Scalar>
__device__ __forceinline__ void add_exponentials(const Evaluator<Kind, Scalar>& evaluate, Scalar t,
                                                 ExponentialSums<Scalar>& sums) {
  using E = Evaluator<Kind, Scalar>;
  Scalar e[E::kExponentials];
#pragma unroll
  for (int k = 0; k < E::kExponentials; ++k) e[k] = exponential(t * evaluate.scale[k]);
  E::add(e, sums);
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

// How the pair (exp(t), exp(alpha t)) is had, for the CPU and CUDA kernels alike. Internal linkage,
// as it is compiled for several instruction sets.
#pragma once

#include "powergrad.h"
#include "row.h"

namespace powergrad {
namespace {

// One exponential gives both when alpha = N/D with small N and D: with u = exp(t / D),
// exp(alpha t) = u^N and exp(t) = u^D. (CUDA leaves out 3/10: see KindInKernels.)
#define POWERGRAD_FORALL_RATIONAL_ALPHAS(X) X(1, 1) X(1, 2) X(1, 3) X(1, 4) X(3, 10)

template <int kNumerator, int kDenominator>
struct RationalAlpha {};
struct AnyAlpha {};
// Forward without backward: the powered exponential is not wanted.
struct NoAlpha {};

// Specialised for each kind by the kernels, over the type they compute in.
template <class Kind, class V>
struct Evaluator;

inline constexpr double kLog2E = 1.4426950408889634074;

// The least that exponents are scaled by: even one at which powers of two end can be divided by it.
template <class Scalar>
inline constexpr double kSmallestScale = 4096.0 / kLargest<Scalar>;

// exp(factor t) is 2^(scale t). Far beyond what any sensible alpha asks for the scale is bounded,
// as an infinite one would make NaN of the maximum's 0. NaN for a factor that is not > 0: an alpha
// on a device is not checked before.
template <class Scalar>
POWERGRAD_FUNCTION Scalar exponent_scale(double factor) {
  if (!(factor > 0.0)) return static_cast<Scalar>(NAN);
  const double scale = factor * kLog2E;
  if (scale < kSmallestScale<Scalar>) return static_cast<Scalar>(kSmallestScale<Scalar>);
  if (scale > kLargest<Scalar>) return static_cast<Scalar>(kLargest<Scalar>);
  return static_cast<Scalar>(scale);
}

template <int kPower, class V>
POWERGRAD_FUNCTION V power(V x);

// The last multiplication of power<kPower>, for kPower > 1.
template <class V>
struct Factors {
  V first;
  V second;
};
template <int kPower, class V>
POWERGRAD_FUNCTION Factors<V> factors_of_power(V x) {
  if constexpr (kPower == 5) {
    return {power<2>(x), power<3>(x)};
  } else if constexpr (kPower % 2 == 0) {
    const V root = power<kPower / 2>(x);
    return {root, root};
  } else {
    return {x, power<kPower - 1>(x)};
  }
}

template <int kPower, class V>
POWERGRAD_FUNCTION V power(V x) {
  if constexpr (kPower == 1) {
    return x;
  } else {
    const auto [first, second] = factors_of_power<kPower>(x);
    return first * second;
  }
}

// Calls function(kind) with the cheapest kind that is exact for this alpha in Scalar arithmetic.
template <class Scalar, class Function>
auto with_alpha_kind(double alpha, bool wanted, const Function& function) {
  if (!wanted) return function(NoAlpha{});
#define POWERGRAD_IF_RATIONAL(numerator, denominator)                        \
  if (static_cast<Scalar>(alpha) ==                                          \
      static_cast<Scalar>(static_cast<double>(numerator) / (denominator))) { \
    return function(RationalAlpha<numerator, denominator>{});                \
  }
  POWERGRAD_FORALL_RATIONAL_ALPHAS(POWERGRAD_IF_RATIONAL)
#undef POWERGRAD_IF_RATIONAL
  return function(AnyAlpha{});
}

}  // namespace
}  // namespace powergrad

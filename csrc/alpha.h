// How the CPU and CUDA kernels compute the pair (exp(t), exp(alpha t)). Internal linkage, since it
// is compiled for several instruction sets.
#pragma once

#include "powergrad.h"
#include "row.h"

namespace powergrad {
namespace {

// One exponential gives both if alpha = N/D with small N and D: with u = exp(t / D),
// exp(alpha t) = u^N and exp(t) = u^D. A power multiplies the relative error of u by its exponent.
// (CUDA does not use 3/10: see KindInKernels.)
#define POWERGRAD_FORALL_RATIONAL_ALPHAS(X) X(1, 1) X(1, 2) X(1, 3) X(1, 4) X(3, 10)

template <int kNumerator, int kDenominator>
struct RationalAlpha {};
struct AnyAlpha {};
// Forward without backward: only exp(t) is needed.
struct NoAlpha {};
// For the entropy of a row: the pair (exp(t), t exp(t)) on the CPU; any alpha, and a third sum, on
// CUDA devices.
struct EntropyTerms {};

// Kernels specialise it for each kind, over the type that they compute in.
template <class Kind, class V>
struct Evaluator;

inline constexpr double kLog2E = 1.4426950408889634074;

// The smallest scale: small enough for any alpha, large enough to divide the range of exponents by.
template <class Scalar>
inline constexpr double kSmallestScale = 4096.0 / kLargest<Scalar>;

// The scale at which 2^(scale t) is exp(factor t), rounded once: 1/2 ulp. It is bounded, far beyond
// any sensible alpha, since 0 times an infinite scale would be NaN. NaN unless factor > 0, since
// nothing has checked an alpha on the device.
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

// The operands of the last multiplication of power<kPower>, for kPower > 1.
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

// Calls function(kind) with the cheapest kind for this alpha, which has to equal N/D as a Scalar.
template <class Scalar, class Function>
auto with_alpha_kind(double alpha, bool has_backward, const Function& function) {
  if (!has_backward) return function(NoAlpha{});
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

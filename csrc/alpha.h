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

template <class V>
struct Exponentials {
  V plain;
  V powered;
};

template <int kPower, class V>
POWERGRAD_FUNCTION V power(V x) {
  if constexpr (kPower == 1) {
    return x;
  } else if constexpr (kPower == 10) {
    const V five = power<2>(x) * power<3>(x);
    return five * five;
  } else if constexpr (kPower % 2 == 0) {
    return power<kPower / 2>(x * x);
  } else {
    return x * power<kPower - 1>(x);
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

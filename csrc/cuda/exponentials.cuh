// exp(t) and exp(alpha t) for t = z - max(z) <= 0.
//
// The special function unit gives 16 results per clock and multiprocessor, while bfloat16 logits
// arrive at up to 9: two of its exponentials per element are more than it can give. So one serves
// for both where alpha is a simple fraction, and otherwise a share of them is computed by the other
// units, as a polynomial.
#pragma once

#include "alpha.h"
#include "cuda/numbers.cuh"
#include "exp2_polynomial.h"

namespace powergrad {
namespace {

// 2^x for x <= 0 without the special function unit.
__device__ __forceinline__ float polynomial_exp2(float x) {
  constexpr float kMagic = 12582912.0f;             // its last bit is worth 1
  const float bounded = x < -126.0f ? -126.0f : x;  // keeps NaN
  const float shifted = bounded + kMagic;
  const float f = bounded - (shifted - kMagic);
  constexpr float kCoefficients[] = {1.0f, POWERGRAD_EXP2_SLOPE};
  constexpr int kTerms = sizeof(kCoefficients) / sizeof(float);
  float result = kCoefficients[kTerms - 1];
#pragma unroll
  for (int i = kTerms - 2; i >= 0; --i) result = fmaf(result, f, kCoefficients[i]);
  const unsigned exponent = __float_as_uint(shifted) << 23;  // in two's complement
  const float scaled = __uint_as_float(__float_as_uint(result) + exponent);
  return x < -126.0f ? 0.0f : x == x ? scaled : x;
}

template <class Scalar>
struct Exponentials {
  Scalar plain;
  Scalar powered;
};

// Of the second exponentials of a pair, every kPolynomialShare-th is a polynomial.
inline constexpr int kPolynomialShare = 4;

// evaluate(t, which): `which` is the element's place in its thread's loop, known when compiling.
template <int kNumerator, int kDenominator>
struct Evaluator<RationalAlpha<kNumerator, kDenominator>, float> {
  float scale;
  __device__ explicit Evaluator(double) : scale(exponent_scale<float>(1.0 / kDenominator)) {}
  __device__ Exponentials<float> operator()(float t, int) const {
    const float u = fast_exp2(t * scale);
    return {power<kDenominator>(u), power<kNumerator>(u)};
  }
};

template <>
struct Evaluator<AnyAlpha, float> {
  float scale;
  __device__ explicit Evaluator(double alpha) : scale(exponent_scale<float>(alpha)) {}
  __device__ Exponentials<float> operator()(float t, int which) const {
    const bool by_polynomial = which % kPolynomialShare == kPolynomialShare - 1;
    return {fast_exp2(t * static_cast<float>(kLog2E)),
            by_polynomial ? polynomial_exp2(t * scale) : fast_exp2(t * scale)};
  }
};

template <>
struct Evaluator<NoAlpha, float> {
  __device__ explicit Evaluator(double) {}
  __device__ Exponentials<float> operator()(float t, int) const {
    return {fast_exp2(t * static_cast<float>(kLog2E)), 0.0f};
  }
};

template <>
struct Evaluator<AnyAlpha, double> {
  double alpha;
  __device__ explicit Evaluator(double its_alpha) : alpha(its_alpha > 0.0 ? its_alpha : NAN) {}
  __device__ Exponentials<double> operator()(double t, int) const {
    return {exp(t), exp(alpha * t)};
  }
};

template <>
struct Evaluator<NoAlpha, double> {
  __device__ explicit Evaluator(double) {}
  __device__ Exponentials<double> operator()(double t, int) const { return {exp(t), 0.0}; }
};

// exp(alpha t) alone.
template <class Scalar>
struct PoweredExponential;
template <>
struct PoweredExponential<float> {
  float scale;
  __device__ explicit PoweredExponential(double alpha) : scale(exponent_scale<float>(alpha)) {}
  __device__ float operator()(float t) const { return fast_exp2(t * scale); }
};
template <>
struct PoweredExponential<double> {
  double alpha;
  __device__ explicit PoweredExponential(double its_alpha)
      : alpha(its_alpha > 0.0 ? its_alpha : NAN) {}
  __device__ double operator()(double t) const { return exp(alpha * t); }
};

// The exponent of this call: a value, or read where a schedule on the device keeps it.
template <class Params>
__device__ __forceinline__ double alpha_of(const Params& p) {
  return p.alpha_on_device != nullptr ? *p.alpha_on_device : p.alpha;
}

}  // namespace
}  // namespace powergrad

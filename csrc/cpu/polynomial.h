// Polynomials, and how precise one has to be. Included inside the target region.
#pragma once

namespace powergrad {
namespace {

template <class V, std::size_t kTerms>
V polynomial(V x, const typename V::Scalar (&coefficients)[kTerms]) {
  V result = V::broadcast(coefficients[kTerms - 1]);
  for (std::size_t i = kTerms - 1; i-- > 0;) {
    result = multiply_add(result, x, V::broadcast(coefficients[i]));
  }
  return result;
}

// The same for an odd number of terms, the even and the odd ones apart: half the latency, for what
// is computed once a row.
template <class V, std::size_t kTerms>
V polynomial_by_halves(V x, const typename V::Scalar (&coefficients)[kTerms]) {
  static_assert(kTerms % 2 == 1);
  const V square = x * x;
  V even = V::broadcast(coefficients[kTerms - 1]);
  V odd = V::broadcast(coefficients[kTerms - 2]);
  for (std::size_t i = kTerms - 3; i > 0; i -= 2) {
    even = multiply_add(even, square, V::broadcast(coefficients[i]));
    odd = multiply_add(odd, square, V::broadcast(coefficients[i - 1]));
  }
  even = multiply_add(even, square, V::broadcast(coefficients[0]));
  return multiply_add(odd, x, even);
}

// What an exponential is for. In half precision its relative error is at most 1.1e-4, 1/36 ulp of
// bfloat16 and 1/4 ulp of float16: for numbers that are only rounded to these types.
enum class Precision { full, half };
template <Precision kPrecision>
using InPrecision = std::integral_constant<Precision, kPrecision>;

}  // namespace
}  // namespace powergrad

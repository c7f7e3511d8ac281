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

// What an exponential is for. In half precision its relative error is at most 1.1e-4, 1/36 ulp of
// bfloat16 and 1/4 ulp of float16: for numbers that are only rounded to these types.
enum class Precision { full, half };
template <Precision kPrecision>
using InPrecision = std::integral_constant<Precision, kPrecision>;

}  // namespace
}  // namespace powergrad

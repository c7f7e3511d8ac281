// Capped logits, softcap tanh(z), and their derivative. Included inside the target region.
#pragma once

namespace powergrad {
namespace {

// Coefficients of tanh(x) / x in powers of x^2, from tanh' = 1 - tanh^2. The terms left out are
// below half an ulp up to x = 1/2.
template <class Scalar>
inline constexpr int kTanhTerms = sizeof(Scalar) == sizeof(float) ? 8 : 17;
template <class Scalar>
struct TanhSeries {
  Scalar coefficients[kTanhTerms<Scalar>];
  constexpr TanhSeries() : coefficients{} {
    long double exact[kTanhTerms<Scalar>] = {1.0L};
    coefficients[0] = 1;
    for (int n = 1; n < kTanhTerms<Scalar>; ++n) {
      for (int i = 0; i < n; ++i) exact[n] -= exact[i] * exact[n - 1 - i] / (2 * n + 1);
      coefficients[n] = static_cast<Scalar>(exact[n]);
    }
  }
};

// Relative error at most 6 epsilon, an ulp of 1; in half precision 1.1e-4. From 1/2 on
// exp(-2 |x|) is small enough beside 1. NaN for NaN.
template <Precision kPrecision, class V>
class Tanh {
 public:
  V operator()(V x) const {
    static constexpr TanhSeries<typename V::Scalar> kSeries;
    const V zero = V::broadcast(0), one = V::broadcast(1);
    const auto negative = less(x, zero);
    const V magnitude = select(negative, zero - x, x);
    const V power = exp_(zero, magnitude + magnitude);
    const V quotient = (one - power) / (one + power);
    const V small = x * polynomial(x * x, kSeries.coefficients);
    const V large = select(negative, zero - quotient, quotient);
    return select(less(magnitude, V::broadcast(static_cast<typename V::Scalar>(0.5))), small,
                  large);
  }

 private:
  Exponential<V, kPrecision> exp_{1.0};
};

template <class Storage>
struct Softcap {
  using V = VectorOf<Storage>;

  // z = softcap tanh(z)
  static void apply(void* logits, int64_t count, double softcap) {
    const Tanh<kPrecisionOf<Storage>, V> tanh;
    const V cap = broadcast(softcap);
    auto* z = static_cast<Storage*>(logits);
    for_each_vector(count, [&](int64_t i, int lanes) {
      store_lanes(cap * tanh(load_lanes<V>(z + i, lanes)), z + i, lanes);
    });
  }

  // gradient *= 1 - (capped / softcap)^2. That is 0 where tanh is 1: there `capped` is the cap as
  // Storage has it, whose quotient by the cap itself is not 1.
  static void differentiate(const void* capped, void* gradient, int64_t count, double softcap) {
    const V zero = V::broadcast(0), one = V::broadcast(1), inverse = broadcast(1 / softcap);
    Storage stored;
    store_scalar(static_cast<typename V::Scalar>(softcap), &stored);
    const V largest = V::broadcast(load_scalar(&stored));
    const auto* z = static_cast<const Storage*>(capped);
    auto* g = static_cast<Storage*>(gradient);
    for_each_vector(count, [&](int64_t i, int lanes) {
      const V logits = load_lanes<V>(z + i, lanes);
      const V tanh = logits * inverse;
      const auto is_below = less(maximum(logits, zero - logits), largest);
      const V slope = select(is_below, one - tanh * tanh, logits - logits);  // NaN stays one
      store_lanes(load_lanes<V>(g + i, lanes) * slope, g + i, lanes);
    });
  }

 private:
  static V broadcast(double x) { return V::broadcast(static_cast<typename V::Scalar>(x)); }

  template <class Body>
  static void for_each_vector(int64_t count, const Body& body) {
    const int64_t whole = count / V::kWidth * V::kWidth;
    for (int64_t i = 0; i < whole; i += V::kWidth) body(i, V::kWidth);
    if (whole < count) body(whole, static_cast<int>(count - whole));
  }
};

}  // namespace
}  // namespace powergrad

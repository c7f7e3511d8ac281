// exp(factor t) for t = z - max(z) <= 0. Included inside the target region.
#pragma once

namespace powergrad {
namespace {

inline constexpr long double kLongLn2 = 0.693147180559945309417232L;

// Exponents are cut at steps, of a fraction of 1 where a vector has a table of roots. Adding this,
// whose last bit is worth one step, rounds to the nearest and leaves its number in the low bits,
// where power_of_two finds it.
template <class V>
V step_origin() {
  return V::broadcast(V::kStepOrigin);
}

// 2^(step + f) for f of at most half a step; shifted is step_origin + step; (2^f - 1) / f is the
// polynomial slope(f). A NaN stays one: f is NaN then.
template <class V, std::size_t kTerms>
V exp2_from_step(V shifted, V f, const typename V::Scalar (&slope)[kTerms]) {
  // In this order nothing on the way is smaller than the result, where denormal numbers are slow.
  const V fraction = multiply_add(f, polynomial(f, slope), V::broadcast(1));
  return power_of_two(shifted) * fraction;
}

template <class Storage>
inline constexpr Precision kPrecisionOf =
    kIsAccumulate<Storage> ? Precision::full : Precision::half;

// 2^(scale t) for t <= 0, 0 for t <= lowest; an instruction set may have another. A NaN stays one.
template <Precision kPrecision, class V>
V exp2_of_product(V scale, V t, V lowest) {
  const V bounded = maximum(lowest, t);  // in this order: keeps NaN
  const V shifted = multiply_add(bounded, scale, step_origin<V>());
  // The product is rounded only once, after the step is taken off.
  const V f = multiply_add(bounded, scale, step_origin<V>() - shifted);
  if constexpr (kPrecision == Precision::half) {
    return exp2_from_step(shifted, f, V::kHalfExp2Slope);
  } else {
    return exp2_from_step(shifted, f, V::kExp2Slope);
  }
}

// exp(factor (z - reference)) for t = z - reference <= 0 and factor > 0. Relative error at most
// (2 + 1.8 |factor t|) epsilon, an ulp of 1; the second term comes of rounding t, the scale and
// their product. In half precision the first is 1.1e-4. What is below the least normal number may
// be 0; 0 for t = -infinity, NaN for NaN.
template <class V, Precision kPrecision = Precision::full>
class Exponential {
 public:
  explicit Exponential(double factor) {
    const auto scale = exponent_scale<typename V::Scalar>(factor);
    scale_ = V::broadcast(scale);
    lowest_ = V::broadcast(static_cast<typename V::Scalar>(V::kUnderflow / scale));
  }
  // z - reference, no less than where the result becomes 0: finite but for NaN.
  V exponent(V z, V reference) const {
    return maximum(lowest_, z - reference);  // in this order: keeps NaN
  }
  V operator()(V z, V reference) const {
    return exp2_of_product<kPrecision>(scale_, z - reference, lowest_);
  }

 private:
  V scale_;
  V lowest_;
};

// The same with a relative error of at most 2 epsilon over the whole range: the exponent is known
// to about twice the precision. Exponential's error vanishes beside larger terms of a sum, but is
// too large where only exponentials of -25 and less are left (see is_remote).
template <class V>
class ExactExponential {
 public:
  explicit ExactExponential(long double factor) {
    const auto scale = exponent_scale<typename V::Scalar>(static_cast<double>(factor));
    // What doubles a power, in units of t. Its upper part has so few digits that any step times it
    // is exact.
    const long double octave =
        std::min(kLongLn2 / factor, 1.0L / kSmallestScale<typename V::Scalar>);
    const long double unit = std::ldexp(1.0L, std::ilogb(octave) - V::kOctaveDigits);
    const long double upper = std::nearbyint(octave / unit) * unit;
    scale_ = V::broadcast(scale);
    lowest_ = V::broadcast(static_cast<typename V::Scalar>(V::kUnderflow / scale));
    upper_ = V::broadcast(static_cast<typename V::Scalar>(-upper));
    lower_ = V::broadcast(static_cast<typename V::Scalar>(upper - octave));
  }
  V exponent(V z, V reference) const { return maximum(lowest_, z - reference); }
  V operator()(V z, V reference) const {
    const V difference = z - reference;
    // What rounding took from the difference (Knuth). Far away it may be NaN, and is not needed.
    const V other = difference - z;
    const V lost = (z - (difference - other)) - (reference + other);
    const V t = maximum(lowest_, difference);
    const V low_part = select(less(lowest_, t), lost, V::broadcast(0));
    const V shifted = multiply_add(t, scale_, step_origin<V>());
    const V step = shifted - step_origin<V>();
    const V fraction = multiply_add(step, lower_, multiply_add(step, upper_, t)) + low_part;
    return exp2_from_step(shifted, fraction * scale_, V::kExp2Slope);
  }

 private:
  V scale_;
  V lowest_;
  V upper_;
  V lower_;
};

// Whether a sum of exponentials has only remote terms, exponents of -20 and less. Such rows are
// rare, so they are computed twice rather than every row by ExactExponential. At alpha = 0.3, where
// exp(t) is a tenth power, Exponential has a relative error of up to 4e-6 at t = -23, and without
// FMA of 5e-6 at t = -30.
inline constexpr double kRemote = 2e-9;
inline bool is_remote(double sum) { return 0.0 < sum && sum < kRemote; }

}  // namespace
}  // namespace powergrad

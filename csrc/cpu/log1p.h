// log(1 + r), without a division, which would take longer than the polynomial. Included inside the
// target region.
#pragma once

namespace powergrad {
namespace {

inline constexpr double kLn2 = 0.69314718055994530942;

// (log(1 + f) / f - 1) / f for 0 <= f <= 1, chosen to minimise the largest relative error of
// log(1 + f): 3.3e-8, 0.3 epsilon of float.
inline constexpr float kLog1pSlope[] = {-0.4999964765f,  0.3332132264f,  -0.2485716391f,
                                        0.1915365597f,   -0.1375380468f, 0.07920456470f,
                                        -0.03006581102f, 0.005364829192f};
// 5.8e-17, 0.3 epsilon of double.
inline constexpr double kLog1pSlopeDouble[] = {
    -0.49999999999997001863,    0.3333333333283823186,     -0.249999999710965739,
    0.19999999135151758428,     -0.16666651022119953483,   0.14285526309827717702,
    -0.12498406275915602905,    0.11101171116417506519,    -0.099530001637562091965,
    0.08918571997270175364,     -0.078344666751210520095,  0.065348896616806967367,
    -0.049591111810543129235,   0.032606719293786464474,   -0.017632569120635821427,
    0.0073972160665555554693,   -0.0022309708353932549776, 0.00042696150305296121065,
    -0.000038738988674438712721};

inline Vector<float> log1p_slope(Vector<float> f) { return polynomial(f, kLog1pSlope); }
inline Vector<double> log1p_slope(Vector<double> f) { return polynomial(f, kLog1pSlopeDouble); }

// For 0 <= f <= 1, and NaN for NaN. Relative error at most 2 epsilon, as of log1p.
template <class V>
V log1p_of_fraction(V f) {
  return f * multiply_add(f, log1p_slope(f), V::broadcast(1));
}

// For 0 <= r < infinity, and NaN for NaN. Up to 1 the polynomial runs on r itself, so that nothing
// of a tiny r is lost; above, 1 + r = 2^k (1 + f).
template <class V>
V log1p(V r) {
  const V one = V::broadcast(1);
  const V sum = one + r;
  const auto large = less(one, r);
  const V k = masked(large, exponent(sum));
  const V f = select(large, sum * power_of_two(step_origin<V>() - k) - one, r);
  const V ln2 = V::broadcast(static_cast<typename V::Scalar>(kLn2));
  return multiply_add(k, ln2, log1p_of_fraction(f));
}

// For one row: the library's function branches, and takes as long as the exponentials of 10
// classes.
inline float log1p(float r) {
  float lanes[Vector<float>::kWidth];
  log1p(Vector<float>::broadcast(r)).store(lanes);
  return lanes[0];
}
inline double log1p(double r) { return std::log1p(r); }

}  // namespace
}  // namespace powergrad

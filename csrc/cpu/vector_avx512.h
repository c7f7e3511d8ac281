// AVX-512 (F, BW, DQ, VL): 16 floats or 8 doubles. Included inside the target region, after
// from_bfloat16 and to_bfloat16.
#pragma once

#include "cpu/polynomial.h"
#include "cpu/quads_avx512.h"
#include "cpu/reductions_avx2.h"
#include "exp2_polynomial.h"

namespace powergrad {
namespace {

template <class Scalar>
struct Vector;

// 8 integers; 0 where the mask has none.
inline __m512i load_integers_512(const int64_t* p, __mmask8 lanes) {
  return _mm512_maskz_loadu_epi64(lanes, p);
}
inline __m512i load_integers_512(const int32_t* p, __mmask8 lanes) {
  return _mm512_cvtepi32_epi64(_mm256_maskz_loadu_epi32(lanes, p));
}

template <>
struct Vector<float> {
  using Scalar = float;
  using Mask = __mmask16;
  static constexpr int kWidth = 16;
  static constexpr float kStepOrigin = 0x1.8p23f;
  static constexpr float kExp2Slope[] = {POWERGRAD_EXP2_SLOPE};
  static constexpr double kUnderflow = -127.0;  // power_of_two is 0
  static constexpr int kOctaveDigits = 16;      // with a step's 7 digits they make a float's 24
  __m512 v;

  static Vector broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static Mask first_lanes(int count) { return static_cast<Mask>((1u << count) - 1u); }
  // The first lanes without one of them.
  static Mask other_lanes(int count, int without) {
    return static_cast<Mask>(first_lanes(count) & ~(1u << without));
  }

  static Vector load(const float* p) { return {_mm512_loadu_ps(p)}; }
  template <class Half>
  static Vector load(const Half* p) {
    return from_bits(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Vector load_first(const float* p, int count) {
    return {_mm512_maskz_loadu_ps(first_lanes(count), p)};
  }
  template <class Half>
  static Vector load_first(const Half* p, int count) {
    return from_bits(p, _mm256_maskz_loadu_epi16(first_lanes(count), p));
  }

  void store(float* p) const { _mm512_storeu_ps(p, v); }
  // Past the caches; p is aligned to all that is stored.
  void stream(float* p) const { _mm512_stream_ps(p, v); }
  template <class Half>
  void stream(Half* p) const {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_bits(p));
  }
  template <class Half>
  void store(Half* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bits(p));
  }
  void store_first(float* p, int count) const { _mm512_mask_storeu_ps(p, first_lanes(count), v); }
  template <class Half>
  void store_first(Half* p, int count) const {
    _mm256_mask_storeu_epi16(p, first_lanes(count), to_bits(p));
  }

  static Vector load_quads(const char* p, int64_t distance) {
    return {_mm512_castsi512_ps(load_quads_512(p, distance))};
  }
  static Vector load_quads_first(const char* p, int64_t distance, int quads, int bytes) {
    return {_mm512_castsi512_ps(load_quads_first_512(p, distance, quads, bytes))};
  }
  void store_quads(char* p, int64_t distance) const {
    store_quads_512(_mm512_castps_si512(v), p, distance);
  }
  void store_quads_first(char* p, int64_t distance, int quads, int bytes) const {
    store_quads_first_512(_mm512_castps_si512(v), p, distance, quads, bytes);
  }
  // Integers p[i] - origin as numbers, rounded; one outside [0, 2^31) may become any other outside,
  // and one past `count` anything.
  template <class Integer>
  static Vector from_integers(const Integer* p, int count, int64_t origin) {
    const __m512i less = _mm512_set1_epi64(origin);
    const Mask lanes = first_lanes(count);
    const __m512i low = load_integers_512(p, static_cast<__mmask8>(lanes));
    const __m512i high = load_integers_512(p + 8, static_cast<__mmask8>(lanes >> 8));
    const __m256 halves[] = {_mm512_cvtepi64_ps(_mm512_sub_epi64(low, less)),
                             _mm512_cvtepi64_ps(_mm512_sub_epi64(high, less))};
    const __m512d joined = _mm512_insertf64x4(_mm512_castps_pd(_mm512_castps256_ps512(halves[0])),
                                              _mm256_castps_pd(halves[1]), 1);
    return {_mm512_castpd_ps(joined)};
  }
  // Anything past `count`.
  template <class Integer>
  static Mask equal_integers(const Integer* p, int count, int64_t value) {
    const __m512i wanted = _mm512_set1_epi64(value);
    const Mask lanes = first_lanes(count);
    const __m512i low = load_integers_512(p, static_cast<__mmask8>(lanes));
    const __m512i high = load_integers_512(p + 8, static_cast<__mmask8>(lanes >> 8));
    return static_cast<Mask>(_mm512_cmpeq_epi64_mask(low, wanted) |
                             _mm512_cmpeq_epi64_mask(high, wanted) << 8);
  }
  // data[offset] for each lane; offsets are integers.
  static Vector gather(const float* data, Vector offsets) {
    return {_mm512_i32gather_ps(_mm512_cvttps_epi32(offsets.v), data, sizeof(float))};
  }

  // Pairs of half-precision numbers, one in each lane: the first in the lower bits.
  template <class Half>
  static Vector first_of_pairs(const Half* which, Vector pairs) {
    return from_bits(which, _mm512_cvtepi32_epi16(_mm512_castps_si512(pairs.v)));
  }
  static Vector first_of_pairs(const BFloat16*, Vector pairs) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(pairs.v), 16))};
  }
  template <class Half>
  static Vector second_of_pairs(const Half* which, Vector pairs) {
    const __m512i upper = _mm512_srli_epi32(_mm512_castps_si512(pairs.v), 16);
    return from_bits(which, _mm512_cvtepi32_epi16(upper));
  }
  static Vector second_of_pairs(const BFloat16*, Vector pairs) {
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(pairs.v), upper))};
  }
  template <class Half>
  static Vector pairs_of(const Half* which, Vector first, Vector second) {
    const __m512i lower = _mm512_cvtepu16_epi32(first.to_bits(which));
    const __m512i upper = _mm512_slli_epi32(_mm512_cvtepu16_epi32(second.to_bits(which)), 16);
    return {_mm512_castsi512_ps(_mm512_or_si512(lower, upper))};
  }

  // Half precision; the pointer only says which.
  static Vector from_bits(const BFloat16*, __m256i bits) { return {from_bfloat16(bits)}; }
  static Vector from_bits(const Float16*, __m256i bits) { return {_mm512_cvtph_ps(bits)}; }
  __m256i to_bits(const BFloat16*) const { return to_bfloat16(v); }
  __m256i to_bits(const Float16*) const {
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
};

inline Vector<float> operator+(Vector<float> a, Vector<float> b) {
  return {_mm512_add_ps(a.v, b.v)};
}
inline Vector<float> operator-(Vector<float> a, Vector<float> b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
inline Vector<float> operator*(Vector<float> a, Vector<float> b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
inline Vector<float> operator/(Vector<float> a, Vector<float> b) {
  return {_mm512_div_ps(a.v, b.v)};
}
inline Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
// b where either is NaN.
inline Vector<float> maximum(Vector<float> a, Vector<float> b) { return {_mm512_max_ps(a.v, b.v)}; }
// 2^step of kStepOrigin + step; 0 for step = kUnderflow.
inline Vector<float> power_of_two(Vector<float> shifted) {
  const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(power, _mm512_castps_si512(_mm512_set1_ps(1.0f))))};
}
// 2^x = 2^floor(x) (1 + f slope(f)), where x = scale t and f = x - floor(x). vreduceps computes f
// and vscalefps multiplies by 2^floor(x), with 0 for results that underflow. So t needs no bound
// and the fraction no table; this takes two instructions less than exp2_from_step. Maximum relative
// error for any x, without the rounding of the product: 9.5e-8 + 0.5 ulp; in half precision 8.6e-5.
template <Precision kPrecision>
Vector<float> exp2_of_product(Vector<float> scale, Vector<float> t, Vector<float>) {
  const Vector<float> x = scale * t;
  const Vector<float> f{_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
  Vector<float> slope;
  if constexpr (kPrecision == Precision::half) {
    slope = polynomial(f, {0.69511682f, 0.22764497f, 0.077067062f});
  } else {
    slope = polynomial(f, {0.6931513f, 0.24016444f, 0.055799913f, 0.0090170298f, 0.0018671303f});
  }
  return {_mm512_scalef_ps(multiply_add(slope, f, Vector<float>::broadcast(1)).v, x.v)};
}
// floor(log2(a)) for positive a.
inline Vector<float> exponent(Vector<float> a) { return {_mm512_getexp_ps(a.v)}; }
inline __mmask16 equal(Vector<float> a, Vector<float> b) {
  return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ);
}
inline __mmask16 less(Vector<float> a, Vector<float> b) {
  return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ);
}
inline Vector<float> select(__mmask16 mask, Vector<float> yes, Vector<float> no) {
  return {_mm512_mask_blend_ps(mask, no.v, yes.v)};
}
// Within each 128 bits: a0 b0 a1 b1, and a2 b2 a3 b3.
inline Vector<float> interleave_low(Vector<float> a, Vector<float> b) {
  return {_mm512_unpacklo_ps(a.v, b.v)};
}
inline Vector<float> interleave_high(Vector<float> a, Vector<float> b) {
  return {_mm512_unpackhi_ps(a.v, b.v)};
}
// Within each 128 bits: the lower halves of a and b, and their upper halves.
inline Vector<float> low_halves(Vector<float> a, Vector<float> b) {
  return {_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a.v), _mm512_castps_pd(b.v)))};
}
inline Vector<float> high_halves(Vector<float> a, Vector<float> b) {
  return {_mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a.v), _mm512_castps_pd(b.v)))};
}
// x in the lanes of the mask, else 0.
inline Vector<float> masked(__mmask16 mask, Vector<float> x) {
  return {_mm512_maskz_mov_ps(mask, x.v)};
}
inline Vector<float> add_where(__mmask16 mask, Vector<float> sum, Vector<float> term) {
  return {_mm512_mask_add_ps(sum.v, mask, sum.v, term.v)};
}
inline Vector<float> multiply_add_where(__mmask16 mask, Vector<float> a, Vector<float> b,
                                        Vector<float> sum) {
  return {_mm512_mask3_fmadd_ps(a.v, b.v, sum.v, mask)};
}
inline __mmask16 not_equal(Vector<float> a, Vector<float> b) {
  return _mm512_cmp_ps_mask(a.v, b.v, _CMP_NEQ_UQ);
}
inline int first_set(__mmask16 mask) { return mask ? __builtin_ctz(mask) : -1; }

template <>
struct Vector<double> {
  using Scalar = double;
  using Mask = __mmask8;
  static constexpr int kWidth = 8;
  static constexpr double kStepOrigin = 0x1.8p52;
  static constexpr double kExp2Slope[] = {POWERGRAD_EXP2_SLOPE_DOUBLE};
  static constexpr double kUnderflow = -1023.0;
  static constexpr int kOctaveDigits = 42;  // with a step's 10
  __m512d v;

  static Vector broadcast(double x) { return {_mm512_set1_pd(x)}; }
  static Mask first_lanes(int count) { return static_cast<Mask>((1u << count) - 1u); }
  // The first lanes without one of them.
  static Mask other_lanes(int count, int without) {
    return static_cast<Mask>(first_lanes(count) & ~(1u << without));
  }
  static Vector load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static Vector load_first(const double* p, int count) {
    return {_mm512_maskz_loadu_pd(first_lanes(count), p)};
  }
  void store(double* p) const { _mm512_storeu_pd(p, v); }
  void stream(double* p) const { _mm512_stream_pd(p, v); }
  void store_first(double* p, int count) const { _mm512_mask_storeu_pd(p, first_lanes(count), v); }
  static Vector load_quads(const char* p, int64_t distance) {
    return {_mm512_castsi512_pd(load_quads_512(p, distance))};
  }
  static Vector load_quads_first(const char* p, int64_t distance, int quads, int bytes) {
    return {_mm512_castsi512_pd(load_quads_first_512(p, distance, quads, bytes))};
  }
  void store_quads(char* p, int64_t distance) const {
    store_quads_512(_mm512_castpd_si512(v), p, distance);
  }
  void store_quads_first(char* p, int64_t distance, int quads, int bytes) const {
    store_quads_first_512(_mm512_castpd_si512(v), p, distance, quads, bytes);
  }
  template <class Integer>
  static Vector from_integers(const Integer* p, int count, int64_t origin) {
    const __m512i integers = load_integers_512(p, first_lanes(count));
    return {_mm512_cvtepi64_pd(_mm512_sub_epi64(integers, _mm512_set1_epi64(origin)))};
  }
  template <class Integer>
  static Mask equal_integers(const Integer* p, int count, int64_t value) {
    return _mm512_cmpeq_epi64_mask(load_integers_512(p, first_lanes(count)),
                                   _mm512_set1_epi64(value));
  }
  static Vector gather(const double* data, Vector offsets) {
    return {_mm512_i32gather_pd(_mm512_cvttpd_epi32(offsets.v), data, sizeof(double))};
  }
};

inline Vector<double> operator+(Vector<double> a, Vector<double> b) {
  return {_mm512_add_pd(a.v, b.v)};
}
inline Vector<double> operator-(Vector<double> a, Vector<double> b) {
  return {_mm512_sub_pd(a.v, b.v)};
}
inline Vector<double> operator*(Vector<double> a, Vector<double> b) {
  return {_mm512_mul_pd(a.v, b.v)};
}
inline Vector<double> operator/(Vector<double> a, Vector<double> b) {
  return {_mm512_div_pd(a.v, b.v)};
}
inline Vector<double> multiply_add(Vector<double> a, Vector<double> b, Vector<double> c) {
  return {_mm512_fmadd_pd(a.v, b.v, c.v)};
}
inline Vector<double> maximum(Vector<double> a, Vector<double> b) {
  return {_mm512_max_pd(a.v, b.v)};
}
inline Vector<double> power_of_two(Vector<double> shifted) {
  const __m512i power = _mm512_slli_epi64(_mm512_castpd_si512(shifted.v), 52);
  return {_mm512_castsi512_pd(_mm512_add_epi64(power, _mm512_castpd_si512(_mm512_set1_pd(1.0))))};
}
// floor(log2(a)) for positive a.
inline Vector<double> exponent(Vector<double> a) { return {_mm512_getexp_pd(a.v)}; }
inline __mmask8 equal(Vector<double> a, Vector<double> b) {
  return _mm512_cmp_pd_mask(a.v, b.v, _CMP_EQ_OQ);
}
inline __mmask8 less(Vector<double> a, Vector<double> b) {
  return _mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ);
}
inline Vector<double> select(__mmask8 mask, Vector<double> yes, Vector<double> no) {
  return {_mm512_mask_blend_pd(mask, no.v, yes.v)};
}
inline double sum_of_lanes(Vector<double> a) {
  return sum_256(_mm256_add_pd(_mm512_castpd512_pd256(a.v), _mm512_extractf64x4_pd(a.v, 1)));
}
inline double largest_of_lanes(Vector<double> a) {
  return largest_256(_mm256_max_pd(_mm512_castpd512_pd256(a.v), _mm512_extractf64x4_pd(a.v, 1)));
}
inline double sum_of_lanes(Vector<float> a) {
  const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1));
  const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(a.v));
  return sum_of_lanes(Vector<double>{_mm512_add_pd(low, _mm512_cvtps_pd(upper))});
}
inline float largest_of_lanes(Vector<float> a) {
  const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1));
  return largest_256(_mm256_max_ps(_mm512_castps512_ps256(a.v), upper));
}
inline Vector<double> low_halves(Vector<double> a, Vector<double> b) {
  return {_mm512_unpacklo_pd(a.v, b.v)};
}
inline Vector<double> high_halves(Vector<double> a, Vector<double> b) {
  return {_mm512_unpackhi_pd(a.v, b.v)};
}
inline Vector<double> masked(__mmask8 mask, Vector<double> x) {
  return {_mm512_maskz_mov_pd(mask, x.v)};
}
inline Vector<double> add_where(__mmask8 mask, Vector<double> sum, Vector<double> term) {
  return {_mm512_mask_add_pd(sum.v, mask, sum.v, term.v)};
}
inline Vector<double> multiply_add_where(__mmask8 mask, Vector<double> a, Vector<double> b,
                                         Vector<double> sum) {
  return {_mm512_mask3_fmadd_pd(a.v, b.v, sum.v, mask)};
}
inline __mmask8 not_equal(Vector<double> a, Vector<double> b) {
  return _mm512_cmp_pd_mask(a.v, b.v, _CMP_NEQ_UQ);
}
inline int first_set(__mmask8 mask) { return mask ? __builtin_ctz(mask) : -1; }

// The most classes for which contiguous rows are transposed: beyond, reducing them one by one was
// faster (forward with gradient, 512 and 16384 rows).
template <class Storage>
inline constexpr int64_t kMostFewClasses = 304;
template <>
inline constexpr int64_t kMostFewClasses<BFloat16> = 384;
template <>
inline constexpr int64_t kMostFewClasses<double> = 128;

// What was streamed is seen by other threads before what is stored from here on.
inline void finish_streams() { _mm_sfence(); }

}  // namespace
}  // namespace powergrad

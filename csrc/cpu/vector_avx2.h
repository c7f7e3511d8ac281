// AVX2 with FMA and F16C: 8 floats or 4 doubles. Included inside the target region.
#pragma once

#include "cpu/quads_avx2.h"
#include "cpu/reductions_avx2.h"
#include "cpu/roots_of_two.h"
#include "exp2_polynomial.h"

namespace powergrad {
namespace {

template <class Scalar>
struct Vector;

// Lane i is all ones when i < count.
inline __m256i first_lanes_32(int count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
}
inline __m256i lane_32(int number) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpeq_epi32(_mm256_set1_epi32(number), lane);
}
inline __m256i first_lanes_64(int count) {
  const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), lane);
}
inline __m256i lane_64(int number) {
  const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
  return _mm256_cmpeq_epi64(_mm256_set1_epi64x(number), lane);
}

// Up to 4 integers; 0 past `count`, which may be below 0.
inline __m256i load_integers_256(const int64_t* p, int count) {
  return _mm256_maskload_epi64(reinterpret_cast<const long long*>(p), first_lanes_64(count));
}
inline __m256i load_integers_256(const int32_t* p, int count) {
  return _mm256_cvtepi32_epi64(
      _mm_maskload_epi32(p, _mm256_castsi256_si128(first_lanes_32(std::min(count, 4)))));
}
// The lower halves of 4 integers, or -1 for one that is not in [0, 2^31).
inline __m128i narrow_256(__m256i integers) {
  const __m256i fits = _mm256_cmpeq_epi64(_mm256_srli_epi64(integers, 31), _mm256_setzero_si256());
  const __m256i narrow = _mm256_blendv_epi8(_mm256_set1_epi32(-1), integers, fits);
  const __m256i lower_halves = _mm256_setr_epi32(0, 2, 4, 6, 0, 0, 0, 0);
  return _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(narrow, lower_halves));
}

template <>
struct Vector<float> {
  using Scalar = float;
  struct Mask {
    __m256 bits;
  };
  static constexpr int kWidth = 8;
  static constexpr int kSteps = 8;
  static constexpr float kStepOrigin = 0x1.8p23f / kSteps;
  static constexpr float kExp2Slope[] = {0.69314724f, 0.24025764f, 0.055496223f};  // 2.7e-8
  static constexpr float kHalfExp2Slope[] = {0.69330889f, 0.24022588f};            // 3.5e-6
  static constexpr double kUnderflow = -127.0;  // power_of_two is 0
  static constexpr int kOctaveDigits = 13;      // with a step's 10 digits they make a float's 24
  __m256 v;

  static Vector broadcast(float x) { return {_mm256_set1_ps(x)}; }
  static Mask first_lanes(int count) { return {_mm256_castsi256_ps(first_lanes_32(count))}; }
  // The first lanes without one of them.
  static Mask other_lanes(int count, int without) {
    return {_mm256_castsi256_ps(_mm256_andnot_si256(lane_32(without), first_lanes_32(count)))};
  }

  static Vector load(const float* p) { return {_mm256_loadu_ps(p)}; }
  template <class Half>
  static Vector load(const Half* p) {
    return from_bits(p, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Vector load_first(const float* p, int count) {
    return {_mm256_maskload_ps(p, first_lanes_32(count))};
  }
  template <class Half>
  static Vector load_first(const Half* p, int count) {
    Half buffer[kWidth] = {};
    std::memcpy(buffer, p, count * sizeof(Half));
    return load(buffer);
  }

  void store(float* p) const { _mm256_storeu_ps(p, v); }
  template <class Half>
  void store(Half* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bits(p));
  }
  // Past the caches; p is aligned to all that is stored.
  void stream(float* p) const { _mm256_stream_ps(p, v); }
  template <class Half>
  void stream(Half* p) const {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), to_bits(p));
  }
  void store_first(float* p, int count) const { _mm256_maskstore_ps(p, first_lanes_32(count), v); }
  template <class Half>
  void store_first(Half* p, int count) const {
    Half buffer[kWidth];
    store(buffer);
    std::memcpy(p, buffer, count * sizeof(Half));
  }
  static Vector load_quads(const char* p, int64_t distance) {
    return {_mm256_castsi256_ps(load_quads_256(p, distance))};
  }
  static Vector load_quads_first(const char* p, int64_t distance, int quads, int bytes) {
    return {_mm256_castsi256_ps(load_quads_first_256(p, distance, quads, bytes))};
  }
  void store_quads(char* p, int64_t distance) const {
    store_quads_256(_mm256_castps_si256(v), p, distance);
  }
  void store_quads_first(char* p, int64_t distance, int quads, int bytes) const {
    store_quads_first_256(_mm256_castps_si256(v), p, distance, quads, bytes);
  }
  // Integers p[i] - origin as numbers, rounded; one outside [0, 2^31) may become any other outside,
  // and one past `count` anything.
  template <class Integer>
  static Vector from_integers(const Integer* p, int count, int64_t origin) {
    const __m256i less = _mm256_set1_epi64x(origin);
    const __m128i low = narrow_256(_mm256_sub_epi64(load_integers_256(p, count), less));
    const __m128i high = narrow_256(_mm256_sub_epi64(load_integers_256(p + 4, count - 4), less));
    return {_mm256_cvtepi32_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1))};
  }
  // Anything past `count`.
  template <class Integer>
  static Mask equal_integers(const Integer* p, int count, int64_t value) {
    const __m256i wanted = _mm256_set1_epi64x(value);
    const __m256i low = _mm256_cmpeq_epi64(load_integers_256(p, count), wanted);
    const __m256i high = _mm256_cmpeq_epi64(load_integers_256(p + 4, count - 4), wanted);
    const __m256 halves = _mm256_shuffle_ps(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high),
                                            _MM_SHUFFLE(2, 0, 2, 0));
    constexpr int kInOrder = _MM_SHUFFLE(3, 1, 2, 0);
    return {_mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(halves), kInOrder))};
  }
  // data[offset] for each lane; offsets are integers.
  static Vector gather(const float* data, Vector offsets) {
    return {_mm256_i32gather_ps(data, _mm256_cvttps_epi32(offsets.v), sizeof(float))};
  }

  // Pairs of half-precision numbers, one in each lane: the first in the lower bits.
  template <class Half>
  static Vector first_of_pairs(const Half* which, Vector pairs) {
    return from_bits(which, low_halves_of_lanes(_mm256_castps_si256(pairs.v)));
  }
  static Vector first_of_pairs(const BFloat16*, Vector pairs) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(pairs.v), 16))};
  }
  template <class Half>
  static Vector second_of_pairs(const Half* which, Vector pairs) {
    const __m256i upper = _mm256_srli_epi32(_mm256_castps_si256(pairs.v), 16);
    return from_bits(which, low_halves_of_lanes(upper));
  }
  static Vector second_of_pairs(const BFloat16*, Vector pairs) {
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(pairs.v), upper))};
  }
  template <class Half>
  static Vector pairs_of(const Half* which, Vector first, Vector second) {
    const __m256i lower = _mm256_cvtepu16_epi32(first.to_bits(which));
    const __m256i upper = _mm256_slli_epi32(_mm256_cvtepu16_epi32(second.to_bits(which)), 16);
    return {_mm256_castsi256_ps(_mm256_or_si256(lower, upper))};
  }

  // Half precision; the pointer only says which.
  static Vector from_bits(const BFloat16*, __m128i bits) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
  }
  static Vector from_bits(const Float16*, __m128i bits) { return {_mm256_cvtph_ps(bits)}; }
  __m128i to_bits(const BFloat16*) const {
    const __m256i bits = _mm256_castps_si256(v);
    // Round to nearest even: add 0x7fff plus the lowest bit that is kept; NaN keeps its payload.
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_add_epi32(bits, bias);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return low_halves_of_lanes(_mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16));
  }
  __m128i to_bits(const Float16*) const {
    return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }

 private:
  // The lower 16 bits of each lane.
  static __m128i low_halves_of_lanes(__m256i x) {
    const __m256i lower = _mm256_and_si256(x, _mm256_set1_epi32(0xffff));
    const __m256i packed = _mm256_packus_epi32(lower, lower);  // within each 128-bit half
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
  }
};

inline Vector<float> operator+(Vector<float> a, Vector<float> b) {
  return {_mm256_add_ps(a.v, b.v)};
}
inline Vector<float> operator-(Vector<float> a, Vector<float> b) {
  return {_mm256_sub_ps(a.v, b.v)};
}
inline Vector<float> operator*(Vector<float> a, Vector<float> b) {
  return {_mm256_mul_ps(a.v, b.v)};
}
inline Vector<float> operator/(Vector<float> a, Vector<float> b) {
  return {_mm256_div_ps(a.v, b.v)};
}
inline Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
// b where either is NaN.
inline Vector<float> maximum(Vector<float> a, Vector<float> b) { return {_mm256_max_ps(a.v, b.v)}; }
// 2^step of kStepOrigin + step, a root from the table times a power; 0 for step = kUnderflow, and
// something smaller than 2^-126 where that is not a normal number.
inline Vector<float> power_of_two(Vector<float> shifted) {
  static_assert(Vector<float>::kSteps == 8);
  constexpr const int32_t* r = kRootsOfTwo;
  const __m256i roots = _mm256_setr_epi32(r[0], r[4], r[8], r[12], r[16], r[20], r[24], r[28]);
  const __m256i number = _mm256_castps_si256(shifted.v);
  const __m256i root = _mm256_permutevar8x32_epi32(roots, number);
  return {_mm256_castsi256_ps(_mm256_add_epi32(root, _mm256_slli_epi32(number, 20)))};
}
// floor(log2(a)) for positive a.
inline Vector<float> exponent(Vector<float> a) {
  const __m256i biased = _mm256_srli_epi32(_mm256_castps_si256(a.v), 23);
  return {_mm256_cvtepi32_ps(_mm256_sub_epi32(biased, _mm256_set1_epi32(127)))};
}
inline Vector<float>::Mask equal(Vector<float> a, Vector<float> b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)};
}
inline Vector<float>::Mask less(Vector<float> a, Vector<float> b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)};
}
inline Vector<float> select(Vector<float>::Mask mask, Vector<float> yes, Vector<float> no) {
  return {_mm256_blendv_ps(no.v, yes.v, mask.bits)};
}
// Within each 128 bits: a0 b0 a1 b1, and a2 b2 a3 b3.
inline Vector<float> interleave_low(Vector<float> a, Vector<float> b) {
  return {_mm256_unpacklo_ps(a.v, b.v)};
}
inline Vector<float> interleave_high(Vector<float> a, Vector<float> b) {
  return {_mm256_unpackhi_ps(a.v, b.v)};
}
// Within each 128 bits: the lower halves of a and b, and their upper halves.
inline Vector<float> low_halves(Vector<float> a, Vector<float> b) {
  return {_mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a.v), _mm256_castps_pd(b.v)))};
}
inline Vector<float> high_halves(Vector<float> a, Vector<float> b) {
  return {_mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a.v), _mm256_castps_pd(b.v)))};
}
// x in the lanes of the mask, else 0.
inline Vector<float> masked(Vector<float>::Mask mask, Vector<float> x) {
  return {_mm256_and_ps(mask.bits, x.v)};
}
inline Vector<float>::Mask not_equal(Vector<float> a, Vector<float> b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_NEQ_UQ)};
}
inline int first_set(Vector<float>::Mask mask) {
  const int bits = _mm256_movemask_ps(mask.bits);
  return bits ? __builtin_ctz(bits) : -1;
}

template <>
struct Vector<double> {
  using Scalar = double;
  struct Mask {
    __m256d bits;
  };
  static constexpr int kWidth = 4;
  static constexpr double kStepOrigin = 0x1.8p52;
  static constexpr double kExp2Slope[] = {POWERGRAD_EXP2_SLOPE_DOUBLE};
  static constexpr double kUnderflow = -1023.0;
  static constexpr int kOctaveDigits = 42;  // with a step's 10
  __m256d v;

  static Vector broadcast(double x) { return {_mm256_set1_pd(x)}; }
  static Mask first_lanes(int count) { return {_mm256_castsi256_pd(first_lanes_64(count))}; }
  static Mask other_lanes(int count, int without) {
    return {_mm256_castsi256_pd(_mm256_andnot_si256(lane_64(without), first_lanes_64(count)))};
  }
  static Vector load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static Vector load_first(const double* p, int count) {
    return {_mm256_maskload_pd(p, first_lanes_64(count))};
  }
  void store(double* p) const { _mm256_storeu_pd(p, v); }
  void stream(double* p) const { _mm256_stream_pd(p, v); }
  void store_first(double* p, int count) const { _mm256_maskstore_pd(p, first_lanes_64(count), v); }
  static Vector load_quads(const char* p, int64_t distance) {
    return {_mm256_castsi256_pd(load_quads_256(p, distance))};
  }
  static Vector load_quads_first(const char* p, int64_t distance, int quads, int bytes) {
    return {_mm256_castsi256_pd(load_quads_first_256(p, distance, quads, bytes))};
  }
  void store_quads(char* p, int64_t distance) const {
    store_quads_256(_mm256_castpd_si256(v), p, distance);
  }
  void store_quads_first(char* p, int64_t distance, int quads, int bytes) const {
    store_quads_first_256(_mm256_castpd_si256(v), p, distance, quads, bytes);
  }
  template <class Integer>
  static Vector from_integers(const Integer* p, int count, int64_t origin) {
    const __m256i integers = load_integers_256(p, count);
    return {_mm256_cvtepi32_pd(narrow_256(_mm256_sub_epi64(integers, _mm256_set1_epi64x(origin))))};
  }
  template <class Integer>
  static Mask equal_integers(const Integer* p, int count, int64_t value) {
    return {_mm256_castsi256_pd(
        _mm256_cmpeq_epi64(load_integers_256(p, count), _mm256_set1_epi64x(value)))};
  }
  static Vector gather(const double* data, Vector offsets) {
    return {_mm256_i32gather_pd(data, _mm256_cvttpd_epi32(offsets.v), sizeof(double))};
  }
};

inline Vector<double> operator+(Vector<double> a, Vector<double> b) {
  return {_mm256_add_pd(a.v, b.v)};
}
inline Vector<double> operator-(Vector<double> a, Vector<double> b) {
  return {_mm256_sub_pd(a.v, b.v)};
}
inline Vector<double> operator*(Vector<double> a, Vector<double> b) {
  return {_mm256_mul_pd(a.v, b.v)};
}
inline Vector<double> operator/(Vector<double> a, Vector<double> b) {
  return {_mm256_div_pd(a.v, b.v)};
}
inline Vector<double> multiply_add(Vector<double> a, Vector<double> b, Vector<double> c) {
  return {_mm256_fmadd_pd(a.v, b.v, c.v)};
}
inline Vector<double> maximum(Vector<double> a, Vector<double> b) {
  return {_mm256_max_pd(a.v, b.v)};
}
inline Vector<double> power_of_two(Vector<double> shifted) {
  const __m256i power = _mm256_slli_epi64(_mm256_castpd_si256(shifted.v), 52);
  return {_mm256_castsi256_pd(_mm256_add_epi64(power, _mm256_castpd_si256(_mm256_set1_pd(1.0))))};
}
// floor(log2(a)) for positive a: its biased exponent as the last bits of 2^52.
inline Vector<double> exponent(Vector<double> a) {
  const __m256i biased = _mm256_srli_epi64(_mm256_castpd_si256(a.v), 52);
  const __m256d origin = _mm256_set1_pd(0x1p52);
  const __m256d number = _mm256_castsi256_pd(_mm256_or_si256(biased, _mm256_castpd_si256(origin)));
  return {_mm256_sub_pd(number, _mm256_set1_pd(0x1p52 + 1023.0))};
}
inline Vector<double>::Mask equal(Vector<double> a, Vector<double> b) {
  return {_mm256_cmp_pd(a.v, b.v, _CMP_EQ_OQ)};
}
inline Vector<double>::Mask less(Vector<double> a, Vector<double> b) {
  return {_mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ)};
}
inline Vector<double> select(Vector<double>::Mask mask, Vector<double> yes, Vector<double> no) {
  return {_mm256_blendv_pd(no.v, yes.v, mask.bits)};
}
inline double sum_of_lanes(Vector<double> a) { return sum_256(a.v); }
inline double largest_of_lanes(Vector<double> a) { return largest_256(a.v); }
inline double sum_of_lanes(Vector<float> a) {
  const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(a.v));
  const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(a.v, 1));
  return sum_of_lanes(Vector<double>{_mm256_add_pd(low, high)});
}
inline float largest_of_lanes(Vector<float> a) { return largest_256(a.v); }
inline Vector<double> low_halves(Vector<double> a, Vector<double> b) {
  return {_mm256_unpacklo_pd(a.v, b.v)};
}
inline Vector<double> high_halves(Vector<double> a, Vector<double> b) {
  return {_mm256_unpackhi_pd(a.v, b.v)};
}
inline Vector<double> masked(Vector<double>::Mask mask, Vector<double> x) {
  return {_mm256_and_pd(mask.bits, x.v)};
}
inline Vector<double>::Mask not_equal(Vector<double> a, Vector<double> b) {
  return {_mm256_cmp_pd(a.v, b.v, _CMP_NEQ_UQ)};
}
inline int first_set(Vector<double>::Mask mask) {
  const int bits = _mm256_movemask_pd(mask.bits);
  return bits ? __builtin_ctz(bits) : -1;
}

// The most classes for which contiguous rows are transposed: beyond, reducing them one by one was
// faster (forward with gradient, 512 and 16384 rows).
template <class Storage>
inline constexpr int64_t kMostFewClasses = 192;
template <>
inline constexpr int64_t kMostFewClasses<double> = 64;

// What was streamed is seen by other threads before what is stored from here on.
inline void finish_streams() { _mm_sfence(); }

}  // namespace
}  // namespace powergrad

// AVX-512 for a processor that has none: SIMDe writes the intrinsics out in AVX2, and the ones that
// its version 0.7.4 lacks follow here. Built with -mavx2 -mfma -mf16c.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define POWERGRAD_INLINE inline __attribute__((always_inline))

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

namespace powergrad_simde {

template <class Wide, class Half>
POWERGRAD_INLINE Wide join(Half low, Half high) {
  static_assert(sizeof(Wide) == 2 * sizeof(Half));
  Wide result;
  std::memcpy(&result, &low, sizeof(Half));
  std::memcpy(reinterpret_cast<char*>(&result) + sizeof(Half), &high, sizeof(Half));
  return result;
}

// Half 0 is the low one.
template <class Half, class Wide>
POWERGRAD_INLINE Half half_of(Wide x, int which) {
  static_assert(sizeof(Wide) == 2 * sizeof(Half));
  Half result;
  std::memcpy(&result, reinterpret_cast<const char*>(&x) + which * sizeof(Half), sizeof(Half));
  return result;
}

// Masked memory is touched lane by lane, so that AddressSanitizer sees exactly what the processor
// would touch.
template <class Wide, class Scalar>
POWERGRAD_INLINE Wide load_masked(unsigned mask, const Scalar* p) {
  constexpr unsigned kWidth = sizeof(Wide) / sizeof(Scalar);
  Scalar lanes[kWidth];
  for (unsigned i = 0; i < kWidth; ++i) lanes[i] = (mask >> i & 1u) != 0 ? p[i] : Scalar(0);
  Wide result;
  std::memcpy(&result, lanes, sizeof(result));
  return result;
}

template <class Wide, class Scalar>
POWERGRAD_INLINE void store_masked(Scalar* p, unsigned mask, Wide x) {
  constexpr unsigned kWidth = sizeof(Wide) / sizeof(Scalar);
  Scalar lanes[kWidth];
  std::memcpy(lanes, &x, sizeof(x));
  for (unsigned i = 0; i < kWidth; ++i) {
    if ((mask >> i & 1u) != 0) p[i] = lanes[i];
  }
}

POWERGRAD_INLINE __m512i widen_unsigned(__m256i x) {
  return join<__m512i>(_mm256_cvtepu16_epi32(half_of<__m128i>(x, 0)),
                       _mm256_cvtepu16_epi32(half_of<__m128i>(x, 1)));
}

// The elements are some two-byte type; their bits are what counts.
inline __m256i load_masked_halves(unsigned mask, const void* p) {
  return load_masked<__m256i>(mask, static_cast<const uint16_t*>(p));
}
inline __m512i load_masked_32_halves(unsigned mask, const void* p) {
  return load_masked<__m512i>(mask, static_cast<const uint16_t*>(p));
}
inline void store_masked_halves(void* p, unsigned mask, __m256i x) {
  store_masked(static_cast<uint16_t*>(p), mask, x);
}

// Keeps the low 16 bits of every lane.
POWERGRAD_INLINE __m256i narrow(__m512i x) {
  uint32_t wide[16];
  uint16_t lanes[16];
  std::memcpy(wide, &x, sizeof(x));
  for (int i = 0; i < 16; ++i) lanes[i] = static_cast<uint16_t>(wide[i]);
  __m256i result;
  std::memcpy(&result, lanes, sizeof(result));
  return result;
}

POWERGRAD_INLINE __m512 half_to_float(__m256i x) {
  return join<__m512>(_mm256_cvtph_ps(half_of<__m128i>(x, 0)),
                      _mm256_cvtph_ps(half_of<__m128i>(x, 1)));
}

template <int kRounding>
POWERGRAD_INLINE __m256i float_to_half(__m512 x) {
  return join<__m256i>(_mm256_cvtps_ph(half_of<__m256>(x, 0), kRounding),
                       _mm256_cvtps_ph(half_of<__m256>(x, 1), kRounding));
}

POWERGRAD_INLINE __m512d float_to_double(__m256 x) {
  return join<__m512d>(_mm256_cvtps_pd(half_of<__m128>(x, 0)),
                       _mm256_cvtps_pd(half_of<__m128>(x, 1)));
}

// Lane by lane: To result[i] = function(From x[i]).
template <class From, class To, class Out, class In, class Function>
POWERGRAD_INLINE Out map_lanes(In x, const Function& function) {
  constexpr unsigned kLanes = sizeof(Out) / sizeof(To);
  static_assert(kLanes == sizeof(In) / sizeof(From));
  From from[kLanes];
  To to[kLanes];
  std::memcpy(from, &x, sizeof(x));
  for (unsigned i = 0; i < kLanes; ++i) to[i] = function(from[i]);
  Out result;
  std::memcpy(&result, to, sizeof(result));
  return result;
}

// floor(log2(|x|)); the same special values as the instruction.
POWERGRAD_INLINE __m512 exponent(__m512 x) {
  return map_lanes<float, float, __m512>(x, [](float lane) { return std::logb(lane); });
}
POWERGRAD_INLINE __m512d exponent(__m512d x) {
  return map_lanes<double, double, __m512d>(x, [](double lane) { return std::logb(lane); });
}

// x - floor(x); 0 for an infinity.
POWERGRAD_INLINE __m512 above_floor(__m512 x, int) {
  return map_lanes<float, float, __m512>(
      x, [](float lane) { return std::isinf(lane) ? 0.0f : lane - std::floor(lane); });
}
// x 2^floor(y).
POWERGRAD_INLINE __m512 scaled(__m512 x, __m512 y) {
  float lanes[16];
  std::memcpy(lanes, &x, sizeof(x));
  const float* lane = lanes;
  return map_lanes<float, float, __m512>(y, [&lane](float power) {
    const float factor = *lane++;
    if (std::isnan(power)) return power;
    return std::ldexp(factor, static_cast<int>(std::floor(std::fmax(power, -1000.0f))));
  });
}

// Bit i is whether compare(a[i], b[i]).
template <class Compare>
POWERGRAD_INLINE uint32_t compare_halves(__m512i a, __m512i b, const Compare& compare) {
  int16_t x[32];
  int16_t y[32];
  std::memcpy(x, &a, sizeof(a));
  std::memcpy(y, &b, sizeof(b));
  uint32_t mask = 0;
  for (unsigned i = 0; i < 32; ++i) mask |= static_cast<uint32_t>(compare(x[i], y[i])) << i;
  return mask;
}
POWERGRAD_INLINE uint32_t equal_halves(__m512i a, __m512i b) {
  return compare_halves(a, b, [](int16_t x, int16_t y) { return x == y; });
}
POWERGRAD_INLINE uint32_t less_halves(__m512i a, __m512i b) {
  return compare_halves(a, b, [](int16_t x, int16_t y) { return x < y; });
}

// Between integers and numbers.
POWERGRAD_INLINE __m512i widen_signed(__m256i x) {
  return map_lanes<int32_t, int64_t, __m512i>(x, [](int32_t lane) { return lane; });
}
POWERGRAD_INLINE __m256 integers_to_float(__m512i x) {
  return map_lanes<int64_t, float, __m256>(x,
                                           [](int64_t lane) { return static_cast<float>(lane); });
}
POWERGRAD_INLINE __m512d integers_to_double(__m512i x) {
  return map_lanes<int64_t, double, __m512d>(
      x, [](int64_t lane) { return static_cast<double>(lane); });
}
POWERGRAD_INLINE __m512i truncate(__m512 x) {
  return map_lanes<float, int32_t, __m512i>(x,
                                            [](float lane) { return static_cast<int32_t>(lane); });
}
POWERGRAD_INLINE __m256i truncate(__m512d x) {
  return map_lanes<double, int32_t, __m256i>(
      x, [](double lane) { return static_cast<int32_t>(lane); });
}

POWERGRAD_INLINE __m512 gather(__m512i offsets, const float* data, int) {
  return map_lanes<int32_t, float, __m512>(offsets, [data](int32_t i) { return data[i]; });
}
POWERGRAD_INLINE __m512d gather(__m256i offsets, const double* data, int) {
  return map_lanes<int32_t, double, __m512d>(offsets, [data](int32_t i) { return data[i]; });
}

}  // namespace powergrad_simde
#undef POWERGRAD_INLINE

// The compiler may define some of these itself, for a target that is not open here.
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph(x, rounding) powergrad_simde::float_to_half<(rounding) & 3>(x)
#define _mm512_cvtph_ps powergrad_simde::half_to_float
#define _mm512_cvtps_pd powergrad_simde::float_to_double
#define _mm512_cvtepu16_epi32 powergrad_simde::widen_unsigned
#define _mm512_cvtepi32_epi16 powergrad_simde::narrow
#define _mm512_cvtepi32_epi64 powergrad_simde::widen_signed
#define _mm512_cvtepi64_ps powergrad_simde::integers_to_float
#define _mm512_cvtepi64_pd powergrad_simde::integers_to_double
#define _mm512_cvttps_epi32 powergrad_simde::truncate
#define _mm512_cvttpd_epi32 powergrad_simde::truncate
#define _mm512_i32gather_ps powergrad_simde::gather
#define _mm512_i32gather_pd powergrad_simde::gather
#define _mm512_getexp_ps powergrad_simde::exponent
#define _mm512_getexp_pd powergrad_simde::exponent
#undef _mm512_scalef_ps
#define _mm512_reduce_ps powergrad_simde::above_floor
#define _mm512_scalef_ps powergrad_simde::scaled
#undef _mm512_cmpeq_epi16_mask
#define _mm512_cmpeq_epi16_mask powergrad_simde::equal_halves
#undef _mm512_cmplt_epi16_mask
#define _mm512_cmplt_epi16_mask powergrad_simde::less_halves
#define _mm512_maskz_loadu_epi16 powergrad_simde::load_masked_32_halves
#define _mm_maskz_loadu_epi8(mask, p) powergrad_simde::load_masked<__m128i>(mask, p)
#define _mm_mask_storeu_epi8 powergrad_simde::store_masked<__m128i, char>
#define _mm512_maskz_loadu_epi64(mask, p) powergrad_simde::load_masked<__m512i>(mask, p)
#define _mm256_maskz_loadu_epi32(mask, p) powergrad_simde::load_masked<__m256i>(mask, p)
#define _mm512_maskz_loadu_ps(mask, p) powergrad_simde::load_masked<__m512>(mask, p)
#define _mm512_maskz_loadu_pd(mask, p) powergrad_simde::load_masked<__m512d>(mask, p)
#define _mm256_maskz_loadu_epi16 powergrad_simde::load_masked_halves
#define _mm256_mask_storeu_epi16 powergrad_simde::store_masked_halves
#define _mm512_mask_storeu_ps powergrad_simde::store_masked<__m512, float>
#define _mm512_mask_storeu_pd powergrad_simde::store_masked<__m512d, double>
#define _mm512_stream_ps _mm512_storeu_ps
#define _mm512_stream_pd _mm512_storeu_pd

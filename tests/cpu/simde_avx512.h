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

// floor(log2(|x|)) as a float; the same special values as the instruction.
POWERGRAD_INLINE __m512 exponent(__m512 x) {
  float lanes[16];
  std::memcpy(lanes, &x, sizeof(x));
  for (float& lane : lanes) lane = std::logb(lane);
  __m512 result;
  std::memcpy(&result, lanes, sizeof(result));
  return result;
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
#define _mm512_getexp_ps powergrad_simde::exponent
#define _mm512_maskz_loadu_ps(mask, p) powergrad_simde::load_masked<__m512>(mask, p)
#define _mm512_maskz_loadu_pd(mask, p) powergrad_simde::load_masked<__m512d>(mask, p)
#define _mm256_maskz_loadu_epi16 powergrad_simde::load_masked_halves
#define _mm256_mask_storeu_epi16 powergrad_simde::store_masked_halves
#define _mm512_mask_storeu_ps powergrad_simde::store_masked<__m512, float>
#define _mm512_mask_storeu_pd powergrad_simde::store_masked<__m512d, double>
#define _mm512_stream_ps _mm512_storeu_ps
#define _mm512_stream_pd _mm512_storeu_pd

// The sum and the largest of the lanes of 256 bits, to which AVX-512 reduces its own first.
// Included inside the target region.
#pragma once

namespace powergrad {
namespace {

inline double sum_256(__m256d x) {
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}
inline double largest_256(__m256d x) {
  const __m128d two = _mm_max_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
  return _mm_cvtsd_f64(_mm_max_sd(two, _mm_unpackhi_pd(two, two)));
}
inline float largest_256(__m256 x) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
// Of integers of 16 bits. There is an instruction for the least of 8 unsigned ones, in whose order
// these are upside down.
inline int16_t largest_256(__m256i x) {
  const __m128i eight = _mm_max_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  const __m128i least = _mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi16(0x7fff)));
  return static_cast<int16_t>(_mm_extract_epi16(least, 0) ^ 0x7fff);
}

}  // namespace
}  // namespace powergrad

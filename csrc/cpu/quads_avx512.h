// 16 bytes of several rows as one vector, and back. Included inside the target region.
#pragma once

namespace powergrad {
namespace {

// For each 128 bits of the result, the 16 bytes at p, p + distance, ...
inline __m512i load_quads_512(const char* p, int64_t distance) {
  const auto quad = [&](int i) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * distance));
  };
  __m512i result = _mm512_castsi128_si512(quad(0));
  result = _mm512_inserti32x4(result, quad(1), 1);
  result = _mm512_inserti32x4(result, quad(2), 2);
  return _mm512_inserti32x4(result, quad(3), 3);
}
inline void store_quads_512(__m512i v, char* p, int64_t distance) {
  const auto store = [&](int i, __m128i quad) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + i * distance), quad);
  };
  store(0, _mm512_castsi512_si128(v));
  store(1, _mm512_extracti32x4_epi32(v, 1));
  store(2, _mm512_extracti32x4_epi32(v, 2));
  store(3, _mm512_extracti32x4_epi32(v, 3));
}
// Of the first `quads` addresses the first `bytes` bytes; the rest of the result is 0.
inline __m512i load_quads_first_512(const char* p, int64_t distance, int quads, int bytes) {
  const __mmask16 mask = static_cast<__mmask16>((1u << bytes) - 1u);
  const auto quad = [&](int i) {
    return i < quads ? _mm_maskz_loadu_epi8(mask, p + i * distance) : _mm_setzero_si128();
  };
  __m512i result = _mm512_castsi128_si512(quad(0));
  result = _mm512_inserti32x4(result, quad(1), 1);
  result = _mm512_inserti32x4(result, quad(2), 2);
  return _mm512_inserti32x4(result, quad(3), 3);
}
inline void store_quads_first_512(__m512i v, char* p, int64_t distance, int quads, int bytes) {
  const __mmask16 mask = static_cast<__mmask16>((1u << bytes) - 1u);
  if (quads > 0) _mm_mask_storeu_epi8(p, mask, _mm512_castsi512_si128(v));
  if (quads > 1) _mm_mask_storeu_epi8(p + distance, mask, _mm512_extracti32x4_epi32(v, 1));
  if (quads > 2) _mm_mask_storeu_epi8(p + 2 * distance, mask, _mm512_extracti32x4_epi32(v, 2));
  if (quads > 3) _mm_mask_storeu_epi8(p + 3 * distance, mask, _mm512_extracti32x4_epi32(v, 3));
}

}  // namespace
}  // namespace powergrad

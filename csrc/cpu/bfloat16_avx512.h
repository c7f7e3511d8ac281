// bfloat16 without instructions of its own. Included inside the target region.
#pragma once

namespace powergrad {
namespace {

inline __m512 from_bfloat16(__m256i bits) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

inline __m256i to_bfloat16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  // Round to nearest even: add 0x7fff plus the lowest bit that is kept; NaN keeps its payload.
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_add_epi32(bits, bias);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x00400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i wide = _mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16);
  return _mm512_cvtepi32_epi16(wide);
}

}  // namespace
}  // namespace powergrad

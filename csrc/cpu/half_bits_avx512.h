// 32 half-precision numbers by their bits, with AVX-512. Included inside the target region.
#pragma once

#include "cpu/vector_avx512.h"

namespace powergrad {
namespace {

// Half-precision numbers as the integers of the same bits, which are in the same order from 0 on.
template <>
struct Vector<int16_t> {
  using Scalar = int16_t;
  using Mask = __mmask32;
  static constexpr int kWidth = 32;
  __m512i v;

  static Vector broadcast(int16_t x) { return {_mm512_set1_epi16(x)}; }
  static Mask first_lanes(int count) { return static_cast<Mask>((uint64_t{1} << count) - 1u); }
  template <class Half>
  static Vector load(const Half* p) {
    return {_mm512_loadu_si512(p)};
  }
  template <class Half>
  static Vector load_first(const Half* p, int count) {
    return {_mm512_maskz_loadu_epi16(first_lanes(count), p)};
  }
  void store(int16_t* p) const { _mm512_storeu_si512(p, v); }
};
inline Vector<int16_t> maximum(Vector<int16_t> a, Vector<int16_t> b) {
  return {_mm512_max_epi16(a.v, b.v)};
}
inline __mmask32 equal(Vector<int16_t> a, Vector<int16_t> b) {
  return _mm512_cmpeq_epi16_mask(a.v, b.v);
}
inline __mmask32 less(Vector<int16_t> a, Vector<int16_t> b) {
  return _mm512_cmplt_epi16_mask(a.v, b.v);
}
inline Vector<int16_t> select(__mmask32 mask, Vector<int16_t> yes, Vector<int16_t> no) {
  return {_mm512_mask_blend_epi16(mask, no.v, yes.v)};
}
inline int16_t largest_of_lanes(Vector<int16_t> a) {
  return largest_256(
      _mm256_max_epi16(_mm512_castsi512_si256(a.v), _mm512_extracti64x4_epi64(a.v, 1)));
}
inline int first_set(__mmask32 mask) { return mask ? __builtin_ctz(mask) : -1; }

}  // namespace
}  // namespace powergrad

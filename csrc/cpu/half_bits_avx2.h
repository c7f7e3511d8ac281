// 16 half-precision numbers by their bits, with AVX2. Included inside the target region.
#pragma once

#include "cpu/vector_avx2.h"

namespace powergrad {
namespace {

// Half-precision numbers as the integers of the same bits, which are in the same order from 0 on.
template <>
struct Vector<int16_t> {
  using Scalar = int16_t;
  struct Mask {
    __m256i bits;
  };
  static constexpr int kWidth = 16;
  __m256i v;

  static Vector broadcast(int16_t x) { return {_mm256_set1_epi16(x)}; }
  static Mask first_lanes(int count) {
    const __m256i lane = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return {_mm256_cmpgt_epi16(_mm256_set1_epi16(static_cast<int16_t>(count)), lane)};
  }
  template <class Half>
  static Vector load(const Half* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
  }
  template <class Half>
  static Vector load_first(const Half* p, int count) {
    Half buffer[kWidth] = {};
    std::memcpy(buffer, p, count * sizeof(Half));
    return load(buffer);
  }
  void store(int16_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
};
inline Vector<int16_t> maximum(Vector<int16_t> a, Vector<int16_t> b) {
  return {_mm256_max_epi16(a.v, b.v)};
}
inline Vector<int16_t>::Mask equal(Vector<int16_t> a, Vector<int16_t> b) {
  return {_mm256_cmpeq_epi16(a.v, b.v)};
}
inline Vector<int16_t>::Mask less(Vector<int16_t> a, Vector<int16_t> b) {
  return {_mm256_cmpgt_epi16(b.v, a.v)};
}
inline Vector<int16_t> select(Vector<int16_t>::Mask mask, Vector<int16_t> yes, Vector<int16_t> no) {
  return {_mm256_blendv_epi8(no.v, yes.v, mask.bits)};
}
inline int16_t largest_of_lanes(Vector<int16_t> a) { return largest_256(a.v); }
inline int first_set(Vector<int16_t>::Mask mask) {
  const int bits = _mm256_movemask_epi8(mask.bits);
  return bits ? __builtin_ctz(bits) / 2 : -1;
}

}  // namespace
}  // namespace powergrad

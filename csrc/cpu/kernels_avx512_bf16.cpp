// The kernels for bfloat16 with AVX-512's own conversion to it, which Cooper Lake, Sapphire Rapids,
// Zen 4 and their successors have. It takes one instruction in place of nine, and makes 0 of
// denormal numbers.
#if defined(__x86_64__) && !defined(POWERGRAD_SIMDE)
#include <immintrin.h>

#include "cpu/standard.h"

#if defined(__clang__)
#pragma clang attribute push(                                                               \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"))), \
    apply_to = function)
#else
// _mm512_undefined_pd of GCC 12 warns of itself.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,prefer-vector-width=512")
#endif

namespace powergrad {
namespace {

// One instruction; to widen the numbers and to shift them would be two.
inline __m512 from_bfloat16(__m256i bits) {
  const __m512i to_upper_halves =
      _mm512_set_epi16(15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0, 7, 0, 6, 0, 5, 0, 4, 0,
                       3, 0, 2, 0, 1, 0, 0, 0);
  return _mm512_castsi512_ps(
      _mm512_maskz_permutexvar_epi16(0xaaaaaaaa, to_upper_halves, _mm512_castsi256_si512(bits)));
}

inline __m256i to_bfloat16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

}  // namespace
}  // namespace powergrad

#include "cpu/vector_avx512.h"
#include "cpu/half_bits_avx512.h"

namespace powergrad {
namespace {

// Two vectors in less time than one takes.
inline void store_pair(Vector<float> first, Vector<float> second, BFloat16* p) {
  _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(second.v, first.v));
}

}  // namespace
}  // namespace powergrad

#include "cpu/algorithm.h"

namespace powergrad {
const KernelTable avx512_bf16_kernels = Kernels<BFloat16>::table();
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

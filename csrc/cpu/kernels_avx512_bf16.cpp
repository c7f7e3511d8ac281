// The kernels for bfloat16 with AVX-512's own conversion to it, which Zen 4, Cooper Lake and later
// processors have. It takes one instruction in place of nine, and makes 0 of denormal numbers.
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

inline __m256i to_bfloat16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

}  // namespace
}  // namespace powergrad

#include "cpu/vector_avx512.h"
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

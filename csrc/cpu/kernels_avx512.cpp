// The kernels for AVX-512 F, BW, DQ and VL.
#if defined(__x86_64__)
#if defined(POWERGRAD_SIMDE)
#include "simde_avx512.h"  // the tests' translation to AVX2
#else
#include <immintrin.h>
#endif

#include "cpu/standard.h"

#if defined(POWERGRAD_SIMDE)
#elif defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
// _mm512_undefined_pd of GCC 12 warns of itself.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif

#include "cpu/bfloat16_avx512.h"
#include "cpu/vector_avx512.h"
#include "cpu/half_bits_avx512.h"
#include "cpu/algorithm.h"

POWERGRAD_DEFINE_KERNELS(avx512_kernels)

#if defined(POWERGRAD_SIMDE)
#elif defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

// The kernels for AVX2, FMA and F16C.
#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu/standard.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
// _mm256_undefined_pd of GCC 12, which its gathers are made of, warns of itself.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "cpu/vector_avx2.h"
#include "cpu/half_bits_avx2.h"
#include "cpu/algorithm.h"

POWERGRAD_DEFINE_KERNELS(avx2_kernels)

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

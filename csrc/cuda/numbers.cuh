// Conversions between storage types and numbers, and packs of elements that are loaded and stored
// at once.
#pragma once

#include "cuda/plan.h"
#include "cuda/primitives.cuh"
#include "powergrad.h"

namespace powergrad {
namespace {

__device__ __forceinline__ float to_number(float x) { return x; }
__device__ __forceinline__ double to_number(double x) { return x; }
__device__ __forceinline__ float to_number(BFloat16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ __forceinline__ float to_number(Float16 x) {
  __half_raw raw;
  raw.x = x.bits;
  return __half2float(raw);
}

template <class Storage>
__device__ __forceinline__ Storage from_number(AccumulateOf<Storage> x) {
  return x;
}
template <>
__device__ __forceinline__ BFloat16 from_number<BFloat16>(float x) {
  return {static_cast<__nv_bfloat16_raw>(__float2bfloat16_rn(x)).x};
}
template <>
__device__ __forceinline__ Float16 from_number<Float16>(float x) {
  return {static_cast<__half_raw>(__float2half_rn(x)).x};
}

template <class Scalar>
inline constexpr Scalar kLowest = -static_cast<Scalar>(INFINITY);

// Two halves in a 32-bit word, the first in its low bits.
template <class Half>
struct HalfPair;
template <>
struct HalfPair<BFloat16> {
  using Type = __nv_bfloat162;
  __device__ __forceinline__ static Type rounded(float low, float high) {
    return __floats2bfloat162_rn(low, high);
  }
};
template <>
struct HalfPair<Float16> {
  using Type = __half2;
  __device__ __forceinline__ static Type rounded(float low, float high) {
    return __floats2half2_rn(low, high);
  }
};
template <class Pair>
__device__ __forceinline__ uint32_t word_of(Pair pair) {
  uint32_t word;
  memcpy(&word, &pair, sizeof(word));
  return word;
}
template <class Half>
__device__ __forceinline__ typename HalfPair<Half>::Type pair_of(uint32_t word) {
  typename HalfPair<Half>::Type pair;
  memcpy(static_cast<void*>(&pair), &word, sizeof(word));
  return pair;
}

__device__ __forceinline__ bool same_bits(float a, float b) {
  return __float_as_uint(a) == __float_as_uint(b);
}
__device__ __forceinline__ bool same_bits(double a, double b) {
  return __double_as_longlong(a) == __double_as_longlong(b);
}

// Halves are kept as 32-bit words. `i` has to be known when compiling: registers that are indexed
// at run time go to local memory, which halves the speed of a kernel.
template <class T, int kElements>
struct alignas(sizeof(T) * kElements < kVectorBytes ? sizeof(T) * kElements : kVectorBytes) Pack {
  static constexpr bool kHalves = sizeof(T) == 2 && kElements > 1;
  static constexpr int kWords = kHalves ? kElements / 2 : kElements;
  std::conditional_t<kHalves, uint32_t, T> words[kWords];

  __device__ __forceinline__ T get(int i) const {
    if constexpr (kHalves) {
      return {static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)))};
    } else {
      return words[i];
    }
  }
  __device__ __forceinline__ void set(int i, T value) {
    if constexpr (kHalves) {
      const int shift = 16 * (i % 2);
      words[i / 2] = (words[i / 2] & ~(0xffffu << shift)) | uint32_t{value.bits} << shift;
    } else {
      words[i] = value;
    }
  }
  __device__ __forceinline__ static Pack filled(T value) {
    Pack result{};
#pragma unroll
    for (int i = 0; i < kElements; ++i) result.set(i, value);
    return result;
  }
};

// Rounds numbers to a pack, two halves by one instruction.
template <class T, int kElements>
__device__ __forceinline__ Pack<T, kElements> packed(const AccumulateOf<T> (&x)[kElements]) {
  Pack<T, kElements> result;
  if constexpr (Pack<T, kElements>::kHalves) {
#pragma unroll
    for (int w = 0; w < kElements / 2; ++w) {
      result.words[w] = word_of(HalfPair<T>::rounded(x[2 * w], x[2 * w + 1]));
    }
  } else {
#pragma unroll
    for (int i = 0; i < kElements; ++i) result.words[i] = from_number<T>(x[i]);
  }
  return result;
}

// The type by which a pack is loaded and stored at once.
template <class Packed>
using WordOf = std::conditional_t<
    sizeof(Packed) == 16, uint4,
    std::conditional_t<sizeof(Packed) == 8, uint2,
                       std::conditional_t<sizeof(Packed) == 4, uint32_t, unsigned short>>>;
template <class Packed>
__device__ __forceinline__ WordOf<Packed> to_word(Packed pack) {
  WordOf<Packed> word;
  memcpy(&word, &pack, sizeof(word));
  return word;
}
template <class Packed>
__device__ __forceinline__ Packed from_word(WordOf<Packed> word) {
  Packed pack;
  memcpy(&pack, &word, sizeof(word));
  return pack;
}

// How often a loop over a thread's vectors is unrolled: not at all where one iteration needs many
// registers.
template <class Element, bool kDenseTarget>
inline constexpr int kUnroll = kDenseTarget || std::is_same_v<Element, double> ? 1 : 2;

// For results that are not read again soon: evicted from the caches first.
template <class T, int kElements>
__device__ __forceinline__ void store_streaming(T* to, Pack<T, kElements> pack) {
  __stcs(reinterpret_cast<WordOf<Pack<T, kElements>>*>(to), to_word(pack));
}

// Adjacent numbers in memory, by whole vectors where they are aligned.
template <class T, int kCount>
inline constexpr bool kFillVectors = kCount * static_cast<int>(sizeof(T)) % kVectorBytes == 0;
template <class T>
__device__ __forceinline__ bool begins_a_vector(const T* address) {
  return reinterpret_cast<uintptr_t>(address) % kVectorBytes == 0;
}
template <class T, int kCount>
__device__ __forceinline__ void read_numbers(const T* from, T (&to)[kCount]) {
  if constexpr (kFillVectors<T, kCount>) {
    if (begins_a_vector(from)) {
#pragma unroll
      for (int i = 0; i < kCount; i += kVectorBytes / sizeof(T)) {
        const uint4 vector = *reinterpret_cast<const uint4*>(from + i);
        memcpy(to + i, &vector, sizeof(vector));
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = from[i];
}
template <class T, int kCount>
__device__ __forceinline__ void write_numbers(T* to, const T (&from)[kCount]) {
  if constexpr (kFillVectors<T, kCount>) {
    if (begins_a_vector(to)) {
#pragma unroll
      for (int i = 0; i < kCount; i += kVectorBytes / sizeof(T)) {
        uint4 vector;
        memcpy(&vector, from + i, sizeof(vector));
        *reinterpret_cast<uint4*>(to + i) = vector;
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = from[i];
}

// The elements of a pack as numbers.
template <class T, int kElements>
struct Numbers {
  AccumulateOf<T> at[kElements];
  __device__ __forceinline__ explicit Numbers(const Pack<T, kElements>& pack) {
#pragma unroll
    for (int i = 0; i < kElements; ++i) at[i] = to_number(pack.get(i));
  }
};

}  // namespace
}  // namespace powergrad

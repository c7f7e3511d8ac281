// Storage types as numbers.
#pragma once

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

}  // namespace
}  // namespace powergrad

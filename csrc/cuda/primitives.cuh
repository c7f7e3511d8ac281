// What the kernels use beyond ordinary C++: everything in PTX or for a certain architecture, and
// its replacement when the tests run the kernels on a CPU (POWERGRAD_HOST_CUDA).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if !defined(POWERGRAD_HOST_CUDA)
#include <cooperative_groups.h>

// As in torch's CUDA_KERNEL_ASSERT: <cassert> omits it under NDEBUG.
extern "C" __device__ void __assert_fail(const char* assertion, const char* file, unsigned int line,
                                         const char* function) noexcept;
#endif

namespace powergrad {
namespace {

inline constexpr unsigned kAllLanes = 0xffffffffu;

// At the beginning of a branch that is rarely taken: the compiler computes nothing of it in
// advance.
__device__ __forceinline__ void keep_in_branch() { asm volatile(""); }

#if defined(POWERGRAD_HOST_CUDA)

// 2^x with the largest error that the instruction may have (see below), of a sign that depends on
// x.
inline float fast_exp2(float x) {
  const float exact = std::exp2(x);
  if (exact < 0x1p-126f) return 0.0f;
  if (exact == 1.0f || !std::isfinite(exact)) return exact;
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const float noise = static_cast<float>((bits * 2654435761u) >> 8) * 0x1p-23f - 1.0f;
  return exact * (1.0f + noise * 1.6858739e-7f);
}

inline float rounded_product(float a, float b) { return a * b; }
inline double rounded_product(double a, double b) { return a * b; }

using host_cuda::commit_copies;
using host_cuda::copy_async;
using host_cuda::wait_for_copies;

inline unsigned char* dynamic_shared_memory() { return host_cuda::dynamic_shared_memory(); }
inline void cluster_sync() { host_cuda::cluster_sync(); }
template <class T>
T* map_to_rank(T* pointer, int rank) {
  return host_cuda::map_to_rank(pointer, static_cast<unsigned>(rank));
}
[[noreturn]] inline void assertion_failed(const char* what, const char* file, int line) {
  host_cuda::device_assertion_failed(what, file, line);
}

#else

// 2^x for every x. Maximum error: 2 ulp, a relative error of 2^-22.5; exactly 1 at 0.
// Results below 2^-126 are flushed to 0.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// A product that the compiler must not fuse with an addition.
__device__ __forceinline__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double rounded_product(double a, double b) { return __dmul_rn(a, b); }

// An asynchronous copy of 4, 8 or 16 bytes from global to shared memory, both aligned to its size.
// The thread may access the destination after waiting for the copy, other threads after a barrier
// that follows the wait.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address), "l"(global),
                 "n"(kBytes)
                 : "memory");
  }
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits for all copies but those of this thread's last kPending commits.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// The only shared memory; Plan divides it.
__device__ __forceinline__ unsigned char* dynamic_shared_memory() {
  extern __shared__ __align__(16) unsigned char powergrad_shared_memory[];
  return powergrad_shared_memory;
}

// Architectures before sm_90 have no clusters, and plans for them none.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ __forceinline__ void cluster_sync() { cooperative_groups::this_cluster().sync(); }
template <class T>
__device__ __forceinline__ T* map_to_rank(T* pointer, int rank) {
  return cooperative_groups::this_cluster().map_shared_rank(pointer, rank);
}
#else
__device__ __forceinline__ void cluster_sync() {}
template <class T>
__device__ __forceinline__ T* map_to_rank(T* pointer, int) {
  return pointer;
}
#endif

__device__ __forceinline__ void assertion_failed(const char* what, const char* file, int line) {
  __assert_fail(what, file, static_cast<unsigned int>(line), "");
}

#endif

#define POWERGRAD_DEVICE_ASSERT(condition) \
  ((condition) ? static_cast<void>(0) : assertion_failed(#condition, __FILE__, __LINE__))

}  // namespace
}  // namespace powergrad

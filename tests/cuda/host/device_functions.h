// The CUDA functions that kernels call, and the host branch of their primitives.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "site.h"

namespace powergrad::host_cuda {

void synchronise_warp(Site site);
void synchronise_block(Site site);
uint64_t shuffle(unsigned mask, uint64_t value, int source, int width, Site site);
uint64_t shuffle_xor(unsigned mask, uint64_t value, int lanes, int width, Site site);
unsigned vote(unsigned mask, bool holds, Site site);

// This block's dynamic shared memory; there is no static one.
unsigned char* dynamic_shared_memory();

unsigned cluster_rank();
unsigned cluster_size();
void cluster_sync(Site site = Site::here());

// The other block's counterpart of a pointer into this block's shared memory.
void* map_address_to_rank(const void* address, unsigned rank);
template <class T>
T* map_to_rank(T* pointer, unsigned rank) {
  return static_cast<T*>(map_address_to_rank(pointer, rank));
}

// Copies 4, 8 or 16 bytes from global memory to this block's shared memory.
void copy_async_bytes(void* shared, const void* global, std::size_t size, Site site);
template <int kBytes>
void copy_async(void* shared, const void* global, Site site = Site::here()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  copy_async_bytes(shared, global, kBytes, site);
}
void commit_copies();
void wait_for_copies_but(int pending);
template <int kPending>
void wait_for_copies() {
  wait_for_copies_but(kPending);
}

// Ends the launch with cudaErrorAssert.
[[noreturn]] void device_assertion_failed(const char* what, const char* file, int line);

template <class To, class From>
To from_bits(From value) {
  static_assert(std::is_arithmetic_v<From> && std::is_arithmetic_v<To>);
  To result{};
  std::memcpy(&result, &value, sizeof(To) < sizeof(From) ? sizeof(To) : sizeof(From));
  return result;
}

inline void __syncthreads(Site site = Site::here()) { synchronise_block(site); }
inline void __syncwarp(Site site = Site::here()) { synchronise_warp(site); }

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, Site site = Site::here()) {
  return from_bits<T>(shuffle(mask, from_bits<uint64_t>(value), lane, width, site));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, Site site = Site::here()) {
  return from_bits<T>(shuffle_xor(mask, from_bits<uint64_t>(value), lanes, width, site));
}

inline unsigned __ballot_sync(unsigned mask, int holds, Site site = Site::here()) {
  return vote(mask, holds != 0, site);
}
template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

// Cache hints have no effect here.
template <class T>
T __ldcs(const T* pointer) {
  return *pointer;
}
template <class T>
void __stcs(T* pointer, T value) {
  *pointer = value;
}

inline float __uint_as_float(unsigned bits) { return from_bits<float>(bits); }
inline unsigned __float_as_uint(float value) { return from_bits<unsigned>(value); }
inline long long __double_as_longlong(double value) { return from_bits<long long>(value); }

}  // namespace powergrad::host_cuda

using powergrad::host_cuda::__ballot_sync;
using powergrad::host_cuda::__double_as_longlong;
using powergrad::host_cuda::__float_as_uint;
using powergrad::host_cuda::__ldcs;
using powergrad::host_cuda::__popc;
using powergrad::host_cuda::__shfl_sync;
using powergrad::host_cuda::__shfl_xor_sync;
using powergrad::host_cuda::__stcs;
using powergrad::host_cuda::__syncthreads;
using powergrad::host_cuda::__syncwarp;
using powergrad::host_cuda::__uint_as_float;
using powergrad::host_cuda::min;

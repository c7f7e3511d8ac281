// The vectors in shared memory that a thread owns, and what the layouts of rows have in common.
#pragma once

#include "cuda/numbers.cuh"
#include "cuda/plan.h"
#include "row.h"

namespace powergrad {
namespace {

template <class T>
__device__ __forceinline__ T* shared_memory_at(int offset) {
  return reinterpret_cast<T*>(dynamic_shared_memory() + offset);
}

// One vector every `stride` bytes. Offsets, since the compiler forgets that a pointer it keeps
// leads to shared memory; accessed as whole words, since it splits accesses to structs.
template <class Packed>
struct SharedVectors {
  int first;
  int stride;
  __device__ __forceinline__ void* at(int i) const {
    return dynamic_shared_memory() + first + i * stride;
  }
  __device__ __forceinline__ Packed get(int i) const {
    return from_word<Packed>(*static_cast<const WordOf<Packed>*>(at(i)));
  }
  __device__ __forceinline__ void set(int i, const Packed& pack) const {
    *static_cast<WordOf<Packed>*>(at(i)) = to_word(pack);
  }
};

// Those of a tensor where consecutive threads own consecutive vectors: no bank conflicts.
template <class Packed>
__device__ __forceinline__ SharedVectors<Packed> interleaved_vectors(const Plan& plan, int tensor) {
  constexpr int kBytes = static_cast<int>(sizeof(Packed));
  const int offset = plan.scratch_bytes + tensor * plan.tensor_bytes;
  return {offset + static_cast<int>(threadIdx.x) * kBytes, plan.threads * kBytes};
}

// An address's distance from the 16-byte boundary before it, in elements.
template <class T>
__device__ __forceinline__ int phase_of(const T* address) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(address) % kVectorBytes / sizeof(T));
}

// Splits vectors of few elements of a row into runs.
template <int kElements, class Function>
__device__ __forceinline__ void for_each_run_of(int count, const Function& function) {
  constexpr int kRun = 32 / kElements;
  for (int begin = 0; begin < count; begin += kRun) function(begin, min(begin + kRun, count));
}

}  // namespace
}  // namespace powergrad

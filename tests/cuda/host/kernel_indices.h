// threadIdx and the like: read-only for kernels, set by the machine at every switch of fibers.
#pragma once

#include <vector_types.h>

namespace powergrad::host_cuda {

struct Indices {
  uint3 thread;
  uint3 block;
  dim3 block_size;
  dim3 grid_size;
};
inline Indices running{};

}  // namespace powergrad::host_cuda

inline const uint3& threadIdx = powergrad::host_cuda::running.thread;
inline const uint3& blockIdx = powergrad::host_cuda::running.block;
inline const dim3& blockDim = powergrad::host_cuda::running.block_size;
inline const dim3& gridDim = powergrad::host_cuda::running.grid_size;

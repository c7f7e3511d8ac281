// Merges the statistics of shards (shards.h), one row a thread.
#include "cuda/launchers.h"
#include "cuda/primitives.cuh"
#include "shards.h"

namespace powergrad {
namespace {

constexpr int kThreads = 128;
// Per multiprocessor, which limits the registers of a thread.
template <class Scalar>
inline constexpr int kLeastBlocks = std::is_same_v<Scalar, double> ? 4 : 8;

template <class Scalar>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<Scalar>)
    merge_shards_kernel(const MergeParams p) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= p.rows) return;
  POWERGRAD_DEVICE_ASSERT((row > 0 || find_mismatch<Scalar>(p) < 0) &&
                          "cross_entropy: the shards' arguments differ");
  const double alpha = p.alpha_on_device != nullptr ? *p.alpha_on_device : p.alpha;
  merge_row(p, row, static_cast<Scalar>(alpha));
}

template <class Scalar>
cudaError_t launch(const MergeParams& p, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>((p.rows + kThreads - 1) / kThreads));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, merge_shards_kernel<Scalar>, MergeParams(p));
}

}  // namespace

cudaError_t launch_merge_shards(const MergeParams& p, cudaStream_t stream) {
  if (p.rows == 0) return cudaSuccess;
  return p.dtype == DataType::float64 ? launch<double>(p, stream) : launch<float>(p, stream);
}

}  // namespace powergrad

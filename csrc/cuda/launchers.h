// The CUDA launchers that the binding calls, with a filled struct of device pointers and a stream.
// A launcher chooses dtype, layout and plan for the current device, launches and returns an error
// for the binding to raise: no synchronisation, no allocation, no framework. A target out of range
// stops the kernel with a device-side assertion, before anything is indexed with it.
#pragma once

#include <cuda_runtime_api.h>

#include "powergrad.h"
#include "shards.h"

namespace powergrad {

// Computes the gradient too, if params.gradient is given.
cudaError_t launch_cross_entropy_forward(const CrossEntropyParams& params, cudaStream_t stream);
cudaError_t launch_cross_entropy_backward(const CrossEntropyParams& params, cudaStream_t stream);
cudaError_t launch_log_softmax_forward(const LogSoftmaxParams& params, cudaStream_t stream);
cudaError_t launch_log_softmax_backward(const LogSoftmaxParams& params, cudaStream_t stream);

// Sums over rows are in float64, in a fixed order. `partials` is scratch of kSumPartials doubles.
inline constexpr int kSumPartials = 1024;

// The divisor of the mean: the summed weights of the targets that count, or the number of rows for
// probabilities; each times its row weight. Asserts that every target that counts is in range and
// that every row weight is finite and >= 0. Unless `speculative_grad_output` (one accumulate) is
// null, *params.next_speculation is copied to it, for the forward that follows.
cudaError_t launch_total_weight(const CrossEntropyParams& params, double* total_weight,
                                void* speculative_grad_output, double* partials,
                                cudaStream_t stream);

// The sum of params.losses, divided by *divisor unless that is null, to `loss` (one accumulate).
cudaError_t launch_reduce_losses(const CrossEntropyParams& params, const double* divisor,
                                 void* loss, double* partials, cudaStream_t stream);

// Asserts that all shards were given the same arguments.
cudaError_t launch_merge_shards(const MergeParams& params, cudaStream_t stream);

}  // namespace powergrad

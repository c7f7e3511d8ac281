// The CUDA launchers as the binding calls them: a filled struct, whose pointers are device
// pointers, and a stream; cudaError_t comes back and the binding raises. A launcher chooses the
// dtype and the row strategy for the current device, launches and returns: no synchronisation, no
// allocation, no framework. A target out of range stops the kernel with a device-side assertion,
// before anything is read through it.
#pragma once

#include <cuda_runtime_api.h>

#include "powergrad.h"
#include "shards.h"

namespace powergrad {

// And the gradient, where params.gradient is given.
cudaError_t launch_cross_entropy_forward(const CrossEntropyParams& params, cudaStream_t stream);
cudaError_t launch_cross_entropy_backward(const CrossEntropyParams& params, cudaStream_t stream);
cudaError_t launch_log_softmax_forward(const LogSoftmaxParams& params, cudaStream_t stream);
cudaError_t launch_log_softmax_backward(const LogSoftmaxParams& params, cudaStream_t stream);

// Sums over rows, in float64 and in a fixed order. `partials` is scratch of kSumPartials doubles.
inline constexpr int kSumPartials = 1024;

// What the mean divides by: the summed weights of the targets that count, or the number of rows
// where targets are probabilities. Asserts that every target is in range. *params.next_speculation,
// unless that is null, becomes *params.grad_output, for a forward to follow.
cudaError_t launch_total_weight(const CrossEntropyParams& params, double* total_weight,
                                double* partials, cudaStream_t stream);

// The sum of params.losses, divided by *divisor unless that is null, to `loss` (one accumulate).
cudaError_t launch_reduce_losses(const CrossEntropyParams& params, const double* divisor,
                                 void* loss, double* partials, cudaStream_t stream);

// Asserts that all shards were given the same arguments.
cudaError_t launch_merge_shards(const MergeParams& params, cudaStream_t stream);

}  // namespace powergrad

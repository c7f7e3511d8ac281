// The CUDA launchers as the binding will call them: a filled struct, whose pointers are device
// pointers, and a stream; cudaError_t comes back and the binding raises. A launcher chooses the
// dtype and the row strategy, launches and returns: no synchronisation, no allocation, no
// framework.
#pragma once

#include <cuda_runtime_api.h>

#include "powergrad.h"

namespace powergrad {

cudaError_t launch_cross_entropy_forward(const CrossEntropyParams& params, cudaStream_t stream);
cudaError_t launch_cross_entropy_backward(const CrossEntropyParams& params, cudaStream_t stream);
cudaError_t launch_log_softmax_forward(const LogSoftmaxParams& params, cudaStream_t stream);
cudaError_t launch_log_softmax_backward(const LogSoftmaxParams& params, cudaStream_t stream);

}  // namespace powergrad

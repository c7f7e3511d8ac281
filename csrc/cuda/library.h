// The table of libpowergrad_cuda.so, which has a CUDA runtime of its own: in types that need no
// header of CUDA. Streams are cudaStream_t, and what is returned is cudaError_t.
#pragma once

#include "built_from.h"

namespace powergrad {

struct CudaLibrary {
  BuiltFrom built_from;
  const char* architectures;  // as TORCH_CUDA_ARCH_LIST names them, separated by commas
  int64_t sum_partials;       // doubles of scratch that sums over rows take

  const char* (*error_name)(int error);
  const char* (*error_string)(int error);
  // Of this runtime; its context is the device's primary one, which is that of torch.
  int (*set_device)(int device);
  int (*is_capturing)(void* stream, bool* result);

  // The launchers of launchers.h.
  int (*cross_entropy_forward)(const CrossEntropyParams&, void* stream);
  int (*cross_entropy_backward)(const CrossEntropyParams&, void* stream);
  int (*log_softmax_forward)(const LogSoftmaxParams&, void* stream);
  int (*log_softmax_backward)(const LogSoftmaxParams&, void* stream);
  int (*total_weight)(const CrossEntropyParams&, double* total_weight,
                      void* speculative_grad_output, double* partials, void* stream);
  int (*reduce_losses)(const CrossEntropyParams&, const double* divisor, void* loss,
                       double* partials, void* stream);
  int (*merge_shards)(const MergeParams&, void* stream);
};

}  // namespace powergrad

POWERGRAD_EXPORT const powergrad::CudaLibrary* powergrad_cuda_library();

#include "cuda/library.h"

#include "cuda/launchers.h"

namespace powergrad {
namespace {

cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }

template <class Params, cudaError_t (*launch)(const Params&, cudaStream_t)>
int call(const Params& params, void* stream) {
  return launch(params, stream_of(stream));
}

const char* error_name(int error) { return cudaGetErrorName(static_cast<cudaError_t>(error)); }
const char* error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

int set_device(int device) { return cudaSetDevice(device); }

int is_capturing(void* stream, bool* result) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(stream_of(stream), &status);
  *result = status != cudaStreamCaptureStatusNone;
  return error;
}

int total_weight(const CrossEntropyParams& params, double* total, void* speculative_grad_output,
                 double* partials, void* stream) {
  return launch_total_weight(params, total, speculative_grad_output, partials, stream_of(stream));
}

int reduce_losses(const CrossEntropyParams& params, const double* divisor, void* loss,
                  double* partials, void* stream) {
  return launch_reduce_losses(params, divisor, loss, partials, stream_of(stream));
}

constexpr CudaLibrary kLibrary{
    kBuiltFrom,
    POWERGRAD_CUDA_ARCHITECTURES,
    kSumPartials,
    error_name,
    error_string,
    set_device,
    is_capturing,
    call<CrossEntropyParams, launch_cross_entropy_forward>,
    call<CrossEntropyParams, launch_cross_entropy_backward>,
    call<LogSoftmaxParams, launch_log_softmax_forward>,
    call<LogSoftmaxParams, launch_log_softmax_backward>,
    total_weight,
    reduce_losses,
    call<MergeParams, launch_merge_shards>,
};

}  // namespace
}  // namespace powergrad

const powergrad::CudaLibrary* powergrad_cuda_library() { return &powergrad::kLibrary; }

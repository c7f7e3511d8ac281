// Launches on torch's current stream of the tensors' device. Nothing here waits for the device, so
// all of it can be captured in a CUDA graph.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/launchers.h"
#include "torch/last_grad_output.h"
#include "torch/run.h"

namespace powergrad {
namespace {

template <class Params>
using Launcher = cudaError_t (*)(const Params&, cudaStream_t);

template <class Params, Launcher<Params> launch>
void run(const Params& params, c10::Device device) {
  if (params.shape.rows() == 0 || params.shape.classes == 0) return;
  const c10::cuda::CUDAGuard guard(device);
  C10_CUDA_CHECK(launch(params, c10::cuda::getCurrentCUDAStream()));
}

// Scratch of one launch. Torch gives its memory only to later work on the same stream.
at::Tensor sum_partials(c10::Device device) {
  return at::empty({kSumPartials}, at::TensorOptions(device).dtype(at::kDouble));
}

void total_weight(const CrossEntropyParams& params, double* total, void* speculative_grad_output,
                  c10::Device device) {
  const c10::cuda::CUDAGuard guard(device);
  const at::Tensor partials = sum_partials(device);
  C10_CUDA_CHECK(launch_total_weight(params, total, speculative_grad_output,
                                     partials.mutable_data_ptr<double>(),
                                     c10::cuda::getCurrentCUDAStream()));
}

// The kernels check every target that they read.
void check_targets(const CrossEntropyParams&, c10::Device) {}

void reduce_losses(const CrossEntropyParams& params, const double* divisor, void* loss,
                   c10::Device device) {
  const c10::cuda::CUDAGuard guard(device);
  const at::Tensor partials = sum_partials(device);
  C10_CUDA_CHECK(launch_reduce_losses(params, divisor, loss, partials.mutable_data_ptr<double>(),
                                      c10::cuda::getCurrentCUDAStream()));
}

void merge_shards(const MergeParams& params, c10::Device device) {
  const c10::cuda::CUDAGuard guard(device);
  C10_CUDA_CHECK(launch_merge_shards(params, c10::cuda::getCurrentCUDAStream()));
}

}  // namespace

const DeviceFunctions& cuda_functions() {
  static constexpr DeviceFunctions functions{
      run<CrossEntropyParams, launch_cross_entropy_forward>,
      run<CrossEntropyParams, launch_cross_entropy_backward>,
      run<LogSoftmaxParams, launch_log_softmax_forward>,
      run<LogSoftmaxParams, launch_log_softmax_backward>,
      last_grad_output,
      total_weight,
      check_targets,
      reduce_losses,
      merge_shards,
  };
  return functions;
}

}  // namespace powergrad

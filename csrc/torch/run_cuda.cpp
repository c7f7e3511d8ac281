// Launches on torch's current stream of the tensors' device. Nothing here waits for the device, so
// all of it can be captured in a CUDA graph.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "torch/cuda_device.h"
#include "torch/last_grad_output.h"
#include "torch/libraries.h"
#include "torch/run.h"

namespace powergrad {
namespace {

template <class Params, int (*CudaLibrary::*launch)(const Params&, void*)>
void run(const Params& params, c10::Device device) {
  if (params.shape.rows() == 0 || params.shape.classes == 0) return;
  const OnCudaDevice on(device);
  check_cuda((cuda_library().*launch)(params, on.stream()));
}

// Scratch of one launch. Torch gives its memory only to later work on the same stream.
at::Tensor sum_partials(c10::Device device) {
  return at::empty({cuda_library().sum_partials}, at::TensorOptions(device).dtype(at::kDouble));
}

void total_weight(const CrossEntropyParams& params, double* total, void* speculative_grad_output,
                  c10::Device device) {
  const OnCudaDevice on(device);
  const at::Tensor partials = sum_partials(device);
  check_cuda(cuda_library().total_weight(params, total, speculative_grad_output,
                                         partials.mutable_data_ptr<double>(), on.stream()));
}

// The kernels check every target that they read.
void check_targets(const CrossEntropyParams&, c10::Device) {}

void reduce_losses(const CrossEntropyParams& params, const double* divisor, void* loss,
                   c10::Device device) {
  const OnCudaDevice on(device);
  const at::Tensor partials = sum_partials(device);
  check_cuda(cuda_library().reduce_losses(params, divisor, loss,
                                          partials.mutable_data_ptr<double>(), on.stream()));
}

void forward_reduced(const CrossEntropyParams& params, const double* divisor, void* loss,
                     c10::Device device) {
  const auto type = params.dtype == DataType::float64 ? at::kDouble : at::kFloat;
  const at::Tensor losses = at::empty({params.shape.rows()}, at::TensorOptions(device).dtype(type));
  CrossEntropyParams with_losses = params;
  with_losses.losses = losses.mutable_data_ptr();
  run<CrossEntropyParams, &CudaLibrary::cross_entropy_forward>(with_losses, device);
  reduce_losses(with_losses, divisor, loss, device);
}

void merge_shards(const MergeParams& params, c10::Device device) {
  const OnCudaDevice on(device);
  check_cuda(cuda_library().merge_shards(params, on.stream()));
}

}  // namespace

const DeviceFunctions& cuda_functions() {
  cuda_library();  // which may not be there
  static constexpr DeviceFunctions functions{
      run<CrossEntropyParams, &CudaLibrary::cross_entropy_forward>,
      forward_reduced,
      run<CrossEntropyParams, &CudaLibrary::cross_entropy_backward>,
      run<LogSoftmaxParams, &CudaLibrary::log_softmax_forward>,
      run<LogSoftmaxParams, &CudaLibrary::log_softmax_backward>,
      last_grad_output,
      total_weight,
      check_targets,
      reduce_losses,
      merge_shards,
  };
  return functions;
}

}  // namespace powergrad

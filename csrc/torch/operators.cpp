// The schemas, and which function serves which dispatch key. Autograd keys are in *_autograd.cpp,
// vmap rules in the Python package.
#include "torch/operators.h"

#include <torch/library.h>

namespace powergrad {

TORCH_LIBRARY(powergrad, m) {
  m.def("cross_entropy(Tensor input, Tensor target, " POWERGRAD_OPTIONS_WITH_DEFAULTS
        ", bool inplace_backward=False) -> Tensor");
  m.def("cross_entropy_forward(Tensor input, Tensor target, " POWERGRAD_OPTIONS
        ", bool needs_backward, bool metrics=False) "
        "-> (Tensor loss, Tensor statistics, Tensor total_weight)");
  m.def(
      "cross_entropy_backward(Tensor grad_output, Tensor input, Tensor target, Tensor statistics, "
      "Tensor total_weight, " POWERGRAD_OPTIONS
      ", int classes_before=0, int classes_after=0) -> Tensor");
  m.def("cross_entropy_shard_forward(Tensor input, Tensor target, " POWERGRAD_OPTIONS
        ", int classes_before, int classes_after, int fingerprint, bool metrics=False) "
        "-> (Tensor shard_statistics, Tensor total_weight)");
  m.def(
      "cross_entropy_merge_shards(Tensor shard_statistics, Tensor total_weight, " POWERGRAD_OPTIONS
      ", bool metrics=False) -> (Tensor loss, Tensor merged)");

  m.def("linear_cross_entropy(" POWERGRAD_LAST_LAYER_WITH_DEFAULTS ") -> Tensor");
  m.def("linear_cross_entropy_metrics(" POWERGRAD_LAST_LAYER_WITH_DEFAULTS
        ") -> (Tensor loss, Tensor metrics)");
  m.def("linear_cross_entropy_forward(" POWERGRAD_LAST_LAYER
        ", bool[3] gradients, bool metrics=False) "
        "-> (Tensor loss, Tensor metrics, Tensor statistics, Tensor divisor, Tensor scale, "
        "Tensor grad_input, Tensor grad_linear_weight, Tensor grad_linear_bias)");
  m.def("linear_cross_entropy_backward(Tensor grad_output, " POWERGRAD_LAST_LAYER
        ", Tensor statistics, Tensor divisor, bool[3] gradients) "
        "-> (Tensor grad_input, Tensor grad_linear_weight, Tensor grad_linear_bias)");

  m.def("log_softmax(Tensor input, int dim=-1, *, Tensor alpha) -> Tensor");
  m.def(
      "log_softmax_forward(Tensor input, int dim, Tensor alpha, bool needs_backward) "
      "-> (Tensor output, Tensor statistics)");
  m.def(
      "log_softmax_backward(Tensor grad_output, Tensor input, int dim, Tensor alpha, "
      "Tensor statistics) -> Tensor");
}

namespace {

void register_device_operators(torch::Library& m) {
  m.impl("cross_entropy_forward", Flat<&cross_entropy_forward>::kernel);
  m.impl("cross_entropy_backward", Flat<&cross_entropy_backward>::kernel);
  m.impl("cross_entropy_shard_forward", Flat<&cross_entropy_shard_forward>::kernel);
  m.impl("cross_entropy_merge_shards", Flat<&cross_entropy_merge_shards>::kernel);
  m.impl("linear_cross_entropy_forward", Flat<&linear_cross_entropy_forward>::kernel);
  m.impl("linear_cross_entropy_backward", Flat<&linear_cross_entropy_backward>::kernel);
  m.impl("log_softmax_forward", log_softmax_forward);
  m.impl("log_softmax_backward", log_softmax_backward);
}

}  // namespace

TORCH_LIBRARY_IMPL(powergrad, CPU, m) { register_device_operators(m); }
// Without CUDA kernels the operators raise NotImplementedError (functions_of).
TORCH_LIBRARY_IMPL(powergrad, CUDA, m) { register_device_operators(m); }
// Tensors that are not dense are refused by the operators' own checks.
TORCH_LIBRARY_IMPL(powergrad, SparseCPU, m) { register_device_operators(m); }
TORCH_LIBRARY_IMPL(powergrad, SparseCsrCPU, m) { register_device_operators(m); }
TORCH_LIBRARY_IMPL(powergrad, QuantizedCPU, m) { register_device_operators(m); }
TORCH_LIBRARY_IMPL(powergrad, MkldnnCPU, m) { register_device_operators(m); }
TORCH_LIBRARY_IMPL(powergrad, NestedTensorCPU, m) { register_device_operators(m); }
TORCH_LIBRARY_IMPL(powergrad, SparseCUDA, m) { register_device_operators(m); }
TORCH_LIBRARY_IMPL(powergrad, SparseCsrCUDA, m) { register_device_operators(m); }
TORCH_LIBRARY_IMPL(powergrad, QuantizedCUDA, m) { register_device_operators(m); }
TORCH_LIBRARY_IMPL(powergrad, NestedTensorCUDA, m) { register_device_operators(m); }

}  // namespace powergrad

// The schemas, and which function serves which dispatch key. Autograd keys are in *_autograd.cpp,
// fake and vmap rules in the Python package.
#include "torch/operators.h"

#include <torch/library.h>

namespace powergrad {

TORCH_LIBRARY(powergrad, m) {
  m.def(
      "cross_entropy(Tensor input, Tensor target, Tensor? weight=None, int ignore_index=-100, "
      "str reduction=\"mean\", float label_smoothing=0.0, *, Tensor alpha, "
      "bool inplace_backward=False) -> Tensor");
  m.def("log_softmax(Tensor input, int dim=-1, *, Tensor alpha) -> Tensor");

  m.def(
      "linear_cross_entropy(Tensor input, Tensor linear_weight, Tensor target, "
      "Tensor? linear_bias=None, Tensor? weight=None, str reduction=\"mean\", "
      "int ignore_index=-100, float label_smoothing=0.0, *, Tensor alpha, int chunk_rows=0) "
      "-> Tensor");

  m.def(
      "cross_entropy_forward(Tensor input, Tensor target, Tensor? weight, int ignore_index, "
      "str reduction, float label_smoothing, Tensor alpha, bool needs_backward) "
      "-> (Tensor loss, Tensor statistics, Tensor total_weight)");
  m.def(
      "cross_entropy_forward_gradient(Tensor input, Tensor target, Tensor? weight, "
      "int ignore_index, str reduction, float label_smoothing, Tensor alpha) "
      "-> (Tensor loss, Tensor gradient, Tensor statistics, Tensor total_weight)");
  m.def(
      "cross_entropy_backward(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, "
      "int ignore_index, str reduction, float label_smoothing, Tensor alpha, Tensor statistics, "
      "Tensor total_weight) -> Tensor");
  m.def(
      "cross_entropy_backward_(Tensor(a!) input, Tensor grad_output, Tensor target, "
      "Tensor? weight, int ignore_index, str reduction, float label_smoothing, Tensor alpha, "
      "Tensor statistics, Tensor total_weight) -> ()");
  m.def(
      "cross_entropy_shard_forward(Tensor input, Tensor target, Tensor? weight, int ignore_index, "
      "str reduction, float label_smoothing, Tensor alpha, int classes_before, int classes_after, "
      "int fingerprint) -> (Tensor message, Tensor total_weight)");
  m.def(
      "cross_entropy_merge_shards(Tensor messages, str reduction, Tensor alpha, "
      "Tensor total_weight) -> (Tensor loss, Tensor numbers)");
  m.def(
      "cross_entropy_shard_backward(Tensor grad_output, Tensor input, Tensor target, "
      "Tensor? weight, int ignore_index, str reduction, float label_smoothing, Tensor alpha, "
      "Tensor statistics, Tensor total_weight, int classes_before, int classes_after) -> Tensor");
  m.def(
      "linear_cross_entropy_forward(Tensor input, Tensor linear_weight, Tensor target, "
      "Tensor? linear_bias, Tensor? weight, str reduction, int ignore_index, "
      "float label_smoothing, Tensor alpha, int chunk_rows, bool[3] gradients) "
      "-> (Tensor loss, Tensor scale, Tensor grad_input, Tensor grad_linear_weight, "
      "Tensor grad_linear_bias)");
  m.def(
      "linear_cross_entropy_backward(Tensor grad_output, Tensor input, Tensor linear_weight, "
      "Tensor target, Tensor? linear_bias, Tensor? weight, int ignore_index, "
      "float label_smoothing, Tensor alpha, int chunk_rows, bool[3] gradients) "
      "-> (Tensor grad_input, Tensor grad_linear_weight, Tensor grad_linear_bias)");
  m.def(
      "log_softmax_forward(Tensor input, int dim, Tensor alpha, bool needs_backward) "
      "-> (Tensor output, Tensor statistics)");
  m.def(
      "log_softmax_backward(Tensor grad_output, Tensor input, int dim, Tensor alpha, "
      "Tensor statistics) -> Tensor");

  m.def(
      "cross_entropy_double_backward(Tensor grad, Tensor grad_output, Tensor input, "
      "Tensor target, Tensor? weight, int ignore_index, str reduction, float label_smoothing, "
      "Tensor alpha, Tensor total_weight) -> (Tensor grad_grad_output, Tensor grad_input)",
      cross_entropy_double_backward);
  m.def(
      "cross_entropy_backward_target_gradient(Tensor grad, Tensor grad_output, Tensor input, "
      "Tensor? weight, str reduction, float label_smoothing, Tensor alpha, Tensor total_weight) "
      "-> Tensor",
      cross_entropy_backward_target_gradient);
  m.def(
      "log_softmax_double_backward(Tensor grad, Tensor grad_output, Tensor input, int dim, "
      "Tensor alpha) -> (Tensor grad_grad_output, Tensor grad_input)",
      log_softmax_double_backward);
  m.def(
      "cross_entropy_target_gradient(Tensor grad_output, Tensor input, Tensor? weight, "
      "str reduction, float label_smoothing, Tensor total_weight) -> Tensor",
      cross_entropy_target_gradient);
}

namespace {

void register_device_operators(torch::Library& m) {
  m.impl("cross_entropy_forward", cross_entropy_forward);
  m.impl("cross_entropy_forward_gradient", cross_entropy_forward_gradient);
  m.impl("cross_entropy_backward", cross_entropy_backward);
  m.impl("cross_entropy_backward_", cross_entropy_backward_);
  m.impl("cross_entropy_shard_forward", cross_entropy_shard_forward);
  m.impl("cross_entropy_merge_shards", cross_entropy_merge_shards);
  m.impl("cross_entropy_shard_backward", cross_entropy_shard_backward);
  m.impl("linear_cross_entropy_forward", linear_cross_entropy_forward);
  m.impl("linear_cross_entropy_backward", linear_cross_entropy_backward);
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

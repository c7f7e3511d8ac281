// Every check of an argument, once, for all devices, in torch's words where torch has some. Sizes
// are read symbolically, so that the same checks serve FakeTensor and torch.compile.
#pragma once

#include <ATen/core/Tensor.h>

#include "torch/last_layer.h"

namespace powergrad {

// The class dimension of logits: 0 for (C), else 1.
inline int64_t class_dim_of(const at::Tensor& input) { return input.dim() == 1 ? 0 : 1; }

// Targets are probabilities when they have the logits' shape.
bool is_probabilities(const at::Tensor& input, const at::Tensor& target);

// float for half precision and float32, double for float64.
at::ScalarType accumulate_type(const at::Tensor& input);

// What can be known without reading a tensor's values.
void check_cross_entropy(const at::Tensor& input, const at::Tensor& target,
                         const CrossEntropyOptions& options, const OtherClasses& others = {});
void check_last_layer(const LastLayer& layer);
// Whether metrics can be computed where they are asked for.
void check_metrics(const at::Tensor& input, const at::Tensor& target);
// `input` has the device of the call.
void check_alpha(const at::Tensor& input, const at::Tensor& alpha, const char* op);
void check_log_softmax(const at::Tensor& input, int64_t dim, const at::Tensor& alpha);

// A tensor like linear(input, linear_weight), with the memory of a single row.
at::Tensor shape_of_logits(const LastLayer& layer);

void check_same_device(const at::Tensor& input, const at::Tensor& other, const char* op,
                       const char* name);

void check_not_nested(const at::Tensor& tensor, const char* op, const char* name);

// RuntimeError for an argument that has no derivative and requires a gradient.
void check_without_gradient(const at::Tensor& tensor, const char* op, const char* name);

// The value of alpha, finite and > 0, else ValueError. `alpha` is on the CPU.
double alpha_value(const at::Tensor& alpha);

// ValueError naming a row weight that is negative or not finite.
[[noreturn]] void raise_row_weight(double row_weight, int64_t row);

// IndexError naming the first target outside [0, classes) that is not ignore_index.
[[noreturn]] void raise_target_out_of_bounds(int64_t target, int64_t classes, int64_t ignore_index);

}  // namespace powergrad

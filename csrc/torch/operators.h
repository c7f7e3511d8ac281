// The functions behind torch.ops.powergrad.*: the semantics live here, once for all devices.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

#include "torch/options.h"

namespace powergrad {

// The public operator, for others that are made of it.
at::Tensor cross_entropy(const at::Tensor& input, const at::Tensor& target,
                         const CrossEntropyOptions& options, bool inplace_backward);

// loss; statistics (kStatistics, rows), empty without needs_backward; total_weight, a float64
// scalar: what reduction="mean" divides by.
std::tuple<at::Tensor, at::Tensor, at::Tensor> cross_entropy_forward(
    const at::Tensor& input, const at::Tensor& target, const CrossEntropyOptions& options,
    bool needs_backward);

// Of logits that hold some of the classes, there are others before and after them: then targets
// are indices among all classes, and weights those of all.
at::Tensor cross_entropy_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                  const at::Tensor& target, const at::Tensor& statistics,
                                  const at::Tensor& total_weight,
                                  const CrossEntropyOptions& options, int64_t classes_before,
                                  int64_t classes_after);

// The loss and its gradient for an upstream gradient of 1; and what cross_entropy_forward returns
// besides.
struct LossAndGradient {
  at::Tensor loss;
  at::Tensor gradient;
  at::Tensor statistics;
  at::Tensor total_weight;
};
LossAndGradient cross_entropy_forward_gradient(const at::Tensor& input, const at::Tensor& target,
                                               const CrossEntropyOptions& options);

// Writes the gradient over the logits.
void cross_entropy_backward_(at::Tensor& input, const at::Tensor& grad_output,
                             const at::Tensor& target, const at::Tensor& statistics,
                             const at::Tensor& total_weight, const CrossEntropyOptions& options);
// Whether it can write over this tensor.
bool is_writable_in_place(const at::Tensor& input);

// On a GPU the upstream gradient is known to the device alone. So forward computes the gradient for
// the one that came last, and backward settles with the device whether it stands. Two passes over
// memory, three without, four where it does not.
struct AssumedGradient : LossAndGradient {
  at::Tensor upstream;     // what was assumed
  void* last_grad_output;  // where the one that came is noted
};
// Nothing where it cannot be assumed (last_grad_output.h), or tensors cannot be used as they lie.
std::optional<AssumedGradient> cross_entropy_forward_assuming(const at::Tensor& input,
                                                              const at::Tensor& target,
                                                              const CrossEntropyOptions& options);
// Makes assumed.gradient that for grad_output; the loss is not used.
void cross_entropy_settle(const AssumedGradient& assumed, const at::Tensor& grad_output,
                          const at::Tensor& input, const at::Tensor& target,
                          const CrossEntropyOptions& options);

// What a shard of the classes tells the others (shards.h), with the fingerprint of its arguments;
// total_weight.
std::tuple<at::Tensor, at::Tensor> cross_entropy_shard_forward(
    const at::Tensor& input, const at::Tensor& target, const CrossEntropyOptions& options,
    int64_t classes_before, int64_t classes_after, int64_t fingerprint);
// loss; the numbers of the whole rows (kShardNumbers, rows), statistics first. From the messages of
// all shards, (shards, message_size(rows)).
std::tuple<at::Tensor, at::Tensor> cross_entropy_merge_shards(const at::Tensor& messages,
                                                              const at::Tensor& total_weight,
                                                              const CrossEntropyOptions& options);

// Cross-entropy of linear(input, linear_weight, linear_bias), chunk_rows rows of logits at a time
// (0: as many as the operator sees fit).
at::Tensor linear_cross_entropy(const at::Tensor& input, const at::Tensor& linear_weight,
                                const at::Tensor& target, const OptionalTensor& linear_bias,
                                const CrossEntropyOptions& options, int64_t chunk_rows);

// Which gradients are wanted, those of input, linear_weight and linear_bias; and they themselves,
// the latter two of the accumulate type, empty where not wanted.
using GradientMask = std::array<bool, 3>;
using LinearGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// loss; scale, a float64 scalar; the gradients, which are yet to be multiplied by it and by
// grad_output. It is 1 but for float16, of whose range a mean's gradients may be out until then.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> linear_cross_entropy_forward(
    const at::Tensor& input, const at::Tensor& linear_weight, const at::Tensor& target,
    const OptionalTensor& linear_bias, const CrossEntropyOptions& options, int64_t chunk_rows,
    GradientMask gradients);

// The gradients for grad_output of each row's loss: the reduction is "none".
LinearGradients linear_cross_entropy_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& linear_weight,
    const at::Tensor& target, const OptionalTensor& linear_bias, const CrossEntropyOptions& options,
    int64_t chunk_rows, GradientMask gradients);

// output; statistics (kLogSoftmaxStatistics, rows), empty without needs_backward.
std::tuple<at::Tensor, at::Tensor> log_softmax_forward(const at::Tensor& input, int64_t dim,
                                                       const at::Tensor& alpha,
                                                       bool needs_backward);

at::Tensor log_softmax_backward(const at::Tensor& grad_output, const at::Tensor& input, int64_t dim,
                                const at::Tensor& alpha, const at::Tensor& statistics);

// Derivatives of cross_entropy_backward, in differentiable operators of ATen. `grad` is the
// gradient of what it returned; the results are those of its grad_output and its input.
std::tuple<at::Tensor, at::Tensor> cross_entropy_double_backward(
    const at::Tensor& grad, const at::Tensor& grad_output, const at::Tensor& input,
    const at::Tensor& target, const at::Tensor& total_weight, const CrossEntropyOptions& options);

// The same, with respect to target probabilities.
at::Tensor cross_entropy_backward_target_gradient(const at::Tensor& grad,
                                                  const at::Tensor& grad_output,
                                                  const at::Tensor& input,
                                                  const at::Tensor& total_weight,
                                                  const CrossEntropyOptions& options);

// The loss's own derivative with respect to target probabilities: -w log p, untouched by alpha.
at::Tensor cross_entropy_target_gradient(const at::Tensor& grad_output, const at::Tensor& input,
                                         const at::Tensor& total_weight,
                                         const CrossEntropyOptions& options);

}  // namespace powergrad

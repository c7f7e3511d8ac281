// The functions behind torch.ops.powergrad.*: the semantics live here, once for all devices.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "torch/last_layer.h"
#include "torch/row_chunks.h"

namespace powergrad {

// The public operator, for others that are made of it.
at::Tensor cross_entropy(const at::Tensor& input, const at::Tensor& target,
                         const CrossEntropyOptions& options, bool inplace_backward);

// loss; statistics (statistics_of_forward, rows); total_weight, a float64 scalar: what
// reduction="mean" divides by.
std::tuple<at::Tensor, at::Tensor, at::Tensor> cross_entropy_forward(
    const at::Tensor& input, const at::Tensor& target, const CrossEntropyOptions& options,
    bool needs_backward, bool metrics);
// How many statistics of a row: those of backward where it needs them, then metrics (Metric).
inline int64_t statistics_of_forward(const CrossEntropyOptions& options, bool needs_backward,
                                     bool metrics) {
  return (needs_backward ? options.statistics() : 0) + (metrics ? kMetrics : 0);
}

// Of logits that hold some of the classes, there are others before and after them: then targets
// are indices among all classes, and weights those of all.
at::Tensor cross_entropy_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                  const at::Tensor& target, const at::Tensor& statistics,
                                  const at::Tensor& total_weight,
                                  const CrossEntropyOptions& options, int64_t classes_before,
                                  int64_t classes_after);

// The loss and its gradient for a grad_output of 1; and what cross_entropy_forward returns besides.
struct LossAndGradient {
  at::Tensor loss;
  at::Tensor gradient;
  at::Tensor statistics;
  at::Tensor total_weight;
};
LossAndGradient cross_entropy_forward_gradient(const at::Tensor& input, const at::Tensor& target,
                                               const CrossEntropyOptions& options,
                                               bool needs_backward, bool metrics);

// Writes the gradient over the logits.
void cross_entropy_backward_(at::Tensor& input, const at::Tensor& grad_output,
                             const at::Tensor& target, const at::Tensor& statistics,
                             const at::Tensor& total_weight, const CrossEntropyOptions& options,
                             const OtherClasses& others = {});
// Whether it can write over this tensor.
bool is_writable_in_place(const at::Tensor& input);

// On a GPU, whose grad_output the host cannot read without synchronising, forward computes the
// gradient for the last grad_output and backward validates it on the device (last_grad_output.h).
// Two passes over memory; three without, four where another grad_output comes.
struct SpeculativeGradient : LossAndGradient {
  at::Tensor grad_output;  // that the gradient is for
  void* last_grad_output;  // where backward stores the actual one
};
// Nothing while a graph is captured (last_grad_output.h), or where the kernels need copies.
std::optional<SpeculativeGradient> cross_entropy_forward_speculative(
    const at::Tensor& input, const at::Tensor& target, const CrossEntropyOptions& options,
    bool metrics);
// Makes speculative.gradient that for grad_output; its loss is not used.
void cross_entropy_validate(const SpeculativeGradient& speculative, const at::Tensor& grad_output,
                            const at::Tensor& input, const at::Tensor& target,
                            const CrossEntropyOptions& options);

// The shard statistics (shards.h), with the fingerprint of the arguments; total_weight.
std::tuple<at::Tensor, at::Tensor> cross_entropy_shard_forward(
    const at::Tensor& input, const at::Tensor& target, const CrossEntropyOptions& options,
    int64_t classes_before, int64_t classes_after, int64_t fingerprint, bool metrics);
// loss; what merges from the statistics of all shards (shards, shard_statistics_size(rows,
// metrics)): those of the whole rows (kShardStatistics, rows), whose first are those of backward,
// then their metrics (kMetrics, rows).
std::tuple<at::Tensor, at::Tensor> cross_entropy_merge_shards(const at::Tensor& shard_statistics,
                                                              const at::Tensor& total_weight,
                                                              const CrossEntropyOptions& options,
                                                              bool metrics);

// losses; what merges, as above: an all-gather of the shard statistics. Where it raises on this
// rank, the others are told.
std::tuple<at::Tensor, at::Tensor> cross_entropy_of_shards(const at::Tensor& input,
                                                           const at::Tensor& target,
                                                           const CrossEntropyOptions& options,
                                                           const ClassShard& shard, bool metrics);

// Cross-entropy of linear(input, linear_weight, linear_bias).
at::Tensor linear_cross_entropy(const LastLayer& layer);
// And the metrics of each row, (kMetrics, rows).
using LossAndMetrics = std::tuple<at::Tensor, at::Tensor>;
LossAndMetrics linear_cross_entropy_metrics(const LastLayer& layer);

// loss; metrics (kMetrics, rows) where they are asked for, else empty; statistics
// (options.statistics(), rows) where classes are sharded, else empty; divisor and scale,
// float64 scalars; the gradients (row_chunks.h) of the sum of losses divided by divisor, which are
// yet to be multiplied by scale and by grad_output. scale is 1 but for float16, of whose range a
// mean's gradients may be out until then.
using LinearForward = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                                 at::Tensor, at::Tensor, at::Tensor>;
LinearForward linear_cross_entropy_forward(const LastLayer& layer, GradientMask gradients,
                                           bool metrics);

// The gradients for grad_output of each row's loss, where the reduction is "none"; else for a
// scalar, yet to be multiplied by scale. Nothing is exchanged.
LinearGradients linear_cross_entropy_backward(const at::Tensor& grad_output, const LastLayer& layer,
                                              const at::Tensor& statistics,
                                              const at::Tensor& divisor, GradientMask gradients);

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

// Derivatives of cross-entropy's backward, in ATen's differentiable operators: for create_graph,
// any order. With p' = softmax(alpha z), row weight r, V = W + 2 z_loss lse,
// dz = g r (p' V - target) and an incoming gradient h:
//
//     d/dg = r sum_j h_j (p'_j V - target_j)
//     d/dz = g r (V alpha p' (h - sum_j p'_j h_j) + 2 z_loss p sum_j p'_j h_j)
//     d/dq = g r w (sum_j p'_j h_j - h)                (target probabilities)
//
// These paths build (N, C) temporaries; the first-order ones do not.
#include <ATen/TensorOperators.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <limits>

#include "torch/checks.h"
#include "torch/operators.h"

namespace powergrad {
namespace {

// The weights of the classes, in the shape that broadcasts against the logits.
at::Tensor class_weights(const at::Tensor& logits, const CrossEntropyOptions& options) {
  std::vector<c10::SymInt> shape(logits.dim(), 1);
  const int64_t class_dim = class_dim_of(logits);
  shape[class_dim] = logits.sym_size(class_dim);
  const auto weights = options.has_weight() ? options.weight->to(logits.scalar_type())
                                            : at::ones_symint({shape[class_dim]}, logits.options());
  return weights.reshape_symint(shape);
}

// Of each row, broadcasting over classes; undefined: all are 1.
at::Tensor row_weights(const at::Tensor& logits, const CrossEntropyOptions& options) {
  if (!options.has_row_weight()) return {};
  return options.row_weight->to(logits.scalar_type()).unsqueeze(class_dim_of(logits));
}

// target_j = w_j q_j for every class, and which rows count: what others have is not used.
struct WeightedTarget {
  at::Tensor values;
  at::Tensor counts;

  WeightedTarget(const at::Tensor& logits, const at::Tensor& target,
                 const CrossEntropyOptions& options) {
    const int64_t class_dim = class_dim_of(logits);
    const c10::SymInt classes = logits.sym_size(class_dim);
    counts = options.rows_that_count(target);
    if (counts.defined()) counts = counts.unsqueeze(class_dim);
    at::Tensor q;
    if (is_probabilities(logits, target)) {
      q = target.to(logits.scalar_type());
    } else {
      const at::Tensor index = target.to(at::kLong).unsqueeze(class_dim);
      const at::Tensor safe_index = at::where(counts, index, 0);
      q = at::zeros_like(logits).scatter(class_dim, safe_index, 1.0);
    }
    const at::Scalar share = c10::SymFloat(options.label_smoothing) / c10::SymFloat(classes);
    values = (q * (1.0 - options.label_smoothing) + share) * class_weights(logits, options);
  }

  at::Tensor zero_where_ignored(const at::Tensor& tensor) const {
    return counts.defined() ? at::where(counts, tensor, 0.0) : tensor;
  }
};

// What a mean divides by. Where the classes' weights leave a total of 0, torch divides the target's
// share and the others' each, whose sum is NaN (Options.divisor in Python).
at::Tensor divisor(const at::Tensor& total_weight, at::ScalarType type,
                   const CrossEntropyOptions& options) {
  const at::Tensor total = total_weight.to(type);
  if (!options.has_weight() || options.label_smoothing == 0.0) return total;
  return at::where(total.eq(0.0), std::numeric_limits<double>::quiet_NaN(), total);
}

// The factor of each row's gradient, broadcasting over classes.
at::Tensor grad_output_of_rows(const at::Tensor& grad_output, const at::Tensor& logits,
                               const at::Tensor& total_weight, const CrossEntropyOptions& options) {
  at::Tensor result = grad_output;
  if (options.reduction == Reduction::none) result = result.unsqueeze(class_dim_of(logits));
  if (options.reduction == Reduction::mean) {
    result = result / divisor(total_weight, grad_output.scalar_type(), options);
  }
  const at::Tensor weights = row_weights(logits, options);
  return weights.defined() ? result * weights : result;
}

// Logits, or the gradient of probabilities, with 0 in rows of weight 0. Logits come before anything
// is computed from them: autograd multiplies what such rows have by 0, and NaN would stay NaN.
at::Tensor zero_where_weightless(const at::Tensor& tensor, const CrossEntropyOptions& options) {
  const at::Tensor weights = row_weights(tensor, options);
  return weights.defined() ? at::where(weights.ne(0), tensor, 0.0) : tensor;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> cross_entropy_double_backward(
    const at::Tensor& grad, const at::Tensor& grad_output, const at::Tensor& input,
    const at::Tensor& target, const at::Tensor& total_weight, const CrossEntropyOptions& options) {
  const int64_t class_dim = class_dim_of(input);
  const at::Tensor all_logits = input.to(accumulate_type(input));
  const WeightedTarget weighted_target(all_logits, target, options);
  const at::Tensor logits = weighted_target.zero_where_ignored(all_logits);
  at::Tensor weight_of_p = weighted_target.values.sum(class_dim, /*keepdim=*/true);
  if (options.z_loss != 0.0) {
    const at::Tensor lse = at::logsumexp(logits, {class_dim}, /*keepdim=*/true);
    weight_of_p = weight_of_p + lse * (2.0 * options.z_loss);
  }
  const at::Tensor alpha = options.alpha.to(logits.scalar_type());
  const at::Tensor p = weighted_target.zero_where_ignored(at::softmax(logits * alpha, class_dim));
  const at::Tensor h = grad.to(logits.scalar_type());
  const at::Tensor g = grad_output_of_rows(grad_output, logits, total_weight, options);

  at::Tensor direction =
      weighted_target.zero_where_ignored(p * weight_of_p - weighted_target.values);
  if (const at::Tensor weights = row_weights(logits, options); weights.defined()) {
    direction = direction * weights;
  }
  at::Tensor per_row = (h * direction).sum(class_dim);
  if (options.reduction != Reduction::none) per_row = per_row.sum();
  // 0 / 0 where no row counts, as torch's.
  if (options.reduction == Reduction::mean)
    per_row = per_row / divisor(total_weight, logits.scalar_type(), options);
  const at::Tensor mean_h = (p * h).sum(class_dim, /*keepdim=*/true);
  at::Tensor grad_input = weight_of_p * alpha * p * (h - mean_h);
  if (options.z_loss != 0.0) {
    grad_input = grad_input + mean_h * (2.0 * options.z_loss) * at::softmax(logits, class_dim);
  }
  grad_input = weighted_target.zero_where_ignored(g * grad_input);
  return {per_row.to(grad_output.scalar_type()), grad_input.to(input.scalar_type())};
}

at::Tensor cross_entropy_backward_target_gradient(const at::Tensor& grad,
                                                  const at::Tensor& grad_output,
                                                  const at::Tensor& input,
                                                  const at::Tensor& total_weight,
                                                  const CrossEntropyOptions& options) {
  const int64_t class_dim = class_dim_of(input);
  const at::Tensor logits = zero_where_weightless(input.to(accumulate_type(input)), options);
  const at::Tensor p = at::softmax(logits * options.alpha.to(logits.scalar_type()), class_dim);
  const at::Tensor h = grad.to(logits.scalar_type());
  const at::Tensor g = grad_output_of_rows(grad_output, logits, total_weight, options);
  const at::Tensor gradient = g * (1.0 - options.label_smoothing) * class_weights(logits, options) *
                              ((p * h).sum(class_dim, /*keepdim=*/true) - h);
  return zero_where_weightless(gradient, options);
}

at::Tensor cross_entropy_target_gradient(const at::Tensor& grad_output, const at::Tensor& input,
                                         const at::Tensor& total_weight,
                                         const CrossEntropyOptions& options) {
  const at::Tensor logits = zero_where_weightless(input.to(accumulate_type(input)), options);
  const at::Tensor g = grad_output_of_rows(grad_output, logits, total_weight, options);
  const at::Tensor gradient = -g * (1.0 - options.label_smoothing) *
                              class_weights(logits, options) *
                              at::log_softmax(logits, class_dim_of(logits));
  return zero_where_weightless(gradient, options);
}

}  // namespace powergrad

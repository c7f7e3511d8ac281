// One call of the cross-entropy kernels, from tensors: check, lay out, allocate, run, reduce.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/where.h>

#include <limits>

#include "torch/allocation.h"
#include "torch/operators.h"
#include "torch/params.h"
#include "torch/run.h"

namespace powergrad {

// The arguments of one call as the kernels take them; owns every tensor that the struct points to.
class CrossEntropyCall {
 public:
  CrossEntropyParams params{};

  CrossEntropyCall(const at::Tensor& input, const at::Tensor& target,
                   const CrossEntropyOptions& options, const OtherClasses& others = {})
      : functions_(functions_of(input.device())),
        input_((check_cross_entropy(input, target, options, others), input)),
        reduction_(options.reduction),
        backward_statistics_(options.statistics()),
        logits_(input, class_dim_of(input)),
        alpha_(options.alpha) {
    alpha_.fill(params);
    params.dtype = data_type_of(input);
    params.shape = logits_.layout.shape;
    params.classes_before = others.before;
    params.classes_after = others.after;
    params.logits = logits_.tensor.const_data_ptr();
    params.logits_strides = logits_.strides();
    params.ignore_index = options.ignore_index;
    params.label_smoothing = options.label_smoothing;
    params.z_loss = options.z_loss;
    set_target(target);
    if (options.has_weight()) {
      weight_ = options.weight->to(accumulate_type(input)).contiguous();
      params.weight = weight_.const_data_ptr();
      weight_sum_ = weight_.narrow(0, others.before, params.shape.classes).sum(at::kDouble);
      params.weight_sum = weight_sum_.const_data_ptr<double>();
    }
    if (options.has_row_weight()) {
      row_weight_ = options.row_weight->to(accumulate_type(input)).contiguous();
      params.row_weight = row_weight_.const_data_ptr();
    }
  }

  // Room for what forward writes besides losses: statistics (statistics_of_forward, rows), metrics
  // last. The total weight comes first: nothing is computed for a target out of range.
  void expect_forward(bool needs_backward, bool metrics) {
    if (metrics) check_metrics(input_, target_);
    add_total_weight();
    const int64_t for_backward = needs_backward ? backward_statistics_ : 0;
    statistics_ = new_empty({for_backward + (metrics ? kMetrics : 0), params.shape.rows()},
                            logits_.accumulate_options());
    if (needs_backward) params.statistics = statistics_.mutable_data_ptr();
    if (for_backward > kStatistics) params.sumexp_m1 = row_of_statistics(kStatistics);
    if (metrics) params.metrics = row_of_statistics(for_backward);
  }

  // Room for what forward tells other shards of the rows.
  at::Tensor expect_shard_statistics(int64_t fingerprint, bool metrics) {
    if (metrics) check_metrics(input_, target_);
    add_total_weight();
    const int64_t rows = params.shape.rows();
    const at::Tensor result =
        at::empty({shard_statistics_size(rows, metrics)}, logits_.accumulate_options());
    // With the number of rows, and exact in float.
    result.select(0, 0).fill_((fingerprint ^ rows * 0x9e3779b1) & 0xffffff);
    const auto rows_of = [&](int statistic) {
      return result.narrow(0, 1 + statistic * rows, rows);
    };
    params.is_shard = true;
    params.statistics = rows_of(0).mutable_data_ptr();
    params.sumexp_m1 = rows_of(kSumexpM1).mutable_data_ptr();
    params.losses = rows_of(kDistance).mutable_data_ptr();
    if (metrics) params.metrics = rows_of(kTargetLogit).mutable_data_ptr();
    if (params.shape.classes > 0) return result;
    rows_of(kMaximum).fill_(-std::numeric_limits<double>::infinity());
    for (const int sum : {int{kAlphaSumexpM1}, int{kSumexpM1}}) rows_of(sum).fill_(-1);
    for (const int sum : {int{kTargetWeight}, int{kDistance}}) rows_of(sum).zero_();
    if (!metrics) return result;
    for (const int of_metrics : {int{kTargetLogit}, int{kEntropySum}}) rows_of(of_metrics).zero_();
    return result;
  }

  void expect_gradient(void* gradient, const Strides& strides) {
    params.gradient = gradient;
    params.gradient_strides = strides;
    params.total_weight = divisor();
  }

  // Before expect_forward: the gradient is to be that for the last grad_output. False where there
  // is none, or backward could not use these tensors again.
  bool speculate() {
    if (!logits_.tensor.is_same(input_)) return false;
    params.next_speculation =
        functions_.last_grad_output(params, reduction_ == Reduction::mean, input_.device());
    if (params.next_speculation == nullptr) return false;
    grad_output_ = new_empty({}, logits_.accumulate_options());
    params.grad_output = grad_output_.const_data_ptr();
    return true;
  }
  const at::Tensor& grad_output() const { return grad_output_; }

  void set_backward(const at::Tensor& grad_output, const at::Tensor& statistics,
                    const at::Tensor& total_weight) {
    functions_.check_targets(params, input_.device());
    check_total_weight(total_weight, input_.device());
    total_weight_ = total_weight.to(at::kDouble);
    statistics_ = readable_statistics(statistics, input_, backward_statistics_, params.shape);
    params.statistics = const_cast<void*>(statistics_.const_data_ptr());
    if (backward_statistics_ > kStatistics) {
      params.sumexp_m1 = const_cast<void*>(statistics_.select(0, kStatistics).const_data_ptr());
    }
    set_grad_output(grad_output);
  }

  // Backward over a gradient that forward has written.
  void validate(const SpeculativeGradient& speculative) {
    expect_gradient(speculative.gradient.mutable_data_ptr(),
                    *strides_in(logits_.layout, speculative.gradient));
    params.speculative_grad_output = speculative.grad_output.const_data_ptr();
    params.next_speculation = speculative.last_grad_output;
    backward();
  }

  Destination new_gradient() const { return {logits_.layout, new_empty_like(input_)}; }

  void forward() const { functions_.cross_entropy_forward(params, input_.device()); }
  void backward() const { functions_.cross_entropy_backward(params, input_.device()); }

  at::Tensor forward_loss() {
    if (reduction_ != Reduction::none) return reduced(functions_.cross_entropy_forward_reduced);
    at::Tensor losses = new_losses();
    forward();
    return losses;
  }
  // Room for each row's loss, and their reduction once they are there.
  at::Tensor new_losses() {
    at::Tensor losses =
        new_empty(row_sizes(input_, class_dim_of(input_)), logits_.accumulate_options());
    params.losses = losses.mutable_data_ptr();
    return losses;
  }
  at::Tensor reduced(const at::Tensor& losses) {
    return reduction_ == Reduction::none ? losses : reduced(functions_.reduce_losses);
  }
  const at::Tensor& statistics() const { return statistics_; }
  const at::Tensor& total_weight() const { return total_weight_; }

 private:
  template <class Reduce>
  at::Tensor reduced(Reduce reduce) {
    at::Tensor loss = new_empty({}, logits_.accumulate_options());
    reduce(params, divisor(), loss.mutable_data_ptr(), input_.device());
    return loss;
  }

  void* row_of_statistics(int64_t row) { return statistics_.select(0, row).mutable_data_ptr(); }

  void add_total_weight() {
    total_weight_ = new_empty({}, input_.options().dtype(at::kDouble));
    functions_.total_weight(
        params, total_weight_.mutable_data_ptr<double>(),
        params.next_speculation != nullptr ? grad_output_.mutable_data_ptr() : nullptr,
        input_.device());
  }

  // What losses and gradients are divided by, if by anything. The classes' weights may leave a
  // total of 0, by which torch divides the target's share and the others' each; their sum is NaN.
  const double* divisor() {
    if (reduction_ != Reduction::mean) return nullptr;
    if (divisor_.defined()) return divisor_.const_data_ptr<double>();  // kernels may point to it
    divisor_ = total_weight_;
    if (weight_.defined() && params.label_smoothing > 0.0) {
      divisor_ = at::where(divisor_ == 0.0, std::numeric_limits<double>::quiet_NaN(), divisor_);
    }
    return divisor_.const_data_ptr<double>();
  }

  void set_grad_output(const at::Tensor& grad_output) {
    const bool per_row = reduction_ == Reduction::none;
    TORCH_CHECK(grad_output.device() == input_.device() &&
                    (per_row ? grad_output.sizes() == row_sizes(input_, class_dim_of(input_))
                             : grad_output.numel() == 1),
                "cross_entropy_backward(): argument 'grad_output' must have the shape of the loss",
                " and the device of 'input', got shape ", grad_output.sizes(), " on ",
                grad_output.device());
    const at::Tensor wide = grad_output.to(accumulate_type(input_));
    bool constant = true;  // as from loss.sum().backward()
    for (int64_t d = 0; d < wide.dim(); ++d) {
      constant = constant && (wide.size(d) == 1 || wide.stride(d) == 0);
    }
    grad_output_ = constant ? wide : wide.contiguous();
    params.grad_output = grad_output_.const_data_ptr();
    params.grad_output_stride = constant ? 0 : 1;
  }

  void set_target(const at::Tensor& target) {
    const at::ScalarType type = target.scalar_type();
    if (is_probabilities(input_, target)) {
      const at::ScalarType wide = accumulate_type(input_);
      const bool is_readable = type == wide || type == input_.scalar_type();
      target_ = readable_in(logits_.layout, is_readable ? target : target.to(wide));
      params.target_probabilities = target_.const_data_ptr();
      params.target_strides = *strides_in(logits_.layout, target_);
      params.target_is_accumulate_type = target_.scalar_type() == wide;
    } else {
      target_ = (type == at::kByte ? target.to(at::kLong) : target).contiguous();
      params.target_index = target_.const_data_ptr();
      params.target_index_is_int32 = type == at::kInt;
    }
  }

  const DeviceFunctions& functions_;
  at::Tensor input_;
  Reduction reduction_;
  int64_t backward_statistics_;
  ReadableLogits logits_;
  Alpha alpha_;
  at::Tensor target_;
  at::Tensor weight_;
  at::Tensor weight_sum_;
  at::Tensor row_weight_;
  at::Tensor statistics_;
  at::Tensor grad_output_;
  at::Tensor total_weight_;
  at::Tensor divisor_;
};

}  // namespace powergrad

// The raw operators of cross-entropy: check, lay out, allocate, run, reduce.
#include "torch/allocation.h"
#include "torch/operators.h"
#include "torch/parallel_sum.h"
#include "torch/params.h"
#include "torch/run.h"

namespace powergrad {
namespace {

// What reduction="mean" divides by: the summed weights of the targets that count. Raises for a
// target out of range before anything is computed.
template <class Index, class Scalar>
double total_weight_of(const CrossEntropyParams& p) {
  const auto* target = static_cast<const Index*>(p.target_index);
  const auto* weight = static_cast<const Scalar*>(p.weight);
  const int64_t classes = p.shape.classes;
  return parallel_sum(p.shape.rows(), [&](int64_t begin, int64_t end) {
    double sum = 0.0;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t index = target[row];
      if (index == p.ignore_index) continue;
      if (index < 0 || index >= classes) {
        raise_target_out_of_bounds(index, classes, p.ignore_index);
      }
      sum += weight != nullptr ? static_cast<double>(weight[index]) : 1.0;
    }
    return sum;
  });
}

template <class Scalar>
double total_weight_of(const CrossEntropyParams& p) {
  if (p.target_index == nullptr) return static_cast<double>(p.shape.rows());
  return p.target_index_is_int32 ? total_weight_of<int32_t, Scalar>(p)
                                 : total_weight_of<int64_t, Scalar>(p);
}

// The arguments of one call as the kernels take them; owns every tensor that the struct points to.
class CrossEntropyCall {
 public:
  CrossEntropyParams params{};

  CrossEntropyCall(const at::Tensor& input, const at::Tensor& target, const OptionalTensor& weight,
                   int64_t ignore_index, std::string_view reduction, double label_smoothing,
                   const at::Tensor& alpha)
      : input_((check_device_has_kernels(input.device()),
                check_cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing,
                                    alpha),
                input)),
        reduction_(parse_reduction(reduction)),
        logits_(input, class_dim_of(input)) {
    params.alpha = alpha_value(alpha);
    params.dtype = data_type_of(input);
    params.shape = logits_.layout.shape;
    params.logits = logits_.tensor.const_data_ptr();
    params.logits_strides = logits_.strides();
    params.ignore_index = ignore_index;
    params.label_smoothing = label_smoothing;
    set_target(target);
    if (weight.has_value() && weight->defined()) {
      weight_ = weight->to(accumulate_type(input)).contiguous();
      params.weight = weight_.const_data_ptr();
      weight_sum_ = weight_.sum(at::kDouble);
      params.weight_sum = weight_sum_.const_data_ptr<double>();
    }
    total_ = accumulate_type(input) == at::kDouble ? total_weight_of<double>(params)
                                                   : total_weight_of<float>(params);
  }

  // Room for what forward writes.
  void expect_forward(bool needs_backward) {
    losses_ = new_empty(row_sizes(input_, class_dim_of(input_)), logits_.accumulate_options());
    params.losses = losses_.mutable_data_ptr();
    statistics_ = new_empty({needs_backward ? kStatistics : 0, params.shape.rows()},
                            logits_.accumulate_options());
    params.statistics = needs_backward ? statistics_.mutable_data_ptr() : nullptr;
  }

  // Where gradients go, and what the mean divides them by.
  void expect_gradient(void* gradient, const Strides& strides, const double* total_weight) {
    params.gradient = gradient;
    params.gradient_strides = strides;
    params.total_weight = reduction_ == Reduction::mean ? total_weight : nullptr;
  }

  void set_backward(const at::Tensor& grad_output, const at::Tensor& statistics,
                    const at::Tensor& total_weight) {
    check_statistics(statistics, input_, kStatistics, params.shape);
    TORCH_CHECK(total_weight.dim() == 0 && total_weight.scalar_type() == at::kDouble &&
                    total_weight.device() == input_.device(),
                "total_weight must be what the forward operator returned (a 0-d float64 tensor),",
                " got ", total_weight.scalar_type(), " of shape ", total_weight.sizes());
    statistics_ = statistics;
    params.statistics = const_cast<void*>(statistics_.const_data_ptr());
    set_upstream(grad_output);
  }

  Destination new_gradient() const { return Destination(logits_.layout, input_); }

  at::Tensor loss() const {
    if (reduction_ == Reduction::none) return losses_;
    return losses_.scalar_type() == at::kDouble ? reduced_loss<double>() : reduced_loss<float>();
  }
  const at::Tensor& statistics() const { return statistics_; }
  const double* total_weight_data() const { return &total_; }
  at::Tensor total_weight() const { return new_scalar(total_, input_.options()); }
  c10::Device device() const { return input_.device(); }

 private:
  void set_upstream(const at::Tensor& grad_output) {
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
    upstream_ = constant ? wide : wide.contiguous();
    params.upstream = upstream_.const_data_ptr();
    params.upstream_stride = constant ? 0 : 1;
  }

  void set_target(const at::Tensor& target) {
    if (is_probabilities(input_, target)) {
      target_ = readable_in(logits_.layout, target);
      params.target_probabilities = target_.const_data_ptr();
      params.target_strides = *strides_in(logits_.layout, target_);
      params.target_is_accumulate_type = target.scalar_type() == accumulate_type(input_);
    } else {
      target_ = target.contiguous();
      params.target_index = target_.const_data_ptr();
      params.target_index_is_int32 = target.scalar_type() == at::kInt;
    }
  }

  template <class Scalar>
  at::Tensor reduced_loss() const {
    const Scalar* losses = losses_.const_data_ptr<Scalar>();
    const double sum = parallel_sum(losses_.numel(), [losses](int64_t begin, int64_t end) {
      double block = 0.0;
      for (int64_t row = begin; row < end; ++row) block += losses[row];
      return block;
    });
    const double loss = reduction_ == Reduction::mean ? sum / total_ : sum;
    return new_scalar(static_cast<Scalar>(loss), losses_.options());
  }

  at::Tensor input_;
  Reduction reduction_;
  ReadableLogits logits_;
  at::Tensor target_;
  at::Tensor weight_;
  at::Tensor weight_sum_;
  at::Tensor losses_;
  at::Tensor statistics_;
  at::Tensor upstream_;
  double total_;
};

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> cross_entropy_forward(
    const at::Tensor& input, const at::Tensor& target, const OptionalTensor& weight,
    int64_t ignore_index, std::string_view reduction, double label_smoothing,
    const at::Tensor& alpha, bool needs_backward) {
  CrossEntropyCall call(input, target, weight, ignore_index, reduction, label_smoothing, alpha);
  call.expect_forward(needs_backward);
  run_cross_entropy_forward(call.params, call.device());
  return {call.loss(), call.statistics(), call.total_weight()};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> cross_entropy_forward_gradient(
    const at::Tensor& input, const at::Tensor& target, const OptionalTensor& weight,
    int64_t ignore_index, std::string_view reduction, double label_smoothing,
    const at::Tensor& alpha) {
  CrossEntropyCall call(input, target, weight, ignore_index, reduction, label_smoothing, alpha);
  call.expect_forward(true);
  const Destination gradient = call.new_gradient();
  call.expect_gradient(gradient.data(), gradient.strides(), call.total_weight_data());
  run_cross_entropy_forward(call.params, call.device());
  return {call.loss(), gradient.finish(), call.statistics(), call.total_weight()};
}

at::Tensor cross_entropy_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                  const at::Tensor& target, const OptionalTensor& weight,
                                  int64_t ignore_index, std::string_view reduction,
                                  double label_smoothing, const at::Tensor& alpha,
                                  const at::Tensor& statistics, const at::Tensor& total_weight) {
  CrossEntropyCall call(input, target, weight, ignore_index, reduction, label_smoothing, alpha);
  call.set_backward(grad_output, statistics, total_weight);
  const Destination gradient = call.new_gradient();
  call.expect_gradient(gradient.data(), gradient.strides(), total_weight.const_data_ptr<double>());
  run_cross_entropy_backward(call.params, call.device());
  return gradient.finish();
}

void cross_entropy_backward_(at::Tensor& input, const at::Tensor& grad_output,
                             const at::Tensor& target, const OptionalTensor& weight,
                             int64_t ignore_index, std::string_view reduction,
                             double label_smoothing, const at::Tensor& alpha,
                             const at::Tensor& statistics, const at::Tensor& total_weight) {
  CrossEntropyCall call(input, target, weight, ignore_index, reduction, label_smoothing, alpha);
  TORCH_CHECK(is_writable_in_place(input),
              "cross_entropy_backward_(): argument 'input' must have contiguous rows or contiguous",
              " neighbouring rows and no overlapping elements, got strides ", input.strides());
  call.set_backward(grad_output, statistics, total_weight);
  call.expect_gradient(input.mutable_data_ptr(), call.params.logits_strides,
                       total_weight.const_data_ptr<double>());
  run_cross_entropy_backward(call.params, call.device());
  // Whoever saved these logits for a backward of its own now raises instead of reading a gradient.
  input.unsafeGetTensorImpl()->bump_version();
}

bool is_writable_in_place(const at::Tensor& input) {
  return is_non_overlapping(input) && find_layout(input, class_dim_of(input)).has_value();
}

}  // namespace powergrad

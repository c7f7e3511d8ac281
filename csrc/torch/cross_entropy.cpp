// The raw operators of cross-entropy.
#include "torch/cross_entropy_call.h"

namespace powergrad {

std::tuple<at::Tensor, at::Tensor, at::Tensor> cross_entropy_forward(
    const at::Tensor& input, const at::Tensor& target, const OptionalTensor& weight,
    int64_t ignore_index, std::string_view reduction, double label_smoothing,
    const at::Tensor& alpha, bool needs_backward) {
  CrossEntropyCall call(input, target, weight, ignore_index, reduction, label_smoothing, alpha);
  call.expect_forward(needs_backward);
  call.forward();
  return {call.loss(), call.statistics(), call.total_weight()};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> cross_entropy_forward_gradient(
    const at::Tensor& input, const at::Tensor& target, const OptionalTensor& weight,
    int64_t ignore_index, std::string_view reduction, double label_smoothing,
    const at::Tensor& alpha) {
  CrossEntropyCall call(input, target, weight, ignore_index, reduction, label_smoothing, alpha);
  call.expect_forward(true);
  const Destination gradient = call.new_gradient();
  call.expect_gradient(gradient.data(), gradient.strides());
  call.forward();
  return {call.loss(), gradient.finish(), call.statistics(), call.total_weight()};
}

std::optional<AssumedGradient> cross_entropy_forward_assuming(
    const at::Tensor& input, const at::Tensor& target, const OptionalTensor& weight,
    int64_t ignore_index, std::string_view reduction, double label_smoothing,
    const at::Tensor& alpha) {
  CrossEntropyCall call(input, target, weight, ignore_index, reduction, label_smoothing, alpha);
  if (!call.assume_upstream()) return std::nullopt;
  const Destination gradient = call.new_gradient();
  if (!gradient.is_direct()) return std::nullopt;
  call.expect_forward(true);
  call.expect_gradient(gradient.data(), gradient.strides());
  call.forward();
  return AssumedGradient{call.loss(),         gradient.finish(), call.statistics(),
                         call.total_weight(), call.upstream(),   call.params.next_speculation};
}

void cross_entropy_settle(const AssumedGradient& assumed, const at::Tensor& grad_output,
                          const at::Tensor& input, const at::Tensor& target,
                          const OptionalTensor& weight, int64_t ignore_index,
                          std::string_view reduction, double label_smoothing,
                          const at::Tensor& alpha) {
  CrossEntropyCall call(input, target, weight, ignore_index, reduction, label_smoothing, alpha);
  call.set_backward(grad_output, assumed.statistics, assumed.total_weight);
  call.settle(assumed);
}

at::Tensor cross_entropy_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                  const at::Tensor& target, const OptionalTensor& weight,
                                  int64_t ignore_index, std::string_view reduction,
                                  double label_smoothing, const at::Tensor& alpha,
                                  const at::Tensor& statistics, const at::Tensor& total_weight) {
  CrossEntropyCall call(input, target, weight, ignore_index, reduction, label_smoothing, alpha);
  call.set_backward(grad_output, statistics, total_weight);
  const Destination gradient = call.new_gradient();
  call.expect_gradient(gradient.data(), gradient.strides());
  call.backward();
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
  call.expect_gradient(input.mutable_data_ptr(), call.params.logits_strides);
  call.backward();
  // Whoever saved these logits for a backward of its own now raises instead of reading a gradient.
  input.unsafeGetTensorImpl()->bump_version();
}

bool is_writable_in_place(const at::Tensor& input) {
  return is_non_overlapping(input) && find_layout(input, class_dim_of(input)).has_value();
}

}  // namespace powergrad

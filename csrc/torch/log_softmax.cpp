// The raw operators of log-softmax: check, lay out, allocate, run.
#include "torch/allocation.h"
#include "torch/operators.h"
#include "torch/params.h"
#include "torch/run.h"

namespace powergrad {
namespace {

// Like torch's, a 0-d tensor counts as one class.
at::Tensor at_least_1d(const at::Tensor& tensor) {
  return tensor.dim() == 0 ? tensor.reshape({1}) : tensor;
}

struct LogSoftmaxCall {
  LogSoftmaxParams params{};
  const DeviceFunctions& functions;
  at::Tensor input;
  ReadableLogits logits;
  Exponent exponent;

  LogSoftmaxCall(const at::Tensor& any_input, int64_t dim, const at::Tensor& alpha)
      : functions(functions_of(any_input.device())),
        input((check_log_softmax(any_input, dim, alpha), at_least_1d(any_input))),
        logits(input, dim < 0 ? dim + input.dim() : dim),
        exponent(alpha) {
    exponent.fill(params);
    params.dtype = data_type_of(input);
    params.shape = logits.layout.shape;
    params.logits = logits.tensor.const_data_ptr();
    params.logits_strides = logits.strides();
  }

  // Contiguous, as torch's.
  Destination new_output() const {
    return {logits.layout, new_empty(input.sizes(), input.options())};
  }
  // In the strides of the logits, as gradients are.
  Destination new_gradient() const { return {logits.layout, new_empty_like(input)}; }
};

}  // namespace

std::tuple<at::Tensor, at::Tensor> log_softmax_forward(const at::Tensor& input, int64_t dim,
                                                       const at::Tensor& alpha,
                                                       bool needs_backward) {
  LogSoftmaxCall call(input, dim, alpha);
  LogSoftmaxParams& params = call.params;
  const Destination output = call.new_output();
  at::Tensor statistics =
      new_empty({needs_backward ? kLogSoftmaxStatistics : 0, params.shape.rows()},
                call.logits.accumulate_options());
  params.output = output.data();
  params.output_strides = output.strides();
  params.statistics = needs_backward ? statistics.mutable_data_ptr() : nullptr;
  call.functions.log_softmax_forward(params, input.device());
  return {output.finish().view(input.sizes()), statistics};
}

at::Tensor log_softmax_backward(const at::Tensor& grad_output, const at::Tensor& input, int64_t dim,
                                const at::Tensor& alpha, const at::Tensor& statistics) {
  LogSoftmaxCall call(input, dim, alpha);
  LogSoftmaxParams& params = call.params;
  TORCH_CHECK(grad_output.sizes() == input.sizes() &&
                  grad_output.scalar_type() == input.scalar_type() &&
                  grad_output.device() == input.device(),
              "log_softmax_backward(): argument 'grad_output' must have the shape, type and device",
              " of 'input' (", input.scalar_type(), " of shape ", input.sizes(), "), got ",
              grad_output.scalar_type(), " of shape ", grad_output.sizes());
  const at::Tensor readable =
      readable_statistics(statistics, input, kLogSoftmaxStatistics, params.shape);
  const at::Tensor upstream = readable_in(call.logits.layout, at_least_1d(grad_output));
  const Destination gradient = call.new_gradient();
  params.statistics = const_cast<void*>(readable.const_data_ptr());
  params.grad_output = upstream.const_data_ptr();
  params.grad_output_strides = *strides_in(call.logits.layout, upstream);
  params.gradient = gradient.data();
  params.gradient_strides = gradient.strides();
  call.functions.log_softmax_backward(params, input.device());
  return gradient.finish().view(input.sizes());
}

}  // namespace powergrad

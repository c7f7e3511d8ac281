// The operators of log-softmax, and their autograd.
#include <ATen/TensorOperators.h>
#include <ATen/ops/softmax.h>
#include <torch/library.h>

#include <tuple>

#include "torch/allocation.h"
#include "torch/autograd.h"
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
  Alpha kernel_alpha;

  LogSoftmaxCall(const at::Tensor& any_input, int64_t dim, const at::Tensor& alpha)
      : functions(functions_of(any_input.device())),
        input((check_log_softmax(any_input, dim, alpha), at_least_1d(any_input))),
        logits(input, dim < 0 ? dim + input.dim() : dim),
        kernel_alpha(alpha) {
    kernel_alpha.fill(params);
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
  const at::Tensor readable_grad_output = readable_in(call.logits.layout, at_least_1d(grad_output));
  const Destination gradient = call.new_gradient();
  params.statistics = const_cast<void*>(readable.const_data_ptr());
  params.grad_output = readable_grad_output.const_data_ptr();
  params.grad_output_strides = *strides_in(call.logits.layout, readable_grad_output);
  params.gradient = gradient.data();
  params.gradient_strides = gradient.strides();
  call.functions.log_softmax_backward(params, input.device());
  return gradient.finish().view(input.sizes());
}

namespace {

// The derivatives of log_softmax_backward, dz = g - p' sum(g), by g and by z, where `grad` is the
// gradient of what it returned. In ATen's differentiable operators, for create_graph.
std::tuple<at::Tensor, at::Tensor> double_backward(const at::Tensor& grad,
                                                   const at::Tensor& grad_output,
                                                   const at::Tensor& input, int64_t dim,
                                                   const at::Tensor& alpha) {
  const auto type = accumulate_type(input);
  const at::Tensor power = alpha.to(type);
  const at::Tensor p = at::softmax(input.to(type) * power, dim);
  const at::Tensor h = grad.to(type);
  const at::Tensor mean_h = (p * h).sum(dim, /*keepdim=*/true);
  const at::Tensor total = grad_output.to(type).sum(dim, /*keepdim=*/true);
  const at::Tensor grad_input = (mean_h - h) * p * power * total;
  return {(h - mean_h).to(grad_output.scalar_type()), grad_input.to(input.scalar_type())};
}

// The gradient of log_softmax_backward, for create_graph.
class LogSoftmaxBackwardFunction : public Function<LogSoftmaxBackwardFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& grad_output,
                            const at::Tensor& input, int64_t dim, const at::Tensor& alpha,
                            const at::Tensor& statistics, TransformsAside& transforms) {
    transforms.put_back();
    at::AutoDispatchBelowADInplaceOrView guard;
    save(context, {grad_output, input, savable(alpha)});
    context->saved_data["dim"] = dim;
    return POWERGRAD_DISPATCHED(log_softmax_backward)(grad_output, input, dim, alpha, statistics);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list result(6);
    if (!grads[0].defined()) return result;
    const variable_list saved = unpack(context, "log_softmax").tensors;
    std::tie(result[0], result[1]) =
        double_backward(grads[0], saved[0], saved[1], context->saved_data["dim"].toInt(), saved[2]);
    return result;
  }
};

at::Tensor log_softmax_backward_autograd(const at::Tensor& grad_output, const at::Tensor& input,
                                         int64_t dim, const at::Tensor& alpha,
                                         const at::Tensor& statistics) {
  check_not_nested(input, "log_softmax", "input");
  refuse_tangents("log_softmax_backward", grad_output, input, alpha);
  TransformsAside transforms;
  return LogSoftmaxBackwardFunction::apply(grad_output, input, dim, alpha, statistics, transforms);
}

// What the raw forward operator returns besides its output, and cannot be differentiated.
struct LogSoftmaxForBackward {
  at::Tensor statistics;
};

class LogSoftmaxFunction : public Function<LogSoftmaxFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, int64_t dim,
                            const at::Tensor& alpha, LogSoftmaxForBackward& others,
                            TransformsAside& transforms) {
    transforms.put_back();
    at::AutoDispatchBelowADInplaceOrView guard;
    at::Tensor output;
    std::tie(output, others.statistics) =
        POWERGRAD_DISPATCHED(log_softmax_forward)(input, dim, alpha, /*needs_backward=*/true);
    save(context, {input, savable(alpha), others.statistics});
    context->saved_data["dim"] = dim;
    return output;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list result(5);
    if (!grads[0].defined()) return result;
    auto [saved, are_rounded] = unpack(context, "log_softmax");
    const int64_t dim = context->saved_data["dim"].toInt();
    if (are_rounded) {
      saved[2] = std::get<1>(POWERGRAD_DISPATCHED(log_softmax_forward)(saved[0], dim, saved[1],
                                                                       /*needs_backward=*/true));
    }
    result[0] =
        POWERGRAD_DISPATCHED(log_softmax_backward)(grads[0], saved[0], dim, saved[1], saved[2]);
    return result;
  }
};

std::tuple<at::Tensor, at::Tensor> differentiable_log_softmax(const char* op,
                                                              const at::Tensor& input, int64_t dim,
                                                              const at::Tensor& alpha,
                                                              bool needs_backward) {
  check_not_nested(input, "log_softmax", "input");
  refuse_tangents(op, input, alpha);
  if (!at::GradMode::is_enabled() || !input.requires_grad()) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return POWERGRAD_DISPATCHED(log_softmax_forward)(input, dim, alpha, needs_backward);
  }
  LogSoftmaxForBackward others;
  TransformsAside transforms;
  const at::Tensor output = LogSoftmaxFunction::apply(input, dim, alpha, others, transforms);
  return {output, others.statistics};
}

at::Tensor log_softmax_autograd(const at::Tensor& input, int64_t dim, const at::Tensor& alpha) {
  return std::get<0>(
      differentiable_log_softmax("log_softmax", input, dim, alpha, /*needs_backward=*/false));
}

std::tuple<at::Tensor, at::Tensor> log_softmax_forward_autograd(const at::Tensor& input,
                                                                int64_t dim,
                                                                const at::Tensor& alpha,
                                                                bool needs_backward) {
  auto result =
      differentiable_log_softmax("log_softmax_forward", input, dim, alpha, needs_backward);
  if (!needs_backward) std::get<1>(result) = std::get<1>(result).narrow(0, 0, 0);
  return result;
}

at::Tensor log_softmax(const at::Tensor& input, int64_t dim, const at::Tensor& alpha) {
  return std::get<0>(
      POWERGRAD_DISPATCHED(log_softmax_forward)(input, dim, alpha, /*needs_backward=*/false));
}

}  // namespace

TORCH_LIBRARY_IMPL(powergrad, Autograd, m) {
  m.impl("log_softmax", log_softmax_autograd);
  m.impl("log_softmax_forward", log_softmax_forward_autograd);
  m.impl("log_softmax_backward", log_softmax_backward_autograd);
}

TORCH_LIBRARY_IMPL(powergrad, CompositeExplicitAutograd, m) { m.impl("log_softmax", log_softmax); }

}  // namespace powergrad

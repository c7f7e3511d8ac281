// Autograd for log-softmax and for its backward operator (create_graph).
#include <torch/library.h>

#include <tuple>

#include "torch/autograd.h"

namespace powergrad {
namespace {

// The gradient of log_softmax_backward, for create_graph.
class LogSoftmaxBackwardFunction : public Function<LogSoftmaxBackwardFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& grad_output,
                            const at::Tensor& input, int64_t dim, const at::Tensor& alpha,
                            const at::Tensor& statistics, TransformsAside& transforms) {
    transforms.put_back();
    at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({grad_output, input, savable(alpha)});
    context->saved_data["dim"] = dim;
    return POWERGRAD_DISPATCHED(log_softmax_backward)
        .call(grad_output, input, dim, alpha, statistics);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list result(6);
    if (!grads[0].defined()) return result;
    const variable_list saved = unpack(context, "log_softmax");
    std::tie(result[0], result[1]) = log_softmax_double_backward(
        grads[0], saved[0], saved[1], context->saved_data["dim"].toInt(), saved[2]);
    return result;
  }
};

at::Tensor log_softmax_backward_autograd(const at::Tensor& grad_output, const at::Tensor& input,
                                         int64_t dim, const at::Tensor& alpha,
                                         const at::Tensor& statistics) {
  check_not_nested(input, "log_softmax", "input");
  refuse_tangents({grad_output, input, alpha}, "log_softmax_backward");
  TransformsAside transforms;
  return LogSoftmaxBackwardFunction::apply(grad_output, input, dim, alpha, statistics, transforms);
}

class LogSoftmaxFunction : public Function<LogSoftmaxFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, int64_t dim,
                            const at::Tensor& alpha, TransformsAside& transforms) {
    transforms.put_back();
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, statistics] =
        POWERGRAD_DISPATCHED(log_softmax_forward).call(input, dim, alpha, /*needs_backward=*/true);
    context->save_for_backward({input, savable(alpha), statistics});
    context->saved_data["dim"] = dim;
    return output;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list result(4);
    if (!grads[0].defined()) return result;
    variable_list saved = unpack(context, "log_softmax");
    const int64_t dim = context->saved_data["dim"].toInt();
    convert(saved, grads[0].scalar_type(), dim);
    result[0] = POWERGRAD_DISPATCHED(log_softmax_backward)
                    .call(grads[0], saved[0], dim, saved[1], saved[2]);
    return result;
  }

 private:
  // As CrossEntropyFunction::saved_tensors; the upstream gradient has the type that the logits had.
  static void convert(variable_list& saved, at::ScalarType type, int64_t dim) {
    const bool same_logits = saved[0].scalar_type() == type;
    saved[0] = saved[0].to(type);
    if (same_logits && saved[2].scalar_type() == accumulate_type(saved[0])) return;
    saved[2] = std::get<1>(POWERGRAD_DISPATCHED(log_softmax_forward)
                               .call(saved[0], dim, saved[1], /*needs_backward=*/true));
  }
};

at::Tensor log_softmax(const at::Tensor& input, int64_t dim, const at::Tensor& alpha) {
  return std::get<0>(
      POWERGRAD_DISPATCHED(log_softmax_forward).call(input, dim, alpha, /*needs_backward=*/false));
}

at::Tensor log_softmax_autograd(const at::Tensor& input, int64_t dim, const at::Tensor& alpha) {
  check_not_nested(input, "log_softmax", "input");
  refuse_tangents({input, alpha}, "log_softmax");
  if (!at::GradMode::is_enabled() || !input.requires_grad()) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return log_softmax(input, dim, alpha);
  }
  TransformsAside transforms;
  return LogSoftmaxFunction::apply(input, dim, alpha, transforms);
}

class LogSoftmaxForwardFunction : public Function<LogSoftmaxForwardFunction> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& input, int64_t dim,
                               const at::Tensor& alpha, bool needs_backward,
                               TransformsAside& transforms) {
    transforms.put_back();
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, statistics] =
        POWERGRAD_DISPATCHED(log_softmax_forward).call(input, dim, alpha, /*needs_backward=*/true);
    context->save_for_backward({input, savable(alpha), statistics});
    context->saved_data["dim"] = dim;
    if (!needs_backward) statistics = statistics.narrow(0, 0, 0);
    context->mark_non_differentiable({statistics});
    return {output, statistics};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list result = LogSoftmaxFunction::backward(context, {grads[0]});
    result.emplace_back();  // needs_backward
    return result;
  }
};

std::tuple<at::Tensor, at::Tensor> log_softmax_forward_autograd(const at::Tensor& input,
                                                                int64_t dim,
                                                                const at::Tensor& alpha,
                                                                bool needs_backward) {
  check_not_nested(input, "log_softmax", "input");
  refuse_tangents({input, alpha}, "log_softmax_forward");
  if (!at::GradMode::is_enabled() || !input.requires_grad()) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return POWERGRAD_DISPATCHED(log_softmax_forward).call(input, dim, alpha, needs_backward);
  }
  TransformsAside transforms;
  const variable_list outputs =
      LogSoftmaxForwardFunction::apply(input, dim, alpha, needs_backward, transforms);
  return {outputs[0], outputs[1]};
}

}  // namespace

TORCH_LIBRARY_IMPL(powergrad, Autograd, m) {
  m.impl("log_softmax", log_softmax_autograd);
  m.impl("log_softmax_forward", log_softmax_forward_autograd);
  m.impl("log_softmax_backward", log_softmax_backward_autograd);
}

TORCH_LIBRARY_IMPL(powergrad, CompositeExplicitAutograd, m) { m.impl("log_softmax", log_softmax); }

}  // namespace powergrad

// Autograd for the public operators and for the backward operators (create_graph). Everything is
// computed by the raw operators, reached through the dispatcher, so that tracing sees them.
#include <ATen/SavedTensorHooks.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>
#include <initializer_list>
#include <tuple>

#include "torch/checks.h"
#include "torch/functorch.h"
#include "torch/operators.h"

namespace powergrad {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// A raw operator by name, through the dispatcher.
#define POWERGRAD_DISPATCHED(name)                                         \
  ([]() -> const auto& {                                                   \
    static const auto op = c10::Dispatcher::singleton()                    \
                               .findSchemaOrThrow("powergrad::" #name, "") \
                               .typed<decltype(name)>();                   \
    return op;                                                             \
  }())

// Dense memory that can be used as it stands: no subclass, tracing, or lazy negation or zero.
bool is_plain(const at::Tensor& tensor) {
  static constexpr c10::DispatchKeySet kNotPlain =
      c10::python_ks |
      c10::DispatchKeySet({c10::DispatchKey::Functionalize, c10::DispatchKey::Negative,
                           c10::DispatchKey::Conjugate, c10::DispatchKey::ZeroTensor,
                           c10::DispatchKey::FuncTorchBatched,
                           c10::DispatchKey::FuncTorchGradWrapper, c10::DispatchKey::Batched});
  return (tensor.is_cpu() || tensor.is_cuda()) && !tensor.key_set().has_any(kNotPlain) &&
         !c10::impl::TorchDispatchModeTLS::any_modes_set();
}

// Whether hooks (checkpointing, offloading) decide what tensors saved now are in backward.
bool are_saved_tensors_hooked() { return at::SavedTensorDefaultHooks::get_hooks().has_value(); }

// The gradient is computed together with the loss where that is likely to be the gradient that
// backward will ask for: one pass over memory less. So it is
//  - for an upstream gradient of one number (mean, sum). On a CPU it is taken for 1, and scaling in
//    place is cheaper than computing again; on a GPU, which scaling would cost two passes, for the
//    one that came last, and computed again where another one comes (AssumedGradient);
//  - on a CPU, for types with float's exponent range (of normal numbers at least): a float16
//    gradient divided by N underflows before a loss scale of 65536 can lift it. A GPU computes for
//    that scale from its second step on;
//  - where the buffer is nobody else's: hooks that pack saved tensors expect to decide what is kept
//    until backward.
// Otherwise backward computes the gradient from the logits. So do traced tensors: torch.compile
// plans memory and order itself from the raw operators, which give each gradient in new memory; one
// that settles an earlier result in place would have to be a mutation that it has to copy for.
bool computes_gradient_in_forward(const at::Tensor& input, std::string_view reduction,
                                  bool inplace_backward) {
  return input.requires_grad() && !inplace_backward && reduction != "none" &&
         !(input.is_cpu() && input.scalar_type() == at::kHalf) && is_plain(input) &&
         !in_transform() && !are_saved_tensors_hooked();
}

// A leaf or a view of one, which would become its own gradient.
bool is_of_leaf(const at::Tensor& input) {
  return input.is_leaf() || (input.is_view() && input._base().is_leaf());
}

// The arguments that are not tensors, as backward finds them again.
struct CrossEntropyOptions {
  int64_t ignore_index;
  std::string reduction;
  double label_smoothing;
  bool inplace_backward;

  void save(AutogradContext* context) const {
    context->saved_data["options"] =
        c10::ivalue::Tuple::create({ignore_index, reduction, label_smoothing, inplace_backward});
  }
  static CrossEntropyOptions load(AutogradContext* context) {
    const auto options = context->saved_data["options"].toTuple();
    const auto& elements = options->elements();
    return {elements[0].toInt(), elements[1].toStringRef(), elements[2].toDouble(),
            elements[3].toBool()};
  }
};

// An upstream gradient on the CPU, read without a round of dispatching.
double scalar_value(const at::Tensor& scalar) {
  return scalar.scalar_type() == at::kDouble ? *scalar.const_data_ptr<double>()
                                             : *scalar.const_data_ptr<float>();
}

// Another one would turn the zeros of ignored rows into NaN.
bool is_finite_scalar(const at::Tensor& upstream) {
  return upstream.is_cpu() && std::isfinite(scalar_value(upstream));
}

// The tensors that forward saved.
variable_list unpack(AutogradContext* context, const char* op) {
  try {
    return context->get_saved_variables();
  } catch (const c10::Error& error) {
    const std::string reason = error.what_without_backtrace();
    const bool is_changed = reason.find("modified by an inplace") != std::string::npos ||
                            reason.find("been modified inplace") != std::string::npos;
    if (!is_changed) throw;
    TORCH_CHECK(
        false, op, "(): backward needs the arguments of forward, and one of them has been",
        " changed in place since, by an in-place operation or by another loss over the same",
        " memory with inplace_backward=True: change a copy of it (tensor.clone()), or leave",
        " inplace_backward off. ", reason);
  }
}

OptionalTensor optional(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

// Before autograd keeps them: it does not know nested tensors, and those with Python classes of
// their own never come to an operator's other checks.
void refuse_nested(const at::Tensor& input, const at::Tensor& target, const OptionalTensor& weight,
                   const char* op) {
  check_not_nested(input, op, "input");
  check_not_nested(target, op, "target");
  if (weight.has_value()) check_not_nested(*weight, op, "weight");
}

// A tangent would be lost without a word otherwise: torch asks about it only where a gradient is
// wanted as well.
void refuse_tangents(std::initializer_list<at::Tensor> tensors, const char* op) {
  for (const at::Tensor& tensor : tensors) {
    TORCH_CHECK_NOT_IMPLEMENTED(!tensor.defined() || !tensor._fw_grad(/*level=*/0).defined(), op,
                                "(): forward-mode derivatives are not implemented: PowerGrad",
                                " Transform defines a gradient, for reverse mode");
  }
}

// The gradient of cross_entropy_backward, for create_graph.
class CrossEntropyBackwardFunction : public Function<CrossEntropyBackwardFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& grad_output,
                            const at::Tensor& input, const at::Tensor& target,
                            const OptionalTensor& weight, int64_t ignore_index,
                            std::string_view reduction, double label_smoothing,
                            const at::Tensor& alpha, const at::Tensor& statistics,
                            const at::Tensor& total_weight, TransformsAside& transforms) {
    transforms.put_back();
    at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward(
        {grad_output, input, target, weight.value_or(at::Tensor()), alpha, total_weight});
    CrossEntropyOptions{ignore_index, std::string(reduction), label_smoothing, false}.save(context);
    return POWERGRAD_DISPATCHED(cross_entropy_backward)
        .call(grad_output, input, target, weight, ignore_index, reduction, label_smoothing, alpha,
              statistics, total_weight);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list result(11);
    if (!grads[0].defined()) return result;
    const variable_list saved = unpack(context, "cross_entropy");
    const auto options = CrossEntropyOptions::load(context);
    std::tie(result[0], result[1]) = cross_entropy_double_backward(
        grads[0], saved[0], saved[1], saved[2], optional(saved[3]), options.ignore_index,
        options.reduction, options.label_smoothing, saved[4], saved[5]);
    if (context->needs_input_grad(2)) {
      result[2] = cross_entropy_backward_target_gradient(
                      grads[0], saved[0], saved[1], optional(saved[3]), options.reduction,
                      options.label_smoothing, saved[4], saved[5])
                      .to(saved[2].scalar_type());
    }
    return result;
  }
};

at::Tensor cross_entropy_backward_autograd(const at::Tensor& grad_output, const at::Tensor& input,
                                           const at::Tensor& target, const OptionalTensor& weight,
                                           int64_t ignore_index, std::string_view reduction,
                                           double label_smoothing, const at::Tensor& alpha,
                                           const at::Tensor& statistics,
                                           const at::Tensor& total_weight) {
  refuse_nested(input, target, weight, "cross_entropy");
  refuse_tangents({grad_output, input, target, weight.value_or(at::Tensor()), alpha},
                  "cross_entropy_backward");
  TransformsAside transforms;
  return CrossEntropyBackwardFunction::apply(grad_output, input, target, weight, ignore_index,
                                             reduction, label_smoothing, alpha, statistics,
                                             total_weight, transforms);
}

class CrossEntropyFunction : public Function<CrossEntropyFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& target, const OptionalTensor& weight,
                            int64_t ignore_index, std::string_view reduction,
                            double label_smoothing, const at::Tensor& alpha, bool inplace_backward,
                            TransformsAside& transforms) {
    transforms.put_back();
    at::AutoDispatchBelowADInplaceOrView guard;
    const bool hooked = are_saved_tensors_hooked();
    // In a transform the memory may be another level's. Where hooks keep the tensors, a backward
    // that saved these logits finds them again without torch's check that they are unchanged.
    if (hooked || in_transform() || is_of_leaf(input)) inplace_backward = false;
    at::Tensor loss, gradient, statistics, total_weight;
    const bool with_gradient = computes_gradient_in_forward(input, reduction, inplace_backward);
    if (with_gradient && input.is_cuda()) {
      if (const auto assumed = cross_entropy_forward_assuming(input, target, weight, ignore_index,
                                                              reduction, label_smoothing, alpha)) {
        std::tie(loss, gradient, statistics, total_weight) =
            std::tie(assumed->loss, assumed->gradient, assumed->statistics, assumed->total_weight);
        context->saved_data["assumed"] = assumed->upstream;
        context->saved_data["last_upstream"] = reinterpret_cast<int64_t>(assumed->last_upstream);
      }
    } else if (with_gradient) {
      std::tie(loss, gradient, statistics, total_weight) =
          POWERGRAD_DISPATCHED(cross_entropy_forward_gradient)
              .call(input, target, weight, ignore_index, reduction, label_smoothing, alpha);
    }
    if (gradient.defined()) {
      context->saved_data["gradient"] = gradient;
    } else {
      std::tie(loss, statistics, total_weight) =
          POWERGRAD_DISPATCHED(cross_entropy_forward)
              .call(input, target, weight, ignore_index, reduction, label_smoothing, alpha,
                    /*needs_backward=*/true);
    }
    context->save_for_backward(
        {input, target, weight.value_or(at::Tensor()), alpha, statistics, total_weight});
    CrossEntropyOptions{ignore_index, std::string(reduction), label_smoothing, inplace_backward}
        .save(context);
    if (hooked) context->saved_data["types"] = types_of(input, target);
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list result(9);
    const at::Tensor& grad_output = grads[0];
    if (!grad_output.defined()) return result;
    if (context->needs_input_grad(0)) result[0] = take_gradient(context, grad_output);
    if (result[0].defined() && !context->needs_input_grad(1)) return result;
    const auto options = CrossEntropyOptions::load(context);
    const variable_list saved = saved_tensors(context, options);
    // Probabilities first: they read the logits, which the gradient may overwrite.
    if (context->needs_input_grad(1)) {
      result[1] =
          cross_entropy_target_gradient(grad_output, saved[0], optional(saved[2]),
                                        options.reduction, options.label_smoothing, saved[5])
              .to(saved[1].scalar_type());
    }
    if (context->needs_input_grad(0) && !result[0].defined()) {
      result[0] = compute_gradient(grad_output, saved, options);
    }
    return result;
  }

 private:
  static c10::IValue types_of(const at::Tensor& input, const at::Tensor& target) {
    return c10::ivalue::Tuple::create(
        {static_cast<int64_t>(input.scalar_type()), static_cast<int64_t>(target.scalar_type())});
  }

  // What forward saved. Hooks may have packed it in other types, to save memory: the logits get
  // theirs back, and the statistics, where they have lost theirs, are computed again, since rounded
  // ones would not be of these logits.
  static variable_list saved_tensors(AutogradContext* context, const CrossEntropyOptions& options) {
    variable_list saved = unpack(context, "cross_entropy");
    const auto packed = context->saved_data.find("types");
    if (packed == context->saved_data.end()) return saved;
    const auto types = packed->second.toTuple();
    const auto type = [&types](int i) {
      return static_cast<at::ScalarType>(types->elements()[i].toInt());
    };
    const bool same_logits = saved[0].scalar_type() == type(0);
    saved[0] = saved[0].to(type(0));
    saved[1] = saved[1].to(type(1));
    if (same_logits && saved[4].scalar_type() == accumulate_type(saved[0]) &&
        saved[5].scalar_type() == at::kDouble) {
      return saved;
    }
    std::tie(std::ignore, saved[4], saved[5]) =
        POWERGRAD_DISPATCHED(cross_entropy_forward)
            .call(saved[0], saved[1], optional(saved[2]), options.ignore_index, options.reduction,
                  options.label_smoothing, saved[3], /*needs_backward=*/true);
    return saved;
  }

  // The gradient that forward computed, times the upstream gradient, where that is what is wanted.
  // It is handed out once. Then, on a CPU, a second backward through the same graph computes it as
  // forward did, for the same bits; those that settle have the bits of cross_entropy_backward.
  static at::Tensor take_gradient(AutogradContext* context, const at::Tensor& grad_output) {
    auto kept = context->saved_data.find("gradient");
    if (kept == context->saved_data.end() || at::GradMode::is_enabled() || !is_plain(grad_output)) {
      return {};
    }
    const bool assumed = context->saved_data.count("assumed") > 0;
    if (assumed ? !grad_output.is_cuda() : !is_finite_scalar(grad_output)) return {};
    at::Tensor gradient = kept->second.toTensor();
    if (assumed) {
      if (!gradient.defined()) return {};
      settle(context, gradient, grad_output);
    } else {
      if (!gradient.defined()) gradient = compute_as_forward(context);
      if (scalar_value(grad_output) != 1.0) gradient.mul_(grad_output);
    }
    kept->second = at::Tensor();
    return gradient;
  }

  static at::Tensor compute_as_forward(AutogradContext* context) {
    const variable_list saved = unpack(context, "cross_entropy");
    const auto options = CrossEntropyOptions::load(context);
    at::AutoDispatchBelowADInplaceOrView guard;
    return std::get<1>(POWERGRAD_DISPATCHED(cross_entropy_forward_gradient)
                           .call(saved[0], saved[1], optional(saved[2]), options.ignore_index,
                                 options.reduction, options.label_smoothing, saved[3]));
  }

  // Looks at the saved logits as if it computed the gradient, which only the device knows: they
  // must not have been written to.
  static void settle(AutogradContext* context, const at::Tensor& gradient,
                     const at::Tensor& grad_output) {
    const variable_list saved = unpack(context, "cross_entropy");
    const auto options = CrossEntropyOptions::load(context);
    const AssumedGradient assumed{
        {},
        gradient,
        saved[4],
        saved[5],
        context->saved_data["assumed"].toTensor(),
        reinterpret_cast<void*>(context->saved_data["last_upstream"].toInt())};
    at::AutoDispatchBelowADInplaceOrView guard;
    cross_entropy_settle(assumed, grad_output, saved[0], saved[1], optional(saved[2]),
                         options.ignore_index, options.reduction, options.label_smoothing,
                         saved[3]);
  }

  static at::Tensor compute_gradient(const at::Tensor& grad_output, const variable_list& saved,
                                     const CrossEntropyOptions& options) {
    const at::Tensor& input = saved[0];
    const bool plain = !at::GradMode::is_enabled() && is_plain(input) && is_plain(grad_output);
    if (plain && options.inplace_backward && is_writable_in_place(input)) {
      at::AutoDispatchBelowADInplaceOrView guard;
      at::Tensor gradient = input.detach();
      POWERGRAD_DISPATCHED(cross_entropy_backward_)
          .call(gradient, grad_output, saved[1], optional(saved[2]), options.ignore_index,
                options.reduction, options.label_smoothing, saved[3], saved[4], saved[5]);
      // The alias, made below autograd, has a version of its own.
      input.unsafeGetTensorImpl()->bump_version();
      return gradient;
    }
    return POWERGRAD_DISPATCHED(cross_entropy_backward)
        .call(grad_output, input, saved[1], optional(saved[2]), options.ignore_index,
              options.reduction, options.label_smoothing, saved[3], saved[4], saved[5]);
  }
};

at::Tensor cross_entropy(const at::Tensor& input, const at::Tensor& target,
                         const OptionalTensor& weight, int64_t ignore_index,
                         std::string_view reduction, double label_smoothing,
                         const at::Tensor& alpha, bool) {
  return std::get<0>(POWERGRAD_DISPATCHED(cross_entropy_forward)
                         .call(input, target, weight, ignore_index, reduction, label_smoothing,
                               alpha, /*needs_backward=*/false));
}

at::Tensor cross_entropy_autograd(const at::Tensor& input, const at::Tensor& target,
                                  const OptionalTensor& weight, int64_t ignore_index,
                                  std::string_view reduction, double label_smoothing,
                                  const at::Tensor& alpha, bool inplace_backward) {
  refuse_nested(input, target, weight, "cross_entropy");
  refuse_tangents({input, target, weight.value_or(at::Tensor()), alpha}, "cross_entropy");
  if (!at::GradMode::is_enabled() || !(input.requires_grad() || target.requires_grad())) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing, alpha,
                         inplace_backward);
  }
  TransformsAside transforms;
  return CrossEntropyFunction::apply(input, target, weight, ignore_index, reduction,
                                     label_smoothing, alpha, inplace_backward, transforms);
}

// The raw forward operator has a derivative too: it is what a transform of torch.func finds where
// an inner one has taken cross_entropy apart.
class CrossEntropyForwardFunction : public Function<CrossEntropyForwardFunction> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& input,
                               const at::Tensor& target, const OptionalTensor& weight,
                               int64_t ignore_index, std::string_view reduction,
                               double label_smoothing, const at::Tensor& alpha, bool needs_backward,
                               TransformsAside& transforms) {
    transforms.put_back();
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [loss, statistics, total_weight] =
        POWERGRAD_DISPATCHED(cross_entropy_forward)
            .call(input, target, weight, ignore_index, reduction, label_smoothing, alpha,
                  /*needs_backward=*/true);
    context->save_for_backward(
        {input, target, weight.value_or(at::Tensor()), alpha, statistics, total_weight});
    CrossEntropyOptions{ignore_index, std::string(reduction), label_smoothing, false}.save(context);
    if (!needs_backward) statistics = statistics.narrow(0, 0, 0);
    context->mark_non_differentiable({statistics, total_weight});
    return {loss, statistics, total_weight};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    return CrossEntropyFunction::backward(context, {grads[0]});
  }
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> cross_entropy_forward_autograd(
    const at::Tensor& input, const at::Tensor& target, const OptionalTensor& weight,
    int64_t ignore_index, std::string_view reduction, double label_smoothing,
    const at::Tensor& alpha, bool needs_backward) {
  refuse_nested(input, target, weight, "cross_entropy");
  refuse_tangents({input, target, weight.value_or(at::Tensor()), alpha}, "cross_entropy_forward");
  if (!at::GradMode::is_enabled() || !(input.requires_grad() || target.requires_grad())) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return POWERGRAD_DISPATCHED(cross_entropy_forward)
        .call(input, target, weight, ignore_index, reduction, label_smoothing, alpha,
              needs_backward);
  }
  TransformsAside transforms;
  const variable_list outputs =
      CrossEntropyForwardFunction::apply(input, target, weight, ignore_index, reduction,
                                         label_smoothing, alpha, needs_backward, transforms);
  return {outputs[0], outputs[1], outputs[2]};
}

// The gradient of log_softmax_backward, for create_graph.
class LogSoftmaxBackwardFunction : public Function<LogSoftmaxBackwardFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& grad_output,
                            const at::Tensor& input, int64_t dim, const at::Tensor& alpha,
                            const at::Tensor& statistics, TransformsAside& transforms) {
    transforms.put_back();
    at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({grad_output, input, alpha});
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
    context->save_for_backward({input, alpha, statistics});
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
    context->save_for_backward({input, alpha, statistics});
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
  m.impl("cross_entropy", cross_entropy_autograd);
  m.impl("cross_entropy_forward", cross_entropy_forward_autograd);
  m.impl("cross_entropy_backward", cross_entropy_backward_autograd);
  m.impl("log_softmax", log_softmax_autograd);
  m.impl("log_softmax_forward", log_softmax_forward_autograd);
  m.impl("log_softmax_backward", log_softmax_backward_autograd);
  // Not differentiable, and not silently so.
  m.impl("cross_entropy_forward_gradient", torch::autograd::autogradNotImplementedFallback());
  m.impl("cross_entropy_backward_", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(powergrad, CompositeExplicitAutograd, m) {
  m.impl("cross_entropy", cross_entropy);
  m.impl("log_softmax", log_softmax);
}

}  // namespace powergrad

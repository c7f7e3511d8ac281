// Autograd for cross-entropy and for its backward operators (create_graph).
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <string>
#include <tuple>

#include "torch/autograd.h"

namespace powergrad {
namespace {

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
        {grad_output, input, target, weight.value_or(at::Tensor()), savable(alpha), total_weight});
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
        context->saved_data["last_grad_output"] =
            reinterpret_cast<int64_t>(assumed->last_grad_output);
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
        {input, target, weight.value_or(at::Tensor()), savable(alpha), statistics, total_weight});
    CrossEntropyOptions{ignore_index, std::string(reduction), label_smoothing, inplace_backward}
        .save(context);
    if (hooked) context->saved_data["types"] = types_of(input, target);
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list result(9);
    const at::Tensor& grad_output = grads[0];
    if (!grad_output.defined()) return result;
    result[0] = take_gradient(context, grad_output);
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
  // It is handed out once, or given up by a backward that has no use for it: a loss that is kept
  // shall not keep it. Then, on a CPU, a second backward through the same graph computes it as
  // forward did, for the same bits; those that settle have the bits of cross_entropy_backward.
  static at::Tensor take_gradient(AutogradContext* context, const at::Tensor& grad_output) {
    auto kept = context->saved_data.find("gradient");
    if (kept == context->saved_data.end() || !is_plain(grad_output)) return {};
    at::Tensor gradient = kept->second.toTensor();
    kept->second = at::Tensor();
    const bool assumed = context->saved_data.count("assumed") > 0;
    if (!context->needs_input_grad(0) || at::GradMode::is_enabled() ||
        (assumed ? !grad_output.is_cuda() : !is_finite_scalar(grad_output))) {
      return {};
    }
    if (assumed) {
      if (!gradient.defined()) return {};
      settle(context, gradient, grad_output);
    } else {
      if (!gradient.defined()) gradient = compute_as_forward(context);
      if (scalar_value(grad_output) != 1.0) gradient.mul_(grad_output);
    }
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
        reinterpret_cast<void*>(context->saved_data["last_grad_output"].toInt())};
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

}  // namespace

at::Tensor cross_entropy(const at::Tensor& input, const at::Tensor& target,
                         const OptionalTensor& weight, int64_t ignore_index,
                         std::string_view reduction, double label_smoothing,
                         const at::Tensor& alpha, bool) {
  return std::get<0>(POWERGRAD_DISPATCHED(cross_entropy_forward)
                         .call(input, target, weight, ignore_index, reduction, label_smoothing,
                               alpha, /*needs_backward=*/false));
}

namespace {

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
        {input, target, weight.value_or(at::Tensor()), savable(alpha), statistics, total_weight});
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

}  // namespace

TORCH_LIBRARY_IMPL(powergrad, Autograd, m) {
  m.impl("cross_entropy", cross_entropy_autograd);
  m.impl("cross_entropy_forward", cross_entropy_forward_autograd);
  m.impl("cross_entropy_backward", cross_entropy_backward_autograd);
  // Not differentiable, and not silently so.
  for (const char* name :
       {"cross_entropy_forward_gradient", "cross_entropy_backward_", "cross_entropy_shard_forward",
        "cross_entropy_merge_shards", "cross_entropy_shard_backward"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}

TORCH_LIBRARY_IMPL(powergrad, CompositeExplicitAutograd, m) {
  m.impl("cross_entropy", cross_entropy);
}

}  // namespace powergrad

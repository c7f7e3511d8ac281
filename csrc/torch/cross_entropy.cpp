// The operators of cross-entropy, and their autograd.
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <tuple>

#include "torch/autograd.h"
#include "torch/cross_entropy_call.h"

namespace powergrad {

std::tuple<at::Tensor, at::Tensor, at::Tensor> cross_entropy_forward(
    const at::Tensor& input, const at::Tensor& target, const CrossEntropyOptions& options,
    bool needs_backward, bool metrics) {
  CrossEntropyCall call(input, target, options);
  call.expect_forward(needs_backward, metrics);
  return {call.forward_loss(), call.statistics(), call.total_weight()};
}

LossAndGradient cross_entropy_forward_gradient(const at::Tensor& input, const at::Tensor& target,
                                               const CrossEntropyOptions& options,
                                               bool needs_backward, bool metrics) {
  CrossEntropyCall call(input, target, options);
  call.expect_forward(needs_backward, metrics);
  const Destination gradient = call.new_gradient();
  call.expect_gradient(gradient.data(), gradient.strides());
  return {call.forward_loss(), gradient.finish(), call.statistics(), call.total_weight()};
}

std::optional<SpeculativeGradient> cross_entropy_forward_speculative(
    const at::Tensor& input, const at::Tensor& target, const CrossEntropyOptions& options,
    bool metrics) {
  CrossEntropyCall call(input, target, options);
  if (!call.speculate()) return std::nullopt;
  const Destination gradient = call.new_gradient();
  if (!gradient.is_direct()) return std::nullopt;
  call.expect_forward(/*needs_backward=*/true, metrics);
  call.expect_gradient(gradient.data(), gradient.strides());
  return SpeculativeGradient{
      {call.forward_loss(), gradient.finish(), call.statistics(), call.total_weight()},
      call.grad_output(),
      call.params.next_speculation};
}

void cross_entropy_validate(const SpeculativeGradient& speculative, const at::Tensor& grad_output,
                            const at::Tensor& input, const at::Tensor& target,
                            const CrossEntropyOptions& options) {
  CrossEntropyCall call(input, target, options);
  call.set_backward(grad_output, speculative.statistics, speculative.total_weight);
  call.validate(speculative);
}

at::Tensor cross_entropy_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                  const at::Tensor& target, const at::Tensor& statistics,
                                  const at::Tensor& total_weight,
                                  const CrossEntropyOptions& options, int64_t classes_before,
                                  int64_t classes_after) {
  CrossEntropyCall call(input, target, options, {classes_before, classes_after});
  call.set_backward(grad_output, statistics, total_weight);
  const Destination gradient = call.new_gradient();
  call.expect_gradient(gradient.data(), gradient.strides());
  call.backward();
  return gradient.finish();
}

void cross_entropy_backward_(at::Tensor& input, const at::Tensor& grad_output,
                             const at::Tensor& target, const at::Tensor& statistics,
                             const at::Tensor& total_weight, const CrossEntropyOptions& options,
                             const OtherClasses& others) {
  CrossEntropyCall call(input, target, options, others);
  call.set_backward(grad_output, statistics, total_weight);
  call.expect_gradient(input.mutable_data_ptr(), call.params.logits_strides);
  call.backward();
  // Whoever saved these logits for a backward of its own now raises instead of reading a gradient.
  input.unsafeGetTensorImpl()->bump_version();
}

bool is_writable_in_place(const at::Tensor& input) {
  return is_non_overlapping(input) && find_layout(input, class_dim_of(input)).has_value();
}

namespace {

// Whether forward computes the gradient too, which saves a pass over memory. It does
//  - for a scalar grad_output (mean, sum): on a CPU for 1, since scaling in place is cheaper than
//    computing the gradient again; on a GPU, where scaling would cost two passes, for the last
//    grad_output, and again in backward if another one comes (SpeculativeGradient);
//  - on a CPU for types with the exponent range of float: in float16 a gradient divided by N
//    underflows before a loss scale of 65536 can lift it. A GPU computes for that scale from its
//    second step;
//  - without hooks that pack saved tensors, which expect to decide what is kept until backward.
// Otherwise backward computes the gradient from the logits. So do traced tensors: torch.compile
// plans memory and order itself, from raw operators that return new tensors; validating an earlier
// result in place would be a mutation, for which it would have to make a copy.
bool computes_gradient_in_forward(const at::Tensor& input, const at::Tensor& target,
                                  const CrossEntropyOptions& options, bool inplace_backward) {
  return input.requires_grad() && !inplace_backward && options.reduction != Reduction::none &&
         !(input.is_cpu() && input.scalar_type() == at::kHalf) && !in_transform() &&
         !are_saved_tensors_hooked() && are_plain(input, target, options);
}

// A leaf or a view of one, which would become its own gradient.
bool is_of_leaf(const at::Tensor& input) {
  return input.is_leaf() || (input.is_view() && input._base().is_leaf());
}

// The gradient of cross_entropy_backward, for create_graph.
class CrossEntropyBackwardFunction : public Function<CrossEntropyBackwardFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& grad_output,
                            const at::Tensor& input, const at::Tensor& target,
                            const at::Tensor& statistics, const at::Tensor& total_weight,
                            const CrossEntropyOptions& options, int64_t classes_before,
                            int64_t classes_after, TransformsAside& transforms) {
    transforms.put_back();
    at::AutoDispatchBelowADInplaceOrView guard;
    options.save(context, {grad_output, input, target, total_weight});
    if (classes_before > 0 || classes_after > 0) context->saved_data["is_shard"] = true;
    return POWERGRAD_DISPATCHED(cross_entropy_backward)(grad_output, input, target, statistics,
                                                        total_weight, options, classes_before,
                                                        classes_after);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list result(9);
    if (!grads[0].defined()) return result;
    TORCH_CHECK(context->saved_data.count("is_shard") == 0,
                "cross_entropy_backward(): the derivative is not implemented where other classes",
                " lie before or after those of 'input'");
    variable_list saved = unpack(context, "cross_entropy").tensors;
    const auto options = CrossEntropyOptions::load(context, saved);
    const at::Tensor &grad_output = saved[0], &input = saved[1], &target = saved[2];
    const at::Tensor& total_weight = saved[3];
    std::tie(result[0], result[1]) =
        cross_entropy_double_backward(grads[0], grad_output, input, target, total_weight, options);
    if (context->needs_input_grad(2)) {
      result[2] = cross_entropy_backward_target_gradient(grads[0], grad_output, input, total_weight,
                                                         options)
                      .to(target.scalar_type());
    }
    return result;
  }
};

at::Tensor cross_entropy_backward_autograd(const at::Tensor& grad_output, const at::Tensor& input,
                                           const at::Tensor& target, const at::Tensor& statistics,
                                           const at::Tensor& total_weight,
                                           const CrossEntropyOptions& options,
                                           int64_t classes_before, int64_t classes_after) {
  refuse_nested(input, target, options, "cross_entropy");
  refuse_gradients(options, "cross_entropy");
  refuse_tangents("cross_entropy_backward", grad_output, input, target, options);
  TransformsAside transforms;
  return CrossEntropyBackwardFunction::apply(grad_output, input, target, statistics, total_weight,
                                             options, classes_before, classes_after, transforms);
}

// What the raw forward operator returns besides the loss, neither of which can be differentiated.
struct ForBackward {
  at::Tensor statistics;
  at::Tensor total_weight;
};

class CrossEntropyFunction : public Function<CrossEntropyFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& target, const CrossEntropyOptions& options,
                            bool inplace_backward, bool needs_backward, bool metrics,
                            ForBackward& others, TransformsAside& transforms) {
    transforms.put_back();
    at::AutoDispatchBelowADInplaceOrView guard;
    // In a transform the memory may be another level's. Where hooks keep the tensors, a backward
    // that saved these logits finds them again without torch's check that they are unchanged.
    if (are_saved_tensors_hooked() || in_transform() || is_of_leaf(input)) inplace_backward = false;
    LossAndGradient computed;
    if (computes_gradient_in_forward(input, target, options, inplace_backward)) {
      computed = forward_with_gradient(context, input, target, options, needs_backward, metrics);
    }
    if (computed.gradient.defined()) {
      context->saved_data["gradient"] = std::move(computed.gradient);
    } else {
      std::tie(computed.loss, computed.statistics, computed.total_weight) =
          POWERGRAD_DISPATCHED(cross_entropy_forward)(input, target, options,
                                                      /*needs_backward=*/true, metrics);
    }
    const at::Tensor of_backward = metrics ? computed.statistics.narrow_symint(
                                                 0, 0, computed.statistics.sym_size(0) - kMetrics)
                                           : computed.statistics;
    options.save(context, {input, target, of_backward, computed.total_weight});
    if (inplace_backward) context->saved_data["inplace"] = true;
    others = {std::move(computed.statistics), std::move(computed.total_weight)};
    return computed.loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list result(8);
    const at::Tensor& grad_output = grads[0];
    if (!grad_output.defined()) return result;
    result[0] = take_gradient(context, grad_output);
    if (result[0].defined() && !context->needs_input_grad(1)) return result;
    Saved saved(context);
    // Probabilities first: they read the logits, which the gradient may overwrite.
    if (context->needs_input_grad(1)) {
      result[1] =
          cross_entropy_target_gradient(grad_output, saved.input, saved.total_weight, saved.options)
              .to(saved.target.scalar_type());
    }
    if (context->needs_input_grad(0) && !result[0].defined()) {
      if (!saved.has_statistics()) saved.compute_statistics();
      const bool inplace = context->saved_data.count("inplace") > 0;
      result[0] = compute_gradient(grad_output, saved, inplace);
    }
    return result;
  }

 private:
  // What forward saved.
  struct Saved {
    CrossEntropyOptions options;
    at::Tensor input;
    at::Tensor target;
    at::Tensor statistics;
    at::Tensor total_weight;

    explicit Saved(AutogradContext* context) {
      auto [tensors, are_rounded] = unpack(context, "cross_entropy");
      options = CrossEntropyOptions::load(context, tensors);
      input = tensors[0];
      target = tensors[1];
      statistics = tensors[2];
      total_weight = tensors[3];
      if (are_rounded) compute_statistics();
    }

    bool has_statistics() const { return statistics.sym_size(0) != 0; }
    void compute_statistics() {
      const c10::AutoGradMode no_graph(false);  // or forward computes another gradient
      std::tie(std::ignore, statistics, total_weight) = POWERGRAD_DISPATCHED(cross_entropy_forward)(
          input, target, options, /*needs_backward=*/true, /*metrics=*/false);
    }
  };

  // Without a gradient where there can be no speculation. On a CPU backward rarely needs statistics
  // then: they are left out unless the caller asks for them, and computed when they are needed.
  static LossAndGradient forward_with_gradient(AutogradContext* context, const at::Tensor& input,
                                               const at::Tensor& target,
                                               const CrossEntropyOptions& options,
                                               bool needs_backward, bool metrics) {
    if (!input.is_cuda()) {
      return cross_entropy_forward_gradient(input, target, options, needs_backward, metrics);
    }
    const auto speculative = cross_entropy_forward_speculative(input, target, options, metrics);
    if (!speculative) return {};
    context->saved_data["speculation"] = speculative->grad_output;
    context->saved_data["last_grad_output"] =
        reinterpret_cast<int64_t>(speculative->last_grad_output);
    return *speculative;
  }

  // The gradient that forward computed, times grad_output, where that is what is wanted. It is
  // handed out once, or given up by a backward that has no use for it: a loss that is kept must not
  // keep it. A second backward through the same graph computes it again, to the same bits: on a CPU
  // as forward did, on a GPU as cross_entropy_backward does, which validation calls too.
  static at::Tensor take_gradient(AutogradContext* context, const at::Tensor& grad_output) {
    auto kept = context->saved_data.find("gradient");
    if (kept == context->saved_data.end() || !is_plain(grad_output)) return {};
    at::Tensor gradient = std::move(kept->second).toTensor();
    kept->second = at::Tensor();
    const bool is_speculative = context->saved_data.count("speculation") > 0;
    if (!context->needs_input_grad(0) || at::GradMode::is_enabled() ||
        (is_speculative ? !grad_output.is_cuda() : !is_finite_scalar(grad_output))) {
      return {};
    }
    if (is_speculative) {
      if (gradient.defined()) validate(context, gradient, grad_output);
      return gradient;
    }
    if (!gradient.defined()) {
      const Saved saved(context);
      gradient = cross_entropy_forward_gradient(saved.input, saved.target, saved.options,
                                                /*needs_backward=*/false, /*metrics=*/false)
                     .gradient;
    }
    if (scalar_value(grad_output) != 1.0) {
      at::AutoDispatchBelowADInplaceOrView guard;
      gradient.mul_(grad_output);
    }
    return gradient;
  }

  // Only the device knows whether the gradient has to be computed again, so the saved logits must
  // be unchanged in any case.
  static void validate(AutogradContext* context, const at::Tensor& gradient,
                       const at::Tensor& grad_output) {
    const Saved saved(context);
    const SpeculativeGradient speculative{
        {{}, gradient, saved.statistics, saved.total_weight},
        context->saved_data["speculation"].toTensor(),
        reinterpret_cast<void*>(context->saved_data["last_grad_output"].toInt())};
    at::AutoDispatchBelowADInplaceOrView guard;
    cross_entropy_validate(speculative, grad_output, saved.input, saved.target, saved.options);
  }

  static at::Tensor compute_gradient(const at::Tensor& grad_output, const Saved& saved,
                                     bool inplace) {
    const at::Tensor& input = saved.input;
    if (inplace && !at::GradMode::is_enabled() && is_plain(grad_output) &&
        are_plain(input, saved.target, saved.options) && is_writable_in_place(input)) {
      at::AutoDispatchBelowADInplaceOrView guard;
      at::Tensor gradient = input.detach();
      cross_entropy_backward_(gradient, grad_output, saved.target, saved.statistics,
                              saved.total_weight, saved.options);
      // cross_entropy_backward_ has bumped the version of the detached alias alone.
      input.unsafeGetTensorImpl()->bump_version();
      return gradient;
    }
    return POWERGRAD_DISPATCHED(cross_entropy_backward)(grad_output, input, saved.target,
                                                        saved.statistics, saved.total_weight,
                                                        saved.options, /*classes_before=*/0,
                                                        /*classes_after=*/0);
  }
};

bool needs_gradient(const at::Tensor& input, const at::Tensor& target) {
  return at::GradMode::is_enabled() && (input.requires_grad() || target.requires_grad());
}

}  // namespace

at::Tensor cross_entropy(const at::Tensor& input, const at::Tensor& target,
                         const CrossEntropyOptions& options, bool) {
  return std::get<0>(POWERGRAD_DISPATCHED(cross_entropy_forward)(
      input, target, options, /*needs_backward=*/false, /*metrics=*/false));
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> differentiable_cross_entropy(
    const char* op, const at::Tensor& input, const at::Tensor& target,
    const CrossEntropyOptions& options, bool inplace_backward, bool needs_backward, bool metrics) {
  refuse_nested(input, target, options, "cross_entropy");
  refuse_gradients(options, "cross_entropy");
  refuse_tangents(op, input, target, options);
  if (!needs_gradient(input, target)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return POWERGRAD_DISPATCHED(cross_entropy_forward)(input, target, options, needs_backward,
                                                       metrics);
  }
  ForBackward others;
  TransformsAside transforms;
  const at::Tensor loss = CrossEntropyFunction::apply(input, target, options, inplace_backward,
                                                      needs_backward, metrics, others, transforms);
  return {loss, others.statistics, others.total_weight};
}

at::Tensor cross_entropy_autograd(const at::Tensor& input, const at::Tensor& target,
                                  const CrossEntropyOptions& options, bool inplace_backward) {
  return std::get<0>(differentiable_cross_entropy("cross_entropy", input, target, options,
                                                  inplace_backward,
                                                  /*needs_backward=*/false, /*metrics=*/false));
}

// The raw forward operator has a derivative too: it is what a transform of torch.func finds where
// an inner one has taken cross_entropy apart.
std::tuple<at::Tensor, at::Tensor, at::Tensor> cross_entropy_forward_autograd(
    const at::Tensor& input, const at::Tensor& target, const CrossEntropyOptions& options,
    bool needs_backward, bool metrics) {
  auto result = differentiable_cross_entropy("cross_entropy_forward", input, target, options,
                                             /*inplace_backward=*/false, needs_backward, metrics);
  at::Tensor& statistics = std::get<1>(result);
  const int64_t wanted = statistics_of_forward(options, needs_backward, metrics);
  const c10::SymInt all = statistics.sym_size(0);  // size() would fix the number of rows
  if (all != wanted) statistics = statistics.narrow_symint(0, all - wanted, wanted);
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(powergrad, Autograd, m) {
  m.impl("cross_entropy", Flat<&cross_entropy_autograd>::kernel);
  m.impl("cross_entropy_forward", Flat<&cross_entropy_forward_autograd>::kernel);
  m.impl("cross_entropy_backward", Flat<&cross_entropy_backward_autograd>::kernel);
  // Not differentiable, and not silently so.
  m.impl("cross_entropy_shard_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("cross_entropy_merge_shards", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(powergrad, CompositeExplicitAutograd, m) {
  m.impl("cross_entropy", Flat<&cross_entropy>::kernel);
}

}  // namespace powergrad

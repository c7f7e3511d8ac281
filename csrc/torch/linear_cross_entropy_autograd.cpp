// Autograd, autocast and torch.func for linear cross-entropy.
#include <ATen/autocast_mode.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <tuple>

#include "torch/autograd.h"

namespace powergrad {
namespace {

// By its definition. For torch.func, whose levels each have to see the operators, and for the
// gradient of probabilities, which are as large as the logits.
at::Tensor composed(const at::Tensor& input, const at::Tensor& linear_weight,
                    const at::Tensor& target, const OptionalTensor& linear_bias,
                    const CrossEntropyOptions& options, int64_t) {
  return POWERGRAD_DISPATCHED(cross_entropy)(at::linear(input, linear_weight, linear_bias), target,
                                             options, /*inplace_backward=*/false);
}

// The gradients are computed in forward, where a chunk's logits are at hand: backward multiplies
// them by the one number that mean and sum have, and nobody waits for a GPU. Reduction "none" has a
// number for each row, and computes them in backward; so does everything under hooks that pack
// saved tensors, which expect to decide what is kept until then.
class LinearCrossEntropyFunction : public Function<LinearCrossEntropyFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& linear_weight, const at::Tensor& target,
                            const OptionalTensor& linear_bias, const CrossEntropyOptions& options,
                            int64_t chunk_rows) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const GradientMask wanted{input.requires_grad(), linear_weight.requires_grad(),
                              linear_bias.has_value() && linear_bias->requires_grad()};
    const bool with_gradient = options.reduction != Reduction::none && !are_saved_tensors_hooked();
    const auto [loss, scale, grad_input, grad_linear_weight, grad_linear_bias] =
        POWERGRAD_DISPATCHED(linear_cross_entropy_forward)(input, linear_weight, target,
                                                           linear_bias, options, chunk_rows,
                                                           with_gradient ? wanted : GradientMask{});
    if (with_gradient) {
      // One by one: compiled autograd does not find the tensors of a tuple.
      context->saved_data["scale"] = scale;
      context->saved_data["grad_input"] = grad_input;
      context->saved_data["grad_linear_weight"] = grad_linear_weight;
      context->saved_data["grad_linear_bias"] = grad_linear_bias;
    }
    if (options.reduction != Reduction::none && !at::isFloatingType(target.scalar_type())) {
      context->saved_data["counts"] = target.ne(options.ignore_index);
    }
    options.save(context, {input, linear_weight, target, linear_bias.value_or(at::Tensor())});
    context->saved_data["chunk_rows"] = chunk_rows;
    context->saved_data["wants_bias"] = wanted[2];
    context->saved_data["types"] = c10::ivalue::Tuple::create(
        {static_cast<int64_t>(input.scalar_type()), static_cast<int64_t>(target.scalar_type())});
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list result(6);
    if (!grads[0].defined()) return result;
    // needs_input_grad numbers the tensors that were given, so it has no place 3 without a bias.
    const GradientMask wanted{
        context->needs_input_grad(0), context->needs_input_grad(1),
        context->saved_data["wants_bias"].toBool() && context->needs_input_grad(3)};
    std::tie(result[0], result[1], result[3]) =
        at::GradMode::is_enabled() ? differentiable_gradients(context, grads[0], wanted)
                                   : gradients(context, grads[0], wanted);
    return result;
  }

 private:
  // What forward saved, in the types it had: hooks may have packed tensors in others.
  struct Saved {
    CrossEntropyOptions options;
    at::Tensor input;
    at::Tensor linear_weight;
    at::Tensor target;
    OptionalTensor linear_bias;
    int64_t chunk_rows;

    explicit Saved(AutogradContext* context) {
      variable_list tensors = unpack(context, "linear_cross_entropy");
      options = CrossEntropyOptions::load(context, tensors);
      input = tensors[0].to(type_of(context, 0));
      linear_weight = tensors[1].to(type_of(context, 0));
      target = tensors[2].to(type_of(context, 1));
      if (tensors[3].defined()) linear_bias = tensors[3].to(type_of(context, 0));
      chunk_rows = context->saved_data["chunk_rows"].toInt();
    }
  };

  // What forward has computed, yet to be multiplied by scale and by grad_output.
  struct Computed {
    at::Tensor scale;
    LinearGradients gradients;
  };

  // They are handed out once, or given up by a backward that has no use for them: a loss that is
  // kept shall not keep them. Another backward through the same graph computes them again, to the
  // same bits. In a graph that is being traced they stay.
  static void give_up(AutogradContext* context) {
    for (const char* name : {"grad_input", "grad_linear_weight", "grad_linear_bias"}) {
      context->saved_data.erase(name);
    }
  }

  static LinearGradients gradients(AutogradContext* context, const at::Tensor& grad_output,
                                   const GradientMask& wanted) {
    if (CrossEntropyOptions::load_reduction(context) == Reduction::none) {
      return gradients_by_rows(context, grad_output, wanted);
    }
    const bool plain = is_plain(grad_output);
    Computed computed = take(context, wanted, plain);
    auto& [grad_input, grad_linear_weight, grad_linear_bias] = computed.gradients;
    at::Tensor factor = computed.scale * grad_output;
    const bool is_finite = plain && is_finite_scalar(factor);
    at::Tensor factor_of_rows = factor;
    if (!is_finite) {
      std::tie(factor, factor_of_rows) = factors_of_rows_that_count(context, factor);
    } else if (scalar_value(factor) == 1.0) {
      return finished(context, computed.gradients, wanted);
    }
    const auto multiply = [plain](at::Tensor& gradient, const at::Tensor& by) {
      gradient = plain ? gradient.mul_(by) : (gradient * by).to(gradient.scalar_type());
    };
    if (wanted[0]) multiply(grad_input, factor_of_rows);
    if (wanted[1]) multiply(grad_linear_weight, factor);
    if (wanted[2]) multiply(grad_linear_bias, factor);
    return finished(context, computed.gradients, wanted);
  }

  // For sums over rows, and for each row: 0 where none counts, which are to keep their zeros also
  // if the factor is not finite; on a GPU nobody waits to see whether it is. With a dimension, and
  // so not rounded to half precision before it is multiplied by.
  static std::tuple<at::Tensor, at::Tensor> factors_of_rows_that_count(AutogradContext* context,
                                                                       const at::Tensor& factor) {
    const bool is_double = type_of(context, 0) == at::kDouble;
    at::Tensor of_rows = factor.to(is_double ? at::kDouble : at::kFloat);
    const auto counts = context->saved_data.find("counts");
    if (counts == context->saved_data.end()) return {factor, of_rows.unsqueeze(-1)};
    const at::Tensor count = counts->second.toTensor();
    // Not a number for the zeros: it would become a tensor that a fake mode does not know.
    return {at::where(count.any(), factor, at::zeros_like(factor)),
            at::where(count, of_rows, at::zeros_like(of_rows)).unsqueeze(-1)};
  }

  static Computed take(AutogradContext* context, const GradientMask& wanted, bool for_good) {
    auto& kept = context->saved_data;
    if (kept.count("grad_input") > 0) {
      Computed computed{kept["scale"].toTensor(),
                        {kept["grad_input"].toTensor(), kept["grad_linear_weight"].toTensor(),
                         kept["grad_linear_bias"].toTensor()}};
      if (for_good) give_up(context);
      return computed;
    }
    const Saved saved(context);
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [loss, scale, grad_input, grad_linear_weight, grad_linear_bias] =
        POWERGRAD_DISPATCHED(linear_cross_entropy_forward)(saved.input, saved.linear_weight,
                                                           saved.target, saved.linear_bias,
                                                           saved.options, saved.chunk_rows, wanted);
    return {scale, {grad_input, grad_linear_weight, grad_linear_bias}};
  }

  static LinearGradients gradients_by_rows(AutogradContext* context, const at::Tensor& grad_output,
                                           const GradientMask& wanted) {
    const Saved saved(context);
    at::AutoDispatchBelowADInplaceOrView guard;
    return finished(
        context,
        POWERGRAD_DISPATCHED(linear_cross_entropy_backward)(
            grad_output, saved.input, saved.linear_weight, saved.target, saved.linear_bias,
            saved.options.with(Reduction::none), saved.chunk_rows, wanted),
        wanted);
  }

  // In the type of the arguments, and none where none is wanted.
  static LinearGradients finished(AutogradContext* context, const LinearGradients& computed,
                                  const GradientMask& wanted) {
    const at::ScalarType type = type_of(context, 0);
    return {wanted[0] ? std::get<0>(computed) : at::Tensor(),
            wanted[1] ? std::get<1>(computed).to(type) : at::Tensor(),
            wanted[2] ? std::get<2>(computed).to(type) : at::Tensor()};
  }

  // For create_graph. The logits are there as a whole.
  static LinearGradients differentiable_gradients(AutogradContext* context,
                                                  const at::Tensor& grad_output,
                                                  const GradientMask& wanted) {
    if (is_plain(grad_output)) give_up(context);
    const Saved saved(context);
    const at::Tensor logits = at::linear(saved.input, saved.linear_weight, saved.linear_bias);
    const auto [loss, statistics, total_weight] = POWERGRAD_DISPATCHED(cross_entropy_forward)(
        logits.detach(), saved.target, saved.options, /*needs_backward=*/true);
    const at::Tensor gradient = POWERGRAD_DISPATCHED(cross_entropy_backward)(
        grad_output, logits, saved.target, statistics, total_weight, saved.options,
        /*classes_before=*/0, /*classes_after=*/0);
    const auto as_rows = [](const at::Tensor& tensor) {
      return tensor.dim() == 1 ? tensor.unsqueeze(0) : tensor;
    };
    return {wanted[0] ? gradient.matmul(saved.linear_weight) : at::Tensor(),
            wanted[1] ? as_rows(gradient).t().matmul(as_rows(saved.input)) : at::Tensor(),
            wanted[2] ? as_rows(gradient).sum(0) : at::Tensor()};
  }

  static at::ScalarType type_of(AutogradContext* context, int argument) {
    const auto types = context->saved_data["types"].toTuple();
    return static_cast<at::ScalarType>(types->elements()[argument].toInt());
  }
};

}  // namespace

at::Tensor linear_cross_entropy(const at::Tensor& input, const at::Tensor& linear_weight,
                                const at::Tensor& target, const OptionalTensor& linear_bias,
                                const CrossEntropyOptions& options, int64_t chunk_rows) {
  return std::get<0>(POWERGRAD_DISPATCHED(linear_cross_entropy_forward)(
      input, linear_weight, target, linear_bias, options, chunk_rows, GradientMask{}));
}

namespace {

at::Tensor linear_cross_entropy_autograd(const at::Tensor& input, const at::Tensor& linear_weight,
                                         const at::Tensor& target,
                                         const OptionalTensor& linear_bias,
                                         const CrossEntropyOptions& options, int64_t chunk_rows) {
  const at::Tensor bias = linear_bias.value_or(at::Tensor());
  refuse_nested(input, target, options, "linear_cross_entropy");
  check_not_nested(linear_weight, "linear_cross_entropy", "linear_weight");
  if (bias.defined()) check_not_nested(bias, "linear_cross_entropy", "linear_bias");
  refuse_tangents("linear_cross_entropy", input, linear_weight, target, bias, options);
  if (in_transform() || (at::GradMode::is_enabled() && target.requires_grad())) {
    return composed(input, linear_weight, target, linear_bias, options, chunk_rows);
  }
  const bool needs_gradient = input.requires_grad() || linear_weight.requires_grad() ||
                              (bias.defined() && bias.requires_grad());
  if (!at::GradMode::is_enabled() || !needs_gradient) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return linear_cross_entropy(input, linear_weight, target, linear_bias, options, chunk_rows);
  }
  return LinearCrossEntropyFunction::apply(input, linear_weight, target, linear_bias, options,
                                           chunk_rows);
}

// What autocast does to linear; the loss reads half-precision logits as they are.
template <c10::DeviceType device, c10::DispatchKey key>
at::Tensor linear_cross_entropy_autocast(const at::Tensor& input, const at::Tensor& linear_weight,
                                         const at::Tensor& target,
                                         const OptionalTensor& linear_bias,
                                         const CrossEntropyOptions& options, int64_t chunk_rows) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
  const auto cast = [](const at::Tensor& tensor) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensor, device);
  };
  return POWERGRAD_DISPATCHED(linear_cross_entropy)(
      cast(input), cast(linear_weight), target,
      linear_bias.has_value() ? OptionalTensor(cast(*linear_bias)) : std::nullopt, options,
      chunk_rows);
}

}  // namespace

TORCH_LIBRARY_IMPL(powergrad, Autograd, m) {
  m.impl("linear_cross_entropy", Flat<&linear_cross_entropy_autograd>::kernel);
  // Not differentiable, and not silently so.
  m.impl("linear_cross_entropy_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("linear_cross_entropy_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(powergrad, CompositeExplicitAutograd, m) {
  m.impl("linear_cross_entropy", Flat<&linear_cross_entropy>::kernel);
}

TORCH_LIBRARY_IMPL(powergrad, FuncTorchBatched, m) {
  m.impl("linear_cross_entropy", Flat<&composed>::kernel);
}

TORCH_LIBRARY_IMPL(powergrad, AutocastCPU, m) {
  m.impl("linear_cross_entropy",
         Flat<&linear_cross_entropy_autocast<at::kCPU, c10::DispatchKey::AutocastCPU>>::kernel);
}

TORCH_LIBRARY_IMPL(powergrad, AutocastCUDA, m) {
  m.impl("linear_cross_entropy",
         Flat<&linear_cross_entropy_autocast<at::kCUDA, c10::DispatchKey::AutocastCUDA>>::kernel);
}

}  // namespace powergrad

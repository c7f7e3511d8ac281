// Autograd, autocast and torch.func for linear cross-entropy.
#include <ATen/autocast_mode.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <string>
#include <tuple>
#include <vector>

#include "torch/autograd.h"

namespace powergrad {
namespace {

// By its definition. For torch.func, whose levels each have to see the operators, and for the
// gradient of probabilities, which are as large as the logits.
at::Tensor composed(const at::Tensor& input, const at::Tensor& linear_weight,
                    const at::Tensor& target, const OptionalTensor& linear_bias,
                    const OptionalTensor& weight, std::string_view reduction, int64_t ignore_index,
                    double label_smoothing, const at::Tensor& alpha, int64_t) {
  return POWERGRAD_DISPATCHED(cross_entropy)
      .call(at::linear(input, linear_weight, linear_bias), target, weight, ignore_index, reduction,
            label_smoothing, alpha, /*inplace_backward=*/false);
}

// The arguments that are not tensors, as backward finds them again.
struct Options {
  std::string reduction;
  int64_t ignore_index;
  double label_smoothing;
  int64_t chunk_rows;

  void save(AutogradContext* context) const {
    context->saved_data["options"] =
        c10::ivalue::Tuple::create({reduction, ignore_index, label_smoothing, chunk_rows});
  }
  static Options load(AutogradContext* context) {
    const auto options = context->saved_data["options"].toTuple();
    const auto& elements = options->elements();
    return {elements[0].toStringRef(), elements[1].toInt(), elements[2].toDouble(),
            elements[3].toInt()};
  }
};

// The gradients are computed in forward, where a chunk's logits are at hand: backward multiplies
// them by the one number that mean and sum have, and nobody waits for a GPU. Reduction "none" has a
// number for each row, and computes them in backward; so does everything under hooks that pack
// saved tensors, which expect to decide what is kept until then.
class LinearCrossEntropyFunction : public Function<LinearCrossEntropyFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& linear_weight, const at::Tensor& target,
                            const OptionalTensor& linear_bias, const OptionalTensor& weight,
                            std::string_view reduction, int64_t ignore_index,
                            double label_smoothing, const at::Tensor& alpha, int64_t chunk_rows) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const GradientMask wanted{input.requires_grad(), linear_weight.requires_grad(),
                              linear_bias.has_value() && linear_bias->requires_grad()};
    const bool with_gradient = reduction != "none" && !are_saved_tensors_hooked();
    const auto [loss, scale, grad_input, grad_linear_weight, grad_linear_bias] =
        POWERGRAD_DISPATCHED(linear_cross_entropy_forward)
            .call(input, linear_weight, target, linear_bias, weight, reduction, ignore_index,
                  label_smoothing, alpha, chunk_rows, with_gradient ? wanted : GradientMask{});
    if (with_gradient) {
      context->saved_data["gradients"] =
          c10::ivalue::Tuple::create({grad_input, grad_linear_weight, grad_linear_bias});
    }
    context->save_for_backward({input, linear_weight, target, linear_bias.value_or(at::Tensor()),
                                weight.value_or(at::Tensor()), alpha});
    context->saved_data["scale"] = scale;
    context->saved_data["types"] = c10::ivalue::Tuple::create(
        {static_cast<int64_t>(input.scalar_type()), static_cast<int64_t>(target.scalar_type())});
    Options{std::string(reduction), ignore_index, label_smoothing, chunk_rows}.save(context);
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list result(10);
    if (!grads[0].defined()) return result;
    const GradientMask wanted{context->needs_input_grad(0), context->needs_input_grad(1),
                              context->needs_input_grad(3)};
    std::tie(result[0], result[1], result[3]) =
        at::GradMode::is_enabled() ? differentiable_gradients(context, grads[0], wanted)
                                   : gradients(context, grads[0], wanted);
    return result;
  }

 private:
  static LinearGradients gradients(AutogradContext* context, const at::Tensor& grad_output,
                                   const GradientMask& wanted) {
    const Options options = Options::load(context);
    if (options.reduction == "none") return gradients_by_rows(context, grad_output, wanted);
    at::Tensor scale = context->saved_data["scale"].toTensor();
    const bool plain = is_plain(grad_output);
    if (plain && scale.is_cpu()) {
      scale = scale * grad_output;
      if (!is_finite_scalar(scale)) {
        return gradients_by_rows(context, scale.expand(rows_of(context)), wanted);
      }
    } else {
      // Nobody waits to see whether no row counts: all gradients are 0 then, and stay it.
      scale = at::where(scale.isfinite(), scale, at::zeros_like(scale)) * grad_output;
    }
    LinearGradients computed = take_gradients(context, wanted, plain);
    const auto multiplied = [&](const at::Tensor& gradient) {
      return plain ? at::Tensor(gradient).mul_(scale) : gradient * scale;
    };
    if (wanted[0]) std::get<0>(computed) = multiplied(std::get<0>(computed));
    if (wanted[1]) std::get<1>(computed) = multiplied(std::get<1>(computed));
    if (wanted[2]) std::get<2>(computed) = multiplied(std::get<2>(computed));
    return finished(context, computed, wanted);
  }

  // What forward has computed; it is handed out once where it will be written to, and a second
  // backward through the same graph computes it again, to the same bits.
  static LinearGradients take_gradients(AutogradContext* context, const GradientMask& wanted,
                                        bool for_good) {
    c10::IValue& kept = context->saved_data["gradients"];
    if (!kept.isNone()) {
      const auto gradients = kept.toTuple();
      const auto& elements = gradients->elements();
      LinearGradients taken{elements[0].toTensor(), elements[1].toTensor(), elements[2].toTensor()};
      if (for_good) kept = c10::IValue();
      return taken;
    }
    const variable_list saved = saved_tensors(context);
    const Options options = Options::load(context);
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [loss, scale, grad_input, grad_linear_weight, grad_linear_bias] =
        POWERGRAD_DISPATCHED(linear_cross_entropy_forward)
            .call(saved[0], saved[1], saved[2], optional(saved[3]), optional(saved[4]),
                  options.reduction, options.ignore_index, options.label_smoothing, saved[5],
                  options.chunk_rows, wanted);
    return {grad_input, grad_linear_weight, grad_linear_bias};
  }

  static LinearGradients gradients_by_rows(AutogradContext* context, const at::Tensor& grad_output,
                                           const GradientMask& wanted) {
    const variable_list saved = saved_tensors(context);
    const Options options = Options::load(context);
    at::AutoDispatchBelowADInplaceOrView guard;
    return finished(context,
                    POWERGRAD_DISPATCHED(linear_cross_entropy_backward)
                        .call(grad_output, saved[0], saved[1], saved[2], optional(saved[3]),
                              optional(saved[4]), options.ignore_index, options.label_smoothing,
                              saved[5], options.chunk_rows, wanted),
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
    const variable_list saved = saved_tensors(context);
    const Options options = Options::load(context);
    const at::Tensor logits = at::linear(saved[0], saved[1], optional(saved[3]));
    const auto [loss, statistics, total_weight] =
        POWERGRAD_DISPATCHED(cross_entropy_forward)
            .call(logits.detach(), saved[2], optional(saved[4]), options.ignore_index,
                  options.reduction, options.label_smoothing, saved[5], /*needs_backward=*/true);
    const at::Tensor gradient =
        POWERGRAD_DISPATCHED(cross_entropy_backward)
            .call(grad_output, logits, saved[2], optional(saved[4]), options.ignore_index,
                  options.reduction, options.label_smoothing, saved[5], statistics, total_weight);
    const auto as_rows = [](const at::Tensor& tensor) {
      return tensor.dim() == 1 ? tensor.unsqueeze(0) : tensor;
    };
    return {wanted[0] ? gradient.matmul(saved[1]) : at::Tensor(),
            wanted[1] ? as_rows(gradient).t().matmul(as_rows(saved[0])) : at::Tensor(),
            wanted[2] ? as_rows(gradient).sum(0) : at::Tensor()};
  }

  static at::ScalarType type_of(AutogradContext* context, int argument) {
    const auto types = context->saved_data["types"].toTuple();
    return static_cast<at::ScalarType>(types->elements()[argument].toInt());
  }

  // input, linear_weight, target, linear_bias, weight, alpha, in the types they had: hooks may have
  // packed them in others.
  static variable_list saved_tensors(AutogradContext* context) {
    variable_list saved = unpack(context, "linear_cross_entropy");
    for (const int i : {0, 1, 3}) {
      if (saved[i].defined()) saved[i] = saved[i].to(type_of(context, 0));
    }
    saved[2] = saved[2].to(type_of(context, 1));
    return saved;
  }

  static std::vector<int64_t> rows_of(AutogradContext* context) {
    const at::Tensor input = saved_tensors(context)[0];
    return input.sizes().slice(0, input.dim() - 1).vec();
  }
};

}  // namespace

at::Tensor linear_cross_entropy(const at::Tensor& input, const at::Tensor& linear_weight,
                                const at::Tensor& target, const OptionalTensor& linear_bias,
                                const OptionalTensor& weight, std::string_view reduction,
                                int64_t ignore_index, double label_smoothing,
                                const at::Tensor& alpha, int64_t chunk_rows) {
  return std::get<0>(POWERGRAD_DISPATCHED(linear_cross_entropy_forward)
                         .call(input, linear_weight, target, linear_bias, weight, reduction,
                               ignore_index, label_smoothing, alpha, chunk_rows, GradientMask{}));
}

namespace {

at::Tensor linear_cross_entropy_autograd(const at::Tensor& input, const at::Tensor& linear_weight,
                                         const at::Tensor& target,
                                         const OptionalTensor& linear_bias,
                                         const OptionalTensor& weight, std::string_view reduction,
                                         int64_t ignore_index, double label_smoothing,
                                         const at::Tensor& alpha, int64_t chunk_rows) {
  const at::Tensor bias = linear_bias.value_or(at::Tensor());
  refuse_nested(input, target, weight, "linear_cross_entropy");
  check_not_nested(linear_weight, "linear_cross_entropy", "linear_weight");
  if (bias.defined()) check_not_nested(bias, "linear_cross_entropy", "linear_bias");
  refuse_tangents({input, linear_weight, target, bias, weight.value_or(at::Tensor()), alpha},
                  "linear_cross_entropy");
  if (in_transform() || (at::GradMode::is_enabled() && target.requires_grad())) {
    return composed(input, linear_weight, target, linear_bias, weight, reduction, ignore_index,
                    label_smoothing, alpha, chunk_rows);
  }
  const bool needs_gradient = input.requires_grad() || linear_weight.requires_grad() ||
                              (bias.defined() && bias.requires_grad());
  if (!at::GradMode::is_enabled() || !needs_gradient) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return linear_cross_entropy(input, linear_weight, target, linear_bias, weight, reduction,
                                ignore_index, label_smoothing, alpha, chunk_rows);
  }
  return LinearCrossEntropyFunction::apply(input, linear_weight, target, linear_bias, weight,
                                           reduction, ignore_index, label_smoothing, alpha,
                                           chunk_rows);
}

// What autocast does to linear; the loss reads half-precision logits as they are.
template <c10::DeviceType device, c10::DispatchKey key>
at::Tensor linear_cross_entropy_autocast(const at::Tensor& input, const at::Tensor& linear_weight,
                                         const at::Tensor& target,
                                         const OptionalTensor& linear_bias,
                                         const OptionalTensor& weight, std::string_view reduction,
                                         int64_t ignore_index, double label_smoothing,
                                         const at::Tensor& alpha, int64_t chunk_rows) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
  const auto cast = [](const at::Tensor& tensor) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensor, device);
  };
  return POWERGRAD_DISPATCHED(linear_cross_entropy)
      .call(cast(input), cast(linear_weight), target,
            linear_bias.has_value() ? OptionalTensor(cast(*linear_bias)) : std::nullopt, weight,
            reduction, ignore_index, label_smoothing, alpha, chunk_rows);
}

}  // namespace

TORCH_LIBRARY_IMPL(powergrad, Autograd, m) {
  m.impl("linear_cross_entropy", linear_cross_entropy_autograd);
  // Not differentiable, and not silently so.
  m.impl("linear_cross_entropy_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("linear_cross_entropy_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(powergrad, CompositeExplicitAutograd, m) {
  m.impl("linear_cross_entropy", linear_cross_entropy);
}

TORCH_LIBRARY_IMPL(powergrad, FuncTorchBatched, m) { m.impl("linear_cross_entropy", composed); }

TORCH_LIBRARY_IMPL(powergrad, AutocastCPU, m) {
  m.impl("linear_cross_entropy",
         linear_cross_entropy_autocast<at::kCPU, c10::DispatchKey::AutocastCPU>);
}

TORCH_LIBRARY_IMPL(powergrad, AutocastCUDA, m) {
  m.impl("linear_cross_entropy",
         linear_cross_entropy_autocast<at::kCUDA, c10::DispatchKey::AutocastCUDA>);
}

}  // namespace powergrad

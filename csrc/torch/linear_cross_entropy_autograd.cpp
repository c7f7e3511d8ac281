// The autograd of linear cross-entropy, and its torch.func.
#include <ATen/TensorOperators.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <tuple>

#include "torch/autograd.h"

namespace powergrad {
namespace {

// The whole logits, differentiable.
at::Tensor logits_of(const LastLayer& layer) {
  const at::Tensor output = at::linear(layer.input, layer.linear_weight, layer.linear_bias);
  const auto& [scale, softcap] = layer.function;
  if (softcap.has_value()) return (output * layer.function.factor()).tanh() * *softcap;
  return scale == 1.0 ? output : output * scale;
}

// The gradient of the layer's output, for that of the logits.
at::Tensor gradient_of_output(const at::Tensor& gradient, const at::Tensor& logits,
                              const LogitFunction& function) {
  const at::Tensor scaled = function.scale == 1.0 ? gradient : gradient * function.scale;
  if (!function.softcap.has_value()) return scaled;
  const at::Tensor tanh = logits / *function.softcap;
  return scaled - scaled * tanh * tanh;
}

// By its definition. For torch.func, whose levels each have to see the operators, and for the
// gradient of probabilities, which are as large as the logits.
LossAndMetrics composed(const LastLayer& layer, bool metrics) {
  TORCH_CHECK_NOT_IMPLEMENTED(!layer.shard.is_sharded(),
                              "linear_cross_entropy(): transforms of torch.func and the derivative"
                              " for 'target' are not implemented where classes are sharded over",
                              " processes");
  const auto [loss, of_rows, total_weight] = POWERGRAD_DISPATCHED(cross_entropy_forward)(
      logits_of(layer), layer.target, layer.options, /*needs_backward=*/false, metrics);
  return {loss, of_rows};
}
at::Tensor composed_loss(const LastLayer& layer) { return std::get<0>(composed(layer, false)); }
LossAndMetrics composed_metrics(const LastLayer& layer) { return composed(layer, true); }

// The gradients of a mean and a sum are computed in forward, where a chunk's logits are at hand:
// backward multiplies them by grad_output, without synchronising with a GPU. Reduction "none" has a
// grad_output for each row, and computes them in backward; so does every reduction under hooks that
// pack saved tensors, which expect to decide what is kept until then.
class LinearCrossEntropyFunction : public Function<LinearCrossEntropyFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& linear_weight, const OptionalTensor& linear_bias,
                            const LastLayer& layer, at::Tensor* metrics) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const GradientMask wanted{input.requires_grad(), linear_weight.requires_grad(),
                              linear_bias.has_value() && linear_bias->requires_grad()};
    const CrossEntropyOptions& options = layer.options;
    const bool with_gradient = options.reduction != Reduction::none && !are_saved_tensors_hooked();
    const auto [loss, metrics_of_rows, statistics, divisor, scale, grad_input, grad_linear_weight,
                grad_linear_bias] =
        POWERGRAD_DISPATCHED(linear_cross_entropy_forward)(
            layer, with_gradient ? wanted : GradientMask{}, metrics != nullptr);
    if (metrics != nullptr) *metrics = metrics_of_rows;
    if (with_gradient) {
      // One by one: compiled autograd does not find the tensors of a tuple.
      context->saved_data["grad_input"] = grad_input;
      context->saved_data["grad_linear_weight"] = grad_linear_weight;
      context->saved_data["grad_linear_bias"] = grad_linear_bias;
    }
    context->saved_data["scale"] = scale;
    if (options.reduction != Reduction::none) {
      const at::Tensor counts = options.rows_that_count(layer.target);
      if (counts.defined()) context->saved_data["counts"] = counts;
    }
    options.save(context, {input, linear_weight, layer.target, linear_bias.value_or(at::Tensor()),
                           statistics, divisor});
    const ClassShard& shard = layer.shard;
    context->saved_data["layer"] = c10::ivalue::Tuple::create(
        {static_cast<int64_t>(input.scalar_type()), wanted[2], layer.chunk_rows, shard.group,
         shard.ranks, shard.others.before, shard.others.after, layer.function.scale,
         layer.function.softcap});
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list result(5);
    if (!grads[0].defined()) return result;
    // needs_input_grad numbers the tensors that were given, so it has no place 2 without a bias.
    const GradientMask wanted{context->needs_input_grad(0), context->needs_input_grad(1),
                              saved_layer(context, 1).toBool() && context->needs_input_grad(2)};
    std::tie(result[0], result[1], result[2]) =
        at::GradMode::is_enabled() ? differentiable_gradients(context, grads[0], wanted)
                                   : gradients(context, grads[0], wanted);
    return result;
  }

 private:
  // What forward saved. Statistics are those of the tensors that came back.
  struct Saved {
    LastLayer layer;
    at::Tensor statistics;
    at::Tensor divisor;
    at::Tensor scale;

    explicit Saved(AutogradContext* context) {
      auto [tensors, are_rounded] = unpack(context, "linear_cross_entropy");
      layer.options = CrossEntropyOptions::load(context, tensors);
      layer.input = tensors[0];
      layer.linear_weight = tensors[1];
      layer.target = tensors[2];
      if (tensors[3].defined()) layer.linear_bias = tensors[3];
      layer.chunk_rows = saved_layer(context, 2).toInt();
      layer.shard = {saved_layer(context, 3).toStringRef(),
                     saved_layer(context, 4).toInt(),
                     {saved_layer(context, 5).toInt(), saved_layer(context, 6).toInt()}};
      layer.function = {saved_layer(context, 7).toDouble(),
                        saved_layer(context, 8).toOptional<double>()};
      statistics = tensors[4];
      divisor = tensors[5];
      scale = context->saved_data["scale"].toTensor();
      if (!are_rounded) return;
      at::AutoDispatchBelowADInplaceOrView guard;
      std::tie(std::ignore, std::ignore, statistics, divisor, scale, std::ignore, std::ignore,
               std::ignore) =
          POWERGRAD_DISPATCHED(linear_cross_entropy_forward)(layer, GradientMask{},
                                                             /*metrics=*/false);
    }

    LinearGradients gradients(const at::Tensor& grad_output, const GradientMask& wanted) const {
      at::AutoDispatchBelowADInplaceOrView guard;
      return POWERGRAD_DISPATCHED(linear_cross_entropy_backward)(grad_output, layer, statistics,
                                                                 divisor, wanted);
    }
  };

  // The gradients of a mean or a sum, yet to be multiplied by scale and by grad_output.
  struct Computed {
    at::Tensor scale;
    LinearGradients gradients;
  };

  // They are handed out once, or given up by a backward that has no use for them: a loss that is
  // kept must not keep them. Another backward through the same graph computes them again, to the
  // same bits. In a graph that is being traced they stay.
  static void give_up(AutogradContext* context) {
    for (const char* name : {"grad_input", "grad_linear_weight", "grad_linear_bias"}) {
      context->saved_data.erase(name);
    }
  }

  static LinearGradients gradients(AutogradContext* context, const at::Tensor& grad_output,
                                   const GradientMask& wanted) {
    if (CrossEntropyOptions::load_reduction(context) == Reduction::none) {
      return finished(context, Saved(context).gradients(grad_output, wanted), wanted);
    }
    const bool plain = is_plain(grad_output);
    Computed computed = take(context, grad_output, wanted, plain);
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

  // The factor of sums over rows, and that of each row: 0 where no row counts, so that zeros stay
  // zeros if the factor is not finite (on a GPU, to see that would synchronise). Those of rows have
  // a dimension, so that ATen does not round them to half precision first.
  static std::tuple<at::Tensor, at::Tensor> factors_of_rows_that_count(AutogradContext* context,
                                                                       const at::Tensor& factor) {
    const bool is_double = type_of(context) == at::kDouble;
    at::Tensor of_rows = factor.to(is_double ? at::kDouble : at::kFloat);
    const auto counts = context->saved_data.find("counts");
    if (counts == context->saved_data.end()) return {factor, of_rows.unsqueeze(-1)};
    const at::Tensor count = counts->second.toTensor();
    // A plain 0.0 would become a tensor that a fake mode does not know.
    return {at::where(count.any(), factor, at::zeros_like(factor)),
            at::where(count, of_rows, at::zeros_like(of_rows)).unsqueeze(-1)};
  }

  static Computed take(AutogradContext* context, const at::Tensor& grad_output,
                       const GradientMask& wanted, bool for_good) {
    auto& kept = context->saved_data;
    if (kept.count("grad_input") > 0) {
      Computed computed{kept["scale"].toTensor(),
                        {kept["grad_input"].toTensor(), kept["grad_linear_weight"].toTensor(),
                         kept["grad_linear_bias"].toTensor()}};
      if (for_good) give_up(context);
      return computed;
    }
    const Saved saved(context);
    return {saved.scale, saved.gradients(at::ones_like(grad_output), wanted)};
  }

  // In the type of the arguments, and none where none is wanted.
  static LinearGradients finished(AutogradContext* context, const LinearGradients& computed,
                                  const GradientMask& wanted) {
    const at::ScalarType type = type_of(context);
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
    const LastLayer& layer = saved.layer;
    TORCH_CHECK(!layer.shard.is_sharded(),
                "backward with create_graph=True is not implemented where classes are sharded over",
                " processes");
    const at::Tensor logits = logits_of(layer);
    const auto [loss, statistics, total_weight] = POWERGRAD_DISPATCHED(cross_entropy_forward)(
        logits.detach(), layer.target, layer.options, /*needs_backward=*/true, /*metrics=*/false);
    const at::Tensor of_logits = POWERGRAD_DISPATCHED(cross_entropy_backward)(
        grad_output, logits, layer.target, statistics, total_weight, layer.options,
        /*classes_before=*/0, /*classes_after=*/0);
    const at::Tensor gradient = gradient_of_output(of_logits, logits, layer.function);
    const auto as_rows = [](const at::Tensor& tensor) {
      return tensor.dim() == 1 ? tensor.unsqueeze(0) : tensor;
    };
    return {wanted[0] ? gradient.matmul(layer.linear_weight) : at::Tensor(),
            wanted[1] ? as_rows(gradient).t().matmul(as_rows(layer.input)) : at::Tensor(),
            wanted[2] ? as_rows(gradient).sum(0) : at::Tensor()};
  }

  // The type of input, whether the gradient of a bias was wanted, chunk_rows, the shard, the
  // function of the logits.
  static c10::IValue saved_layer(AutogradContext* context, int which) {
    return context->saved_data["layer"].toTuple()->elements()[which];
  }
  static at::ScalarType type_of(AutogradContext* context) {
    return static_cast<at::ScalarType>(saved_layer(context, 0).toInt());
  }
};

LossAndMetrics differentiable_linear(const LastLayer& layer, bool metrics) {
  static constexpr const char* op = "linear_cross_entropy";
  const auto& [input, linear_weight, target, linear_bias, options, chunk_rows, function, shard] =
      layer;
  const at::Tensor bias = linear_bias.value_or(at::Tensor());
  refuse_nested(input, target, options, op);
  refuse_gradients(options, op);
  check_not_nested(linear_weight, op, "linear_weight");
  if (bias.defined()) check_not_nested(bias, op, "linear_bias");
  refuse_tangents(op, input, linear_weight, target, bias, options);
  if (in_transform() || (at::GradMode::is_enabled() && target.requires_grad())) {
    return composed(layer, metrics);
  }
  const bool needs_gradient = input.requires_grad() || linear_weight.requires_grad() ||
                              (bias.defined() && bias.requires_grad());
  if (!at::GradMode::is_enabled() || !needs_gradient) {
    at::AutoDispatchBelowADInplaceOrView guard;
    if (metrics) return linear_cross_entropy_metrics(layer);
    return {linear_cross_entropy(layer), at::Tensor()};
  }
  at::Tensor of_rows;
  const at::Tensor loss = LinearCrossEntropyFunction::apply(input, linear_weight, linear_bias,
                                                            layer, metrics ? &of_rows : nullptr);
  return {loss, of_rows};
}

at::Tensor linear_cross_entropy_autograd(const LastLayer& layer) {
  return std::get<0>(differentiable_linear(layer, /*metrics=*/false));
}
LossAndMetrics linear_cross_entropy_metrics_autograd(const LastLayer& layer) {
  return differentiable_linear(layer, /*metrics=*/true);
}

}  // namespace

TORCH_LIBRARY_IMPL(powergrad, Autograd, m) {
  m.impl("linear_cross_entropy", Flat<&linear_cross_entropy_autograd>::kernel);
  m.impl("linear_cross_entropy_metrics", Flat<&linear_cross_entropy_metrics_autograd>::kernel);
  // Not differentiable, and not silently so.
  m.impl("linear_cross_entropy_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("linear_cross_entropy_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(powergrad, FuncTorchBatched, m) {
  m.impl("linear_cross_entropy", Flat<&composed_loss>::kernel);
  m.impl("linear_cross_entropy_metrics", Flat<&composed_metrics>::kernel);
}

}  // namespace powergrad

// The operators of linear cross-entropy, and their autocast.
#include <ATen/TensorOperators.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <torch/library.h>

#include <tuple>

#include "torch/cross_entropy_call.h"

namespace powergrad {
namespace {

// An upper bound of the weight of p' in a row's gradient, exact for class indices. With z-loss it
// assumes a logsumexp of at most kLse.
at::Tensor largest_row_weight(const at::Tensor& target, const CrossEntropyOptions& options,
                              const at::Tensor& one) {
  constexpr double kLse = 100.0;
  at::Tensor of_row = one;
  if (options.has_weight()) {
    const at::Tensor of_class = options.weight->to(at::kDouble).abs();
    of_row = of_class.max();
    if (!at::isFloatingType(target.scalar_type())) {
      const at::Tensor counts = options.rows_that_count(target);
      const at::Tensor index = at::where(counts, target.to(at::kLong), 0);
      of_row = at::where(counts, of_class.index_select(0, index.reshape({-1})).view_as(counts), 0) *
                   (1.0 - options.label_smoothing) +
               of_class.mean() * options.label_smoothing;
    }
  }
  if (options.z_loss != 0.0) of_row = of_row + 2.0 * options.z_loss * kLse;
  if (options.has_row_weight()) of_row = of_row * options.row_weight->to(at::kDouble);
  const at::Tensor counts = options.rows_that_count(target);
  if (counts.defined()) of_row = at::where(counts, of_row, 0.0);
  return of_row.max();
}

// What the rows' gradients are divided by before the products, and what is left to multiply the
// sums by: scale / divisor = logit_scale / total, where total is what the reduction divides by.
struct Division {
  at::Tensor divisor;
  at::Tensor scale;
};

// Like a loss of logits, rows are divided by the total before the products. Not in float16, where
// the quotients would underflow, since forward does not know the loss scale that will lift them:
// there the row of the largest weight gets the size 16. More would let gradients of the input
// overflow (each is at most 32 times the largest linear_weight), less would lose rows of small
// weight.
Division division_of(const at::Tensor& total, const LastLayer& layer) {
  constexpr double kLargest = 16.0;
  const double logit_scale = layer.function.scale;
  const at::Tensor one = at::ones_like(total);
  if (layer.input.scalar_type() != at::kHalf || layer.target.numel() == 0) {
    return {logit_scale == 1.0 ? total : total / logit_scale, one};
  }
  const at::Tensor largest = largest_row_weight(layer.target, layer.options, one);
  // A total of 0 leaves rows that count without a gradient (NaN) and the others with 0.
  // So do rows that all weigh nothing, whatever their total.
  const at::Tensor is_zero = (total == 0).logical_or(largest == 0);
  const at::Tensor divisor = at::where(is_zero, total, largest / kLargest);
  return {divisor, at::where(is_zero, one, divisor / total) * logit_scale};
}

}  // namespace

LinearForward linear_cross_entropy_forward(const LastLayer& layer, GradientMask gradients,
                                           bool metrics) {
  check_last_layer(layer);
  // The loss of all rows, of which only the logits are made up: it looks at every target before
  // anything is computed, and reduces the chunks' losses.
  const at::Tensor shape = shape_of_logits(layer);
  CrossEntropyCall whole(shape, is_probabilities(shape, layer.target) ? shape : layer.target,
                         layer.options, layer.shard.others);
  whole.expect_forward(/*needs_backward=*/false, metrics);
  const bool is_mean = layer.options.reduction == Reduction::mean;
  const auto [divisor, scale] =
      division_of(is_mean ? whole.total_weight() : at::ones_like(whole.total_weight()), layer);
  const at::Tensor losses = whole.new_losses();
  const at::Tensor of_rows = losses.reshape({-1});
  const at::Tensor statistics =
      new_empty({layer.shard.is_sharded() ? layer.options.statistics() : 0, of_rows.size(0)},
                losses.options());
  RowChunks chunks(layer, gradients);
  chunks.forward({of_rows, statistics, whole.statistics()}, divisor);
  return std::tuple_cat(
      std::tuple(whole.reduced(losses), whole.statistics(), statistics, divisor, scale),
      chunks.gradients());
}

LinearGradients linear_cross_entropy_backward(const at::Tensor& grad_output, const LastLayer& layer,
                                              const at::Tensor& statistics,
                                              const at::Tensor& divisor, GradientMask gradients) {
  check_last_layer(layer);
  const bool per_row = layer.options.reduction == Reduction::none;
  TORCH_CHECK(
      grad_output.device() == layer.input.device() &&
          (per_row ? grad_output.sizes() == layer.input.sizes().slice(0, layer.input.dim() - 1)
                   : grad_output.dim() == 0),
      "linear_cross_entropy_backward(): argument 'grad_output' must have the shape of the",
      " loss and the device of 'input', got shape ", grad_output.sizes(), " on ",
      grad_output.device());
  RowChunks chunks(layer, gradients);
  chunks.backward(per_row ? grad_output.reshape({-1}) : grad_output,
                  per_row ? Reduction::none : Reduction::mean, statistics, divisor);
  return chunks.gradients();
}

at::Tensor linear_cross_entropy(const LastLayer& layer) {
  return std::get<0>(POWERGRAD_DISPATCHED(linear_cross_entropy_forward)(layer, GradientMask{},
                                                                        /*metrics=*/false));
}
LossAndMetrics linear_cross_entropy_metrics(const LastLayer& layer) {
  const auto result = POWERGRAD_DISPATCHED(linear_cross_entropy_forward)(layer, GradientMask{},
                                                                         /*metrics=*/true);
  return {std::get<0>(result), std::get<1>(result)};
}

namespace {

// What autocast does to linear; the loss reads half-precision logits as they are.
template <c10::DeviceType device>
LastLayer as_autocast(LastLayer layer) {
  const auto cast = [](at::Tensor& tensor) {
    tensor = at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensor, device);
  };
  cast(layer.input);
  cast(layer.linear_weight);
  if (layer.linear_bias.has_value()) cast(*layer.linear_bias);
  return layer;
}

template <c10::DeviceType device, c10::DispatchKey key>
at::Tensor linear_cross_entropy_autocast(const LastLayer& layer) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
  return POWERGRAD_DISPATCHED(linear_cross_entropy)(as_autocast<device>(layer));
}

template <c10::DeviceType device, c10::DispatchKey key>
LossAndMetrics linear_cross_entropy_metrics_autocast(const LastLayer& layer) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
  return POWERGRAD_DISPATCHED(linear_cross_entropy_metrics)(as_autocast<device>(layer));
}

template <c10::DeviceType device, c10::DispatchKey key>
void register_autocast(torch::Library& m) {
  m.impl("linear_cross_entropy", Flat<&linear_cross_entropy_autocast<device, key>>::kernel);
  m.impl("linear_cross_entropy_metrics",
         Flat<&linear_cross_entropy_metrics_autocast<device, key>>::kernel);
}

}  // namespace

TORCH_LIBRARY_IMPL(powergrad, CompositeExplicitAutograd, m) {
  m.impl("linear_cross_entropy", Flat<&linear_cross_entropy>::kernel);
  m.impl("linear_cross_entropy_metrics", Flat<&linear_cross_entropy_metrics>::kernel);
}

TORCH_LIBRARY_IMPL(powergrad, AutocastCPU, m) {
  register_autocast<at::kCPU, c10::DispatchKey::AutocastCPU>(m);
}

TORCH_LIBRARY_IMPL(powergrad, AutocastCUDA, m) {
  register_autocast<at::kCUDA, c10::DispatchKey::AutocastCUDA>(m);
}

}  // namespace powergrad

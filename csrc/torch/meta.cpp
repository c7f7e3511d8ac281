// What the raw operators return, without data: for meta tensors, FakeTensor and compilers. Sizes
// may be symbolic.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "shards.h"
#include "torch/checks.h"
#include "torch/operators.h"

namespace powergrad {
namespace {

using Sizes = std::vector<c10::SymInt>;

at::Tensor empty(const Sizes& sizes, const at::Tensor& like, at::ScalarType type) {
  return at::empty_symint(sizes, like.options().dtype(type));
}

Sizes symbolic_row_sizes(const at::Tensor& input, int64_t class_dim) {
  Sizes sizes = input.sym_sizes().vec();
  sizes.erase(sizes.begin() + class_dim);
  return sizes;
}

c10::SymInt row_count(const at::Tensor& input, int64_t class_dim) {
  c10::SymInt rows = 1;
  for (const c10::SymInt& size : symbolic_row_sizes(input, class_dim)) rows *= size;
  return rows;
}

at::Tensor empty_losses(const at::Tensor& input, Sizes sizes, Reduction reduction) {
  if (reduction != Reduction::none) sizes.clear();
  return empty(sizes, input, accumulate_type(input));
}

at::Tensor empty_statistics(const at::Tensor& input, int64_t class_dim, int64_t count) {
  return empty({count, row_count(input, class_dim)}, input, accumulate_type(input));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> cross_entropy_forward_meta(
    const at::Tensor& input, const at::Tensor& target, const CrossEntropyOptions& options,
    bool needs_backward, bool metrics) {
  check_cross_entropy(input, target, options);
  if (metrics) check_metrics(input, target);
  const int64_t class_dim = class_dim_of(input);
  return {
      empty_losses(input, symbolic_row_sizes(input, class_dim), options.reduction),
      empty_statistics(input, class_dim, statistics_of_forward(options, needs_backward, metrics)),
      empty({}, input, at::kDouble)};
}

at::Tensor cross_entropy_backward_meta(const at::Tensor& grad_output, const at::Tensor& input,
                                       const at::Tensor& target, const at::Tensor& statistics,
                                       const at::Tensor& total_weight,
                                       const CrossEntropyOptions& options, int64_t classes_before,
                                       int64_t classes_after) {
  check_same_device(input, grad_output, "cross_entropy_backward", "grad_output");
  check_same_device(input, statistics, "cross_entropy_backward", "statistics");
  check_same_device(input, total_weight, "cross_entropy_backward", "total_weight");
  check_cross_entropy(input, target, options, {classes_before, classes_after});
  return at::empty_like(input);
}

std::tuple<at::Tensor, at::Tensor> cross_entropy_shard_forward_meta(
    const at::Tensor& input, const at::Tensor& target, const CrossEntropyOptions& options,
    int64_t classes_before, int64_t classes_after, int64_t, bool metrics) {
  check_cross_entropy(input, target, options, {classes_before, classes_after});
  if (metrics) check_metrics(input, target);
  const c10::SymInt rows = row_count(input, class_dim_of(input));
  const int64_t header = shard_statistics_size(0, metrics);
  const int64_t of_row = shard_statistics_size(1, metrics) - header;
  return {empty({rows * of_row + header}, input, accumulate_type(input)),
          empty({}, input, at::kDouble)};
}

std::tuple<at::Tensor, at::Tensor> cross_entropy_merge_shards_meta(
    const at::Tensor& shard_statistics, const at::Tensor&, const CrossEntropyOptions& options,
    bool metrics) {
  const int64_t of_row = shard_statistics_size(1, metrics) - shard_statistics_size(0, metrics);
  const c10::SymInt rows = shard_statistics.sym_size(1) / of_row;
  const int64_t merged = kShardStatistics + (metrics ? kMetrics : 0);
  return {empty_losses(shard_statistics, {rows}, options.reduction),
          empty({merged, rows}, shard_statistics, shard_statistics.scalar_type())};
}

LinearGradients empty_gradients(const LastLayer& layer, GradientMask wanted) {
  const at::Tensor &input = layer.input, &weight = layer.linear_weight;
  const at::ScalarType wide = accumulate_type(input);
  return {wanted[0] ? empty(input.sym_sizes().vec(), input, input.scalar_type())
                    : empty({0}, input, wide),
          wanted[1] ? empty(weight.sym_sizes().vec(), input, wide) : empty({0}, input, wide),
          wanted[2] ? empty({weight.sym_size(0)}, input, wide) : empty({0}, input, wide)};
}

LinearForward linear_cross_entropy_forward_meta(const LastLayer& layer, GradientMask gradients,
                                                bool metrics) {
  check_last_layer(layer);
  if (metrics) check_metrics(shape_of_logits(layer), layer.target);
  const at::Tensor& input = layer.input;
  const CrossEntropyOptions& options = layer.options;
  const int64_t features = input.dim() - 1;
  return std::tuple_cat(
      std::tuple(
          empty_losses(input, symbolic_row_sizes(input, features), options.reduction),
          empty_statistics(input, features, metrics ? kMetrics : 0),
          empty_statistics(input, features, layer.shard.is_sharded() ? options.statistics() : 0),
          empty({}, input, at::kDouble), empty({}, input, at::kDouble)),
      empty_gradients(layer, gradients));
}

LinearGradients linear_cross_entropy_backward_meta(const at::Tensor& grad_output,
                                                   const LastLayer& layer,
                                                   const at::Tensor& statistics,
                                                   const at::Tensor& divisor,
                                                   GradientMask gradients) {
  check_last_layer(layer);
  for (const auto& [tensor, name] :
       {std::pair(grad_output, "grad_output"), std::pair(statistics, "statistics"),
        std::pair(divisor, "divisor")}) {
    check_same_device(layer.input, tensor, "linear_cross_entropy_backward", name);
  }
  return empty_gradients(layer, gradients);
}

std::tuple<at::Tensor, at::Tensor> log_softmax_forward_meta(const at::Tensor& input, int64_t dim,
                                                            const at::Tensor& alpha,
                                                            bool needs_backward) {
  check_log_softmax(input, dim, alpha);
  const at::Tensor output = empty(input.sym_sizes().vec(), input, input.scalar_type());
  const int64_t count = needs_backward ? kLogSoftmaxStatistics : 0;
  if (input.dim() == 0) return {output, empty({count, 1}, input, accumulate_type(input))};
  return {output, empty_statistics(input, dim < 0 ? dim + input.dim() : dim, count)};
}

at::Tensor log_softmax_backward_meta(const at::Tensor& grad_output, const at::Tensor& input,
                                     int64_t dim, const at::Tensor& alpha,
                                     const at::Tensor& statistics) {
  check_log_softmax(input, dim, alpha);
  check_same_device(input, grad_output, "log_softmax_backward", "grad_output");
  check_same_device(input, statistics, "log_softmax_backward", "statistics");
  return at::empty_like(input);
}

}  // namespace

TORCH_LIBRARY_IMPL(powergrad, Meta, m) {
  m.impl("cross_entropy_forward", Flat<&cross_entropy_forward_meta>::kernel);
  m.impl("cross_entropy_backward", Flat<&cross_entropy_backward_meta>::kernel);
  m.impl("cross_entropy_shard_forward", Flat<&cross_entropy_shard_forward_meta>::kernel);
  m.impl("cross_entropy_merge_shards", Flat<&cross_entropy_merge_shards_meta>::kernel);
  m.impl("linear_cross_entropy_forward", Flat<&linear_cross_entropy_forward_meta>::kernel);
  m.impl("linear_cross_entropy_backward", Flat<&linear_cross_entropy_backward_meta>::kernel);
  m.impl("log_softmax_forward", log_softmax_forward_meta);
  m.impl("log_softmax_backward", log_softmax_backward_meta);
}

}  // namespace powergrad

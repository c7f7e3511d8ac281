// One matrix product makes a chunk's logits, cross_entropy_backward_ turns them into their gradient
// where they lie, and two matrix products make of that the chunk's share of the gradients. A scale
// of the logits is a factor of the product and of the divisor; a cap is applied where they lie.
#include "torch/row_chunks.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>

#include <algorithm>

#include "powergrad.h"
#include "torch/allocation.h"
#include "torch/checks.h"
#include "torch/operators.h"
#include "torch/softcap.h"

namespace powergrad {
namespace {

// How many rows of logits exist at a time, unless the caller says. A twelfth of them, so that all
// that is allocated on the way, room for the matrix products among it, stays below an eighth of the
// logits; an eighth in half precision, where it does not, since the weight's gradient is summed in
// float32, and where going over that sum once a chunk costs more beside faster products. At least
// so many rows that the products are efficient, which below 12 (8) times as many is a larger share
// of the logits, and no more than what makes up for the sum.
int64_t rows_of_chunk(const LastLayer& layer) {
  constexpr int64_t kLeast = 128, kMost = 2048, kMultiple = 64;
  const int64_t rows = layer.input.size(0);
  if (layer.chunk_rows > 0) return std::min(layer.chunk_rows, rows);
  const bool is_half = layer.input.scalar_type() != accumulate_type(layer.input);
  return std::min(rows,
                  std::clamp(rows / (is_half ? 8 : 12) / kMultiple * kMultiple, kLeast, kMost));
}

// How many rows of a chunk are differentiated at a time where logits are capped: a copy of the
// logits is kept beside their gradient, in the cache, and shall not add much to what a chunk takes.
int64_t rows_of_block(int64_t chunk_rows, int64_t classes) {
  constexpr int64_t kElements = 262144;
  return std::clamp<int64_t>(kElements / std::max<int64_t>(classes, 1), 1,
                             std::max<int64_t>(1, chunk_rows / 8));
}

LastLayer with_rows(LastLayer layer) {
  if (layer.input.dim() == 1) {
    layer.input = layer.input.unsqueeze(0);
    layer.target = layer.target.unsqueeze(0);
    auto& row_weight = layer.options.row_weight;
    if (layer.options.has_row_weight()) row_weight = row_weight->unsqueeze(0);
  }
  return layer;
}

// total += part, both contiguous. ATen would first copy a part of another type.
void add_part(at::Tensor& total, const at::Tensor& part) {
  constexpr int64_t kGrain = 32768;
  float* sums = total.mutable_data_ptr<float>();
  const auto* terms = part.const_data_ptr<c10::BFloat16>();
  at::parallel_for(0, total.numel(), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sums[i] += static_cast<float>(terms[i]);
  });
}

// total += gradient^T input, or = for the first chunk, where total is float32 though they may be of
// half precision. Such a product is made by blocks of classes that stay in the cache, in float32
// where the device can: on a GPU (with total as a summand only newer versions of torch make it),
// and on a CPU for float16, of whose range a sum over rows soon runs out, from converted factors.
// In bfloat16 a CPU rounds the product.
void add_product(at::Tensor& total, const at::Tensor& gradient, const at::Tensor& input,
                 bool is_first) {
  constexpr int64_t kBlock = 512, kGpuBlock = 1024;
  const double beta = is_first ? 0.0 : 1.0;
  if (total.scalar_type() == input.scalar_type()) {
    total.addmm_(gradient.t(), input, beta);
    return;
  }
  const bool is_converted = total.is_cpu() && input.scalar_type() == at::kHalf;
  const at::Tensor wide_input = is_converted ? input.to(at::kFloat) : at::Tensor();
  const int64_t classes = total.size(0), step = total.is_cuda() ? kGpuBlock : kBlock;
  for (int64_t first = 0; first < classes; first += step) {
    const int64_t count = std::min(step, classes - first);
    at::Tensor block = total.narrow(0, first, count);
    const at::Tensor factor = gradient.narrow(1, first, count).t();
    if (is_converted) {
      block.addmm_(factor.to(at::kFloat), wide_input, beta);
      continue;
    }
    const at::Tensor part =
        total.is_cuda() ? at::mm(factor, input, at::kFloat) : at::mm(factor, input).contiguous();
    if (is_first) {
      block.copy_(part);
    } else if (part.is_cuda()) {
      block.add_(part);
    } else {
      add_part(block, part);
    }
  }
}

}  // namespace

RowChunks::RowChunks(const LastLayer& layer, GradientMask wanted)
    : is_single_(layer.input.dim() == 1),
      layer_(with_rows(layer)),
      chunk_rows_(rows_of_chunk(layer_)),
      wanted_(wanted) {
  const at::Tensor &input = layer_.input, &weight = layer_.linear_weight;
  const auto wide = input.options().dtype(accumulate_type(input));
  const auto none = [&wide] { return new_empty({0}, wide); };
  gradients_ = {wanted[0] ? new_empty(input.sizes(), input.options()) : none(),
                wanted[1] ? new_empty(weight.sizes(), wide) : none(),
                wanted[2] ? new_empty({weight.size(0)}, wide).zero_() : none()};
  if (input.size(0) == 0) std::get<1>(gradients_).zero_();
  buffer_ = new_empty({chunk_rows_, weight.size(0)}, input.options());
  if (layer_.function.softcap.has_value() && wants_gradients()) {
    const int64_t classes = weight.size(0);
    capped_ = new_empty({rows_of_block(chunk_rows_, classes), classes}, input.options());
  }
}

template <class Body>
void RowChunks::for_each_chunk(const Body& body) const {
  const int64_t rows = layer_.input.size(0);
  for (int64_t first = 0; first < rows; first += chunk_rows_) {
    body(first, std::min(chunk_rows_, rows - first));
  }
}

void RowChunks::forward(const RowResults& results, const at::Tensor& divisor) {
  const at::Tensor one = at::ones({}, results.losses.options());
  const bool with_gradient = wants_gradients();
  const int64_t metrics = results.metrics.size(0);
  for_each_chunk([&](int64_t first, int64_t count) {
    Rows rows = chunk(first, count, Reduction::mean);
    const auto [losses, statistics] = reduce(rows, with_gradient, metrics > 0);
    results.losses.narrow(0, first, count).copy_(losses);
    if (metrics > 0) {
      const int64_t before = statistics.size(0) - metrics;
      results.metrics.narrow(1, first, count).copy_(statistics.narrow(0, before, metrics));
    }
    if (!with_gradient && !layer_.shard.is_sharded()) return;
    const at::Tensor of_backward = statistics.narrow(0, 0, layer_.options.statistics());
    if (layer_.shard.is_sharded()) results.statistics.narrow(1, first, count).copy_(of_backward);
    if (!with_gradient) return;
    differentiate(rows, one, of_backward, divisor);
    add_gradients(rows.logits, first);
  });
}

void RowChunks::backward(const at::Tensor& grad_output, Reduction reduction,
                         const at::Tensor& statistics, const at::Tensor& divisor) {
  if (!wants_gradients()) return;
  const bool per_row = reduction == Reduction::none;
  const double scale = layer_.function.scale;
  const at::Tensor scaled = per_row && scale != 1.0 ? grad_output * scale : grad_output;
  for_each_chunk([&](int64_t first, int64_t count) {
    Rows rows = chunk(first, count, reduction);
    const at::Tensor of_rows =
        layer_.shard.is_sharded()
            ? statistics.narrow(1, first, count)
            : std::get<1>(reduce(rows, /*needs_backward=*/true, /*metrics=*/false));
    differentiate(rows, per_row ? scaled.narrow(0, first, count) : scaled, of_rows, divisor);
    add_gradients(rows.logits, first);
  });
}

LinearGradients RowChunks::gradients() const {
  LinearGradients result = gradients_;
  if (is_single_ && wanted_[0]) std::get<0>(result) = std::get<0>(result).squeeze(0);
  return result;
}

at::Tensor RowChunks::logits(int64_t first, int64_t count) const {
  at::Tensor result = buffer_.narrow(0, 0, count);
  const at::Tensor input = layer_.input.narrow(0, first, count);
  const at::Tensor weight = layer_.linear_weight.t();
  const double factor = layer_.function.factor();
  if (layer_.linear_bias.has_value()) {
    at::addmm_out(result, *layer_.linear_bias, input, weight, /*beta=*/factor, /*alpha=*/factor);
  } else {
    result.addmm_(input, weight, /*beta=*/0.0, /*alpha=*/factor);
  }
  if (layer_.function.softcap.has_value()) softcap_(result, *layer_.function.softcap);
  return result;
}

RowChunks::Rows RowChunks::chunk(int64_t first, int64_t count, Reduction reduction) const {
  return {logits(first, count), layer_.target.narrow(0, first, count),
          layer_.options.with(reduction).of_rows(first, count)};
}

RowChunks::Rows RowChunks::Rows::some(int64_t first, int64_t count) const {
  return {logits.narrow(0, first, count), target.narrow(0, first, count),
          options.of_rows(first, count)};
}

std::tuple<at::Tensor, at::Tensor> RowChunks::reduce(const Rows& rows, bool needs_backward,
                                                     bool metrics) const {
  const auto options = rows.options.with(Reduction::none);
  if (layer_.shard.is_sharded()) {
    return cross_entropy_of_shards(rows.logits, rows.target, options, layer_.shard, metrics);
  }
  const auto [losses, statistics, total_weight] =
      cross_entropy_forward(rows.logits, rows.target, options, needs_backward, metrics);
  return {losses, statistics};
}

// Makes of the rows' logits the gradient of the layer's output, but for the logits' scale.
void RowChunks::differentiate(Rows& rows, const at::Tensor& grad_output,
                              const at::Tensor& statistics, const at::Tensor& divisor) {
  const auto write_gradient = [&](Rows& of, const at::Tensor& grad, const at::Tensor& from) {
    cross_entropy_backward_(of.logits, grad, of.target, from, divisor, of.options,
                            layer_.shard.others);
  };
  if (!layer_.function.softcap.has_value()) {
    write_gradient(rows, grad_output, statistics);
    return;
  }
  for (int64_t first = 0; first < rows.count(); first += capped_.size(0)) {
    const int64_t count = std::min(capped_.size(0), rows.count() - first);
    Rows block = rows.some(first, count);
    at::Tensor capped = capped_.narrow(0, 0, count).copy_(block.logits);
    write_gradient(block,
                   grad_output.dim() == 0 ? grad_output : grad_output.narrow(0, first, count),
                   statistics.narrow(1, first, count));
    softcap_backward_(block.logits, capped, *layer_.function.softcap);
  }
}

void RowChunks::add_gradients(const at::Tensor& gradient, int64_t first) {
  const int64_t count = gradient.size(0);
  auto& [grad_input, grad_linear_weight, grad_linear_bias] = gradients_;
  if (wanted_[0]) {
    at::Tensor rows = grad_input.narrow(0, first, count);
    at::mm_out(rows, gradient, layer_.linear_weight);
  }
  if (wanted_[1]) {
    const at::Tensor input = layer_.input.narrow(0, first, count);
    add_product(grad_linear_weight, gradient, input, first == 0);
  }
  if (wanted_[2]) {
    grad_linear_bias.add_(gradient.sum(0, /*keepdim=*/false, grad_linear_bias.scalar_type()));
  }
}

}  // namespace powergrad

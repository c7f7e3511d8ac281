// The raw operators of linear cross-entropy: the last layer and the loss, a chunk of rows at a
// time.
//
// One matrix product makes a chunk's logits, cross_entropy_backward_ turns them into their gradient
// where they lie, and two matrix products make of that the chunk's share of the gradients.
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <array>

#include "torch/cross_entropy_call.h"

namespace powergrad {
namespace {

// How many rows of logits exist at a time, unless the caller says. A twelfth of them, so that all
// that is allocated on the way, room for the matrix products among it, stays below an eighth of the
// logits; an eighth in half precision, where it does not, since the weight's gradient is summed in
// float32, and where going over that sum once a chunk costs more beside faster products. At least
// so many rows that the products are efficient, which below 12 (8) times as many is a larger share
// of the logits, and no more than what makes up for the sum.
int64_t rows_of_chunk(int64_t rows, int64_t chunk_rows, bool is_half) {
  constexpr int64_t kLeast = 128, kMost = 2048, kMultiple = 64;
  if (chunk_rows > 0) return std::min(chunk_rows, rows);
  return std::min(rows,
                  std::clamp(rows / (is_half ? 8 : 12) / kMultiple * kMultiple, kLeast, kMost));
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

// The largest weight that a row can have: exactly, or for probabilities at least so much.
at::Tensor largest_row_weight(const at::Tensor& target, const CrossEntropyOptions& options) {
  const at::Tensor of_class = options.weight->to(at::kDouble).abs();
  if (at::isFloatingType(target.scalar_type())) return of_class.max();
  const at::Tensor rows = target.reshape({-1}).to(at::kLong);
  const at::Tensor counts = rows != options.ignore_index;
  const at::Tensor of_row =
      at::where(counts, of_class.index_select(0, at::where(counts, rows, 0)), 0);
  return of_row.max() * (1.0 - options.label_smoothing) + of_class.mean() * options.label_smoothing;
}

// What the rows' gradients are divided by before the products, and what is left to multiply the
// sums by: divisor = scale * total, where total is what the reduction divides by.
struct Division {
  at::Tensor divisor;
  at::Tensor scale;
};

// Rows are divided by the total before the products, as where the loss has logits of its own; but
// in float16, where the quotients would underflow: forward does not know yet the loss scale that is
// to lift them. There the row of the largest weight is given the size 16 instead. More would let
// gradients of the input overflow (each is at most 32 times the largest linear_weight), less would
// lose rows of small weight.
Division division_of(const at::Tensor& total, const at::Tensor& input, const at::Tensor& target,
                     const CrossEntropyOptions& options) {
  constexpr double kLargest = 16.0;
  const at::Tensor one = at::ones_like(total);
  if (input.scalar_type() != at::kHalf || target.numel() == 0) return {total, one};
  const at::Tensor largest = options.has_weight() ? largest_row_weight(target, options) : one;
  // A total of 0 leaves rows that count without a gradient (NaN) and the others with 0.
  // So do rows that all weigh nothing, whatever their total.
  const at::Tensor is_zero = (total == 0).logical_or(largest == 0);
  const at::Tensor divisor = at::where(is_zero, total, largest / kLargest);
  return {divisor, at::where(is_zero, one, divisor / total)};
}

// One call, its arguments as rows.
class LinearCrossEntropyCall {
 public:
  LinearCrossEntropyCall(const at::Tensor& input, const at::Tensor& linear_weight,
                         const at::Tensor& target, const OptionalTensor& linear_bias,
                         const CrossEntropyOptions& options, int64_t chunk_rows,
                         GradientMask wanted)
      : is_single_(input.dim() == 1),
        input_(is_single_ ? input.unsqueeze(0) : input),
        linear_weight_(linear_weight),
        target_(is_single_ ? target.unsqueeze(0) : target),
        linear_bias_(linear_bias),
        options_(options),
        chunk_rows_(rows_of_chunk(input_.size(0), chunk_rows,
                                  input.scalar_type() != accumulate_type(input))),
        wanted_(wanted) {
    const auto wide = input_.options().dtype(accumulate_type(input_));
    const auto none = [&wide] { return new_empty({0}, wide); };
    gradients_ = {wanted[0] ? new_empty(input_.sizes(), input_.options()) : none(),
                  wanted[1] ? new_empty(linear_weight_.sizes(), wide) : none(),
                  wanted[2] ? new_empty({linear_weight_.size(0)}, wide).zero_() : none()};
  }

  // For a grad_output for each row, reduction "none"; or for one, by which all are multiplied, and
  // a divisor, reduction "mean".
  void run(at::Tensor losses, const at::Tensor& grad_output, Reduction reduction,
           const OptionalTensor& divisor = std::nullopt) {
    const at::Tensor buffer = new_empty({chunk_rows_, linear_weight_.size(0)}, input_.options());
    if (input_.size(0) == 0) std::get<1>(gradients_).zero_();
    const bool with_gradient = wanted_[0] || wanted_[1] || wanted_[2];
    for (int64_t first = 0; first < input_.size(0); first += chunk_rows_) {
      const int64_t count = std::min(chunk_rows_, input_.size(0) - first);
      const auto chunk = [&](const at::Tensor& rows) { return rows.narrow(0, first, count); };
      at::Tensor logits = buffer.narrow(0, 0, count);
      make_logits(logits, chunk(input_));
      const auto [loss, statistics, total_weight] = cross_entropy_forward(
          logits, chunk(target_), options_.with(Reduction::none), with_gradient);
      chunk(losses).copy_(loss);
      if (!with_gradient) continue;
      cross_entropy_backward_(logits, grad_output.dim() == 0 ? grad_output : chunk(grad_output),
                              chunk(target_), statistics, divisor.value_or(total_weight),
                              options_.with(reduction));
      add_gradients(logits, first, count);
    }
  }

  LinearGradients gradients() const {
    LinearGradients result = gradients_;
    if (is_single_ && wanted_[0]) std::get<0>(result) = std::get<0>(result).squeeze(0);
    return result;
  }

 private:
  void make_logits(at::Tensor& logits, const at::Tensor& input) const {
    if (linear_bias_.has_value()) {
      at::addmm_out(logits, *linear_bias_, input, linear_weight_.t());
    } else {
      at::mm_out(logits, input, linear_weight_.t());
    }
  }

  void add_gradients(const at::Tensor& gradient, int64_t first, int64_t count) {
    auto& [grad_input, grad_linear_weight, grad_linear_bias] = gradients_;
    if (wanted_[0]) {
      at::Tensor rows = grad_input.narrow(0, first, count);
      at::mm_out(rows, gradient, linear_weight_);
    }
    if (wanted_[1]) {
      add_product(grad_linear_weight, gradient, input_.narrow(0, first, count), first == 0);
    }
    if (wanted_[2]) {
      grad_linear_bias.add_(gradient.sum(0, /*keepdim=*/false, grad_linear_bias.scalar_type()));
    }
  }

  bool is_single_;
  at::Tensor input_;
  at::Tensor linear_weight_;
  at::Tensor target_;
  OptionalTensor linear_bias_;
  CrossEntropyOptions options_;
  int64_t chunk_rows_;
  GradientMask wanted_;
  LinearGradients gradients_;
};

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> linear_cross_entropy_forward(
    const at::Tensor& input, const at::Tensor& linear_weight, const at::Tensor& target,
    const OptionalTensor& linear_bias, const CrossEntropyOptions& options, int64_t chunk_rows,
    GradientMask gradients) {
  check_linear_cross_entropy(input, linear_weight, target, linear_bias, options, chunk_rows);
  // The loss of all rows, of which only the logits are made up: it looks at every target before
  // anything is computed, and reduces the chunks' losses.
  const at::Tensor shape = shape_of_logits(input, linear_weight);
  CrossEntropyCall whole(shape, is_probabilities(shape, target) ? shape : target, options);
  whole.expect_forward(/*needs_backward=*/false);
  LinearCrossEntropyCall call(input, linear_weight, target, linear_bias, options, chunk_rows,
                              gradients);
  const at::Tensor losses = whole.losses().reshape({-1});
  const at::Tensor one = at::ones_like(whole.total_weight());
  const bool is_mean = options.reduction == Reduction::mean;
  const auto [divisor, scale] =
      division_of(is_mean ? whole.total_weight() : one, input, target, options);
  call.run(losses, one, Reduction::mean, divisor);
  return std::tuple_cat(std::tuple(whole.loss(), scale), call.gradients());
}

LinearGradients linear_cross_entropy_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& linear_weight,
    const at::Tensor& target, const OptionalTensor& linear_bias, const CrossEntropyOptions& options,
    int64_t chunk_rows, GradientMask gradients) {
  check_linear_cross_entropy(input, linear_weight, target, linear_bias, options, chunk_rows);
  TORCH_CHECK(grad_output.device() == input.device() &&
                  grad_output.sizes() == input.sizes().slice(0, input.dim() - 1),
              "linear_cross_entropy_backward(): argument 'grad_output' must have the shape of the",
              " losses and the device of 'input', got shape ", grad_output.sizes(), " on ",
              grad_output.device());
  LinearCrossEntropyCall call(input, linear_weight, target, linear_bias, options, chunk_rows,
                              gradients);
  const at::Tensor rows = grad_output.reshape({-1});
  call.run(at::empty_like(rows), rows, Reduction::none);
  return call.gradients();
}

}  // namespace powergrad

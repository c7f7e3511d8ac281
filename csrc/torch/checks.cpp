#include "torch/checks.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/SymBool.h>
#include <c10/util/Exception.h>

#include <cmath>

namespace powergrad {
namespace {

void check_dense(const at::Tensor& tensor, const char* op, const char* name) {
  check_not_nested(tensor, op, name);
  TORCH_CHECK(tensor.layout() == at::kStrided && !tensor.is_quantized(), op, "(): argument '", name,
              "' must be a dense (strided) tensor, got ",
              tensor.is_quantized() ? "a quantized tensor" : "layout " + c10::str(tensor.layout()));
}

void check_floating(const at::Tensor& tensor, const char* op, const char* name) {
  const auto dtype = tensor.scalar_type();
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
      op, "(): argument '", name, "' must be float32, float64, bfloat16 or float16, got ", dtype);
}

// Sizes that only the data decides (logits[mask] under torch.export) are taken to be equal, and
// compared when the graph runs.
bool expected_equal(const c10::SymInt& a, const c10::SymInt& b) {
  return a.sym_eq(b).expect_true(__FILE__, __LINE__);
}

void check_index_target(const at::Tensor& input, const at::Tensor& target) {
  const auto dtype = target.scalar_type();
  TORCH_CHECK(!at::isFloatingType(dtype), "expected scalar type Long but found ", dtype,
              ": cross_entropy(): argument 'target' holds class indices (int64, int32 or uint8)",
              " unless it has the shape of 'input', ", input.sym_sizes(), ", got shape ",
              target.sym_sizes());
  TORCH_CHECK(
      dtype == at::kLong || dtype == at::kInt || dtype == at::kByte,
      "expected scalar type Long but found ", dtype,
      ": cross_entropy(): class indices in argument 'target' must be int64, int32 or uint8;",
      " convert them with target.long()");
  if (input.dim() == 1) {
    TORCH_CHECK(target.dim() == 0, "size mismatch (got input: ", input.sym_sizes(),
                ", target: ", target.sym_sizes(), ")");
    return;
  }
  TORCH_CHECK(input.dim() > 2 || target.dim() == 1,
              "0D or 1D target tensor expected, multi-target not supported (cross_entropy():",
              " argument 'target' has shape ", target.sym_sizes(), " for 'input' of shape ",
              input.sym_sizes(), ")");
  TORCH_CHECK_VALUE(target.dim() == 0 || expected_equal(input.sym_size(0), target.sym_size(0)),
                    "Expected input batch_size (", input.sym_size(0),
                    ") to match target batch_size (", target.sym_size(0), ").");
  if (input.dim() == 2 && target.dim() == 1) return;
  auto expected = input.sym_sizes().vec();
  expected.erase(expected.begin() + 1);
  bool fits = target.dim() == input.dim() - 1;
  for (int64_t d = 0; fits && d < target.dim(); ++d) {
    fits = expected_equal(expected[d], target.sym_size(d));
  }
  TORCH_CHECK(fits, "Expected target size ", c10::SymIntArrayRef(expected), ", got ",
              target.sym_sizes());
}

void check_row_weight(const at::Tensor& input, const at::Tensor& row_weight, const char* op) {
  check_dense(row_weight, op, "row_weight");
  check_same_device(input, row_weight, op, "row_weight");
  check_floating(row_weight, op, "row_weight");
  auto expected = input.sym_sizes().vec();
  expected.erase(expected.begin() + class_dim_of(input));
  bool fits = row_weight.dim() == input.dim() - 1;
  for (int64_t d = 0; fits && d < row_weight.dim(); ++d) {
    fits = expected_equal(expected[d], row_weight.sym_size(d));
  }
  TORCH_CHECK(fits, op, "(): argument 'row_weight' must have a number for each row, shape ",
              c10::SymIntArrayRef(expected), ", got shape ", row_weight.sym_sizes());
  check_without_gradient(row_weight, op, "row_weight");
}

}  // namespace

void check_same_device(const at::Tensor& input, const at::Tensor& other, const char* op,
                       const char* name) {
  TORCH_CHECK(input.device() == other.device(),
              "Expected all tensors to be on the same device, but found at least two devices, ",
              input.device(), " and ", other.device(), "! (", op, "(): argument 'input' and '",
              name, "')");
}

void check_alpha(const at::Tensor& input, const at::Tensor& alpha, const char* op) {
  TORCH_CHECK_VALUE(alpha.dim() == 0 && at::isFloatingType(alpha.scalar_type()), op,
                    "(): argument 'alpha' must be a float or a 0-d floating point tensor, got a ",
                    alpha.dim(), "-d tensor of type ", alpha.scalar_type());
  TORCH_CHECK(alpha.device().is_cpu() || alpha.device() == input.device(), op,
              "(): argument 'alpha' must be on the CPU or on the device of 'input' (",
              input.device(), "), got ", alpha.device());
  check_without_gradient(alpha, op, "alpha");
}

void check_not_nested(const at::Tensor& tensor, const char* op, const char* name) {
  TORCH_CHECK(!tensor.is_nested(), op, "(): argument '", name,
              "' must be a dense (strided) tensor,",
              " got a nested tensor: give its rows as one tensor, torch.cat(", name, ".unbind())");
}

void check_without_gradient(const at::Tensor& tensor, const char* op, const char* name) {
  TORCH_CHECK(!tensor.requires_grad(), op, "(): the derivative for '", name,
              "' is not implemented; pass ", name, ".detach()");
}

bool is_probabilities(const at::Tensor& input, const at::Tensor& target) {
  if (input.dim() != target.dim()) return false;
  for (int64_t d = 0; d < input.dim(); ++d) {
    // No other target has so many dimensions: what the data has yet to decide will be checked.
    if (!TORCH_GUARD_OR_TRUE(input.sym_size(d).sym_eq(target.sym_size(d)))) return false;
  }
  return true;
}

at::ScalarType accumulate_type(const at::Tensor& input) {
  return input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

void check_cross_entropy(const at::Tensor& input, const at::Tensor& target,
                         const CrossEntropyOptions& options, const OtherClasses& others) {
  static constexpr const char* op = "cross_entropy";
  check_dense(input, op, "input");
  check_dense(target, op, "target");
  check_floating(input, op, "input");
  check_alpha(input, options.alpha, op);
  TORCH_CHECK(options.label_smoothing >= 0.0 && options.label_smoothing <= 1.0,
              "label_smoothing must be between 0.0 and 1.0. Got: ", options.label_smoothing);
  TORCH_CHECK(input.dim() >= 1,
              "cross_entropy(): argument 'input' must have a class dimension, (C), (N, C) or",
              " (N, C, d1, ..., dK), got a 0-d tensor");
  check_same_device(input, target, op, "target");
  if (is_probabilities(input, target)) {
    for (int64_t d = 0; d < input.dim(); ++d) {
      expected_equal(input.sym_size(d), target.sym_size(d));
    }
    TORCH_CHECK(at::isFloatingType(target.scalar_type()),
                "Expected floating point type for target with class probabilities, got ",
                target.scalar_type());
    TORCH_CHECK(options.ignore_index < 0,
                "ignore_index is not supported for floating point target");
    check_floating(target, op, "target");
  } else {
    check_index_target(input, target);
  }
  TORCH_CHECK(others.before >= 0 && others.after >= 0, op, "(): arguments 'classes_before' and",
              " 'classes_after' must not be negative, got ", others.before, " and ", others.after);
  const c10::SymInt classes = input.sym_size(class_dim_of(input)) + (others.before + others.after);
  TORCH_CHECK(TORCH_GUARD_OR_TRUE(classes.sym_gt(0)) ||
                  (input.dim() > 1 && TORCH_GUARD_OR_TRUE(input.sym_size(0).sym_eq(0))),
              "cross_entropy(): argument 'input' must have at least one class, got shape ",
              input.sym_sizes());
  TORCH_CHECK_VALUE(std::isfinite(options.z_loss) && options.z_loss >= 0.0, op,
                    "(): argument 'z_loss' must be finite and >= 0, got ", options.z_loss);
  if (options.has_row_weight()) check_row_weight(input, *options.row_weight, op);
  if (!options.has_weight()) return;
  const at::Tensor& weight = *options.weight;
  check_dense(weight, op, "weight");
  check_same_device(input, weight, op, "weight");
  TORCH_CHECK(weight.dim() == 1 && expected_equal(weight.sym_size(0), classes),
              "weight tensor should be defined either for all ", classes,
              " classes or no classes but got weight tensor of shape: ", weight.sym_sizes());
  check_floating(weight, op, "weight");
  check_without_gradient(weight, op, "weight");
}

void check_metrics(const at::Tensor& input, const at::Tensor& target) {
  TORCH_CHECK_VALUE(!is_probabilities(input, target),
                    "cross_entropy(): argument 'return_metrics' must be False where 'target' holds",
                    " probabilities, got True with 'target' of shape ", target.sym_sizes());
}

at::Tensor shape_of_logits(const LastLayer& layer) {
  const at::Tensor& input = layer.input;
  const c10::SymInt classes = layer.linear_weight.sym_size(0);
  if (input.dim() == 1) return at::empty_symint({classes}, input.options());
  return at::empty_strided_symint({input.sym_size(0), classes}, {0, 1}, input.options());
}

void check_last_layer(const LastLayer& layer) {
  static constexpr const char* op = "linear_cross_entropy";
  const auto& [input, linear_weight, target, linear_bias, options, chunk_rows, function, shard] =
      layer;
  const auto check_factor = [&input = input](const at::Tensor& tensor, const char* name) {
    check_dense(tensor, op, name);
    check_same_device(input, tensor, op, name);
    TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), op, "(): argument '", name,
                "' must have the type of 'input', ", input.scalar_type(), ", got ",
                tensor.scalar_type());
  };
  check_dense(input, op, "input");
  check_floating(input, op, "input");
  check_factor(linear_weight, "linear_weight");
  TORCH_CHECK(input.dim() == 1 || input.dim() == 2,
              "expected input with dimensionality 1 or 2, got ", input.dim());
  TORCH_CHECK(linear_weight.dim() == 2, op,
              "(): argument 'linear_weight' must have shape (C, in_features), got shape ",
              linear_weight.sym_sizes());
  TORCH_CHECK(expected_equal(input.sym_size(-1), linear_weight.sym_size(1)),
              "expected equal input and linear_weight last dimensions (in_features), got ",
              input.sym_size(-1), " and ", linear_weight.sym_size(1), ", respectively (shapes ",
              input.sym_sizes(), " and ", linear_weight.sym_sizes(), ")");
  if (linear_bias.has_value() && linear_bias->defined()) {
    check_factor(*linear_bias, "linear_bias");
    TORCH_CHECK(linear_bias->dim() == 1 &&
                    expected_equal(linear_bias->sym_size(0), linear_weight.sym_size(0)),
                "expected linear_bias shape (", linear_weight.sym_size(0), ",), got ",
                linear_bias->sym_sizes());
  }
  TORCH_CHECK_VALUE(chunk_rows >= 0, op,
                    "(): argument 'chunk_rows' must be None or greater than 0, got ", chunk_rows);
  TORCH_CHECK_VALUE(std::isfinite(function.scale), op,
                    "(): argument 'logit_scale' must be finite, got ", function.scale);
  const double softcap = function.softcap.value_or(1.0);
  TORCH_CHECK_VALUE(std::isfinite(softcap) && softcap > 0.0, op,
                    "(): argument 'softcap' must be None, or finite and greater than 0, got ",
                    softcap);
  check_cross_entropy(shape_of_logits(layer), target, options, shard.others);
}

void check_log_softmax(const at::Tensor& input, int64_t dim, const at::Tensor& alpha) {
  static constexpr const char* op = "log_softmax";
  check_dense(input, op, "input");
  check_floating(input, op, "input");
  check_alpha(input, alpha, op);
  const int64_t dims = std::max<int64_t>(input.dim(), 1);
  TORCH_CHECK_INDEX(-dims <= dim && dim < dims, "Dimension out of range (expected to be in range",
                    " of [", -dims, ", ", dims - 1, "], but got ", dim, ")");
}

double alpha_value(const at::Tensor& alpha) {
  const double value = alpha.item<double>();
  TORCH_CHECK_VALUE(std::isfinite(value) && value > 0.0,
                    "alpha must be finite and greater than 0, got ", value);
  return value;
}

void raise_row_weight(double row_weight, int64_t row) {
  TORCH_CHECK_VALUE(false, "cross_entropy(): argument 'row_weight' must be finite and >= 0, got ",
                    row_weight, " for row ", row);
}

void raise_target_out_of_bounds(int64_t target, int64_t classes, int64_t ignore_index) {
  TORCH_CHECK_INDEX(false, "Target ", target, " is out of bounds: cross_entropy() expects class",
                    " indices in [0, ", classes, ") for C = ", classes,
                    " classes, or ignore_index (", ignore_index, ").");
}

}  // namespace powergrad

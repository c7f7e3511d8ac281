// What the autograd kernels of all operators have in common. They compute everything by the raw
// operators, reached through the dispatcher, so that tracing sees them.
#pragma once

#include <ATen/SavedTensorHooks.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <string>

#include "torch/checks.h"
#include "torch/functorch.h"
#include "torch/operators.h"

namespace powergrad {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Dense memory that can be used as it stands: no subclass, tracing, or lazy negation or zero.
inline bool is_plain(const at::Tensor& tensor) {
  static constexpr c10::DispatchKeySet kNotPlain =
      c10::python_ks |
      c10::DispatchKeySet({c10::DispatchKey::Functionalize, c10::DispatchKey::Negative,
                           c10::DispatchKey::Conjugate, c10::DispatchKey::ZeroTensor,
                           c10::DispatchKey::FuncTorchBatched,
                           c10::DispatchKey::FuncTorchGradWrapper, c10::DispatchKey::Batched});
  return (tensor.is_cpu() || tensor.is_cuda()) && !tensor.key_set().has_any(kNotPlain) &&
         !c10::impl::TorchDispatchModeTLS::any_modes_set();
}

inline bool are_plain(const at::Tensor& input, const at::Tensor& target,
                      const CrossEntropyOptions& options) {
  return is_plain(input) && is_plain(target) && is_plain(options.alpha) &&
         (!options.has_weight() || is_plain(*options.weight)) &&
         (!options.has_row_weight() || is_plain(*options.row_weight));
}

// Whether hooks (checkpointing, offloading) decide what tensors saved now are in backward.
inline bool are_saved_tensors_hooked() {
  return at::SavedTensorDefaultHooks::get_hooks().has_value();
}

// A scalar on the CPU, read without a round of dispatching.
inline double scalar_value(const at::Tensor& scalar) {
  return scalar.scalar_type() == at::kDouble ? *scalar.const_data_ptr<double>()
                                             : *scalar.const_data_ptr<float>();
}

// Another one would turn the zeros of ignored rows into NaN.
inline bool is_finite_scalar(const at::Tensor& grad_output) {
  return grad_output.is_cpu() && std::isfinite(scalar_value(grad_output));
}

// Saves tensors for backward. Hooks may pack them in other types, to save memory, and backward
// gives them those that they had.
inline void save(AutogradContext* context, variable_list tensors) {
  if (are_saved_tensors_hooked()) {
    std::vector<int64_t> types;
    for (const at::Tensor& tensor : tensors) {
      types.push_back(tensor.defined() ? static_cast<int64_t>(tensor.scalar_type()) : 0);
    }
    context->saved_data["types"] = std::move(types);
  }
  context->save_for_backward(std::move(tensors));
}

// The tensors that forward saved.
struct Unpacked {
  variable_list tensors;
  // Whether some came back in another type: rounded statistics would not be those of these logits.
  bool are_rounded = false;
};

inline variable_list unpack_as_packed(AutogradContext* context, const char* op) {
  try {
    return context->get_saved_variables();
  } catch (const c10::Error& error) {
    const std::string reason = error.what_without_backtrace();
    const bool is_changed = reason.find("modified by an inplace") != std::string::npos ||
                            reason.find("been modified inplace") != std::string::npos;
    if (!is_changed) throw;
    TORCH_CHECK(
        false, op, "(): backward needs the arguments of forward, and one of them has been",
        " changed in place since, by an in-place operation or by another loss over the same",
        " memory with inplace_backward=True: change a copy of it (tensor.clone()), or leave",
        " inplace_backward off. ", reason);
  }
}

inline Unpacked unpack(AutogradContext* context, const char* op) {
  Unpacked result{unpack_as_packed(context, op)};
  const auto saved_types = context->saved_data.find("types");
  if (saved_types == context->saved_data.end()) return result;
  const std::vector<int64_t> types = saved_types->second.toIntVector();
  for (size_t i = 0; i < types.size(); ++i) {
    at::Tensor& tensor = result.tensors[i];
    const auto type = static_cast<at::ScalarType>(types[i]);
    if (!tensor.defined() || tensor.scalar_type() == type) continue;
    tensor = tensor.to(type);
    result.are_rounded = true;
  }
  return result;
}

// Before autograd keeps them: it does not know nested tensors, and those with Python classes of
// their own never come to an operator's other checks.
inline void refuse_nested(const at::Tensor& input, const at::Tensor& target,
                          const CrossEntropyOptions& options, const char* op) {
  check_not_nested(input, op, "input");
  check_not_nested(target, op, "target");
  if (options.has_weight()) check_not_nested(*options.weight, op, "weight");
  if (options.has_row_weight()) check_not_nested(*options.row_weight, op, "row_weight");
}

// Before a transform of torch.func takes the tensors apart: the derivative would be a silent 0.
inline void refuse_gradients(const CrossEntropyOptions& options, const char* op) {
  if (options.has_weight()) check_without_gradient(*options.weight, op, "weight");
  if (options.has_row_weight()) check_without_gradient(*options.row_weight, op, "row_weight");
  check_without_gradient(options.alpha, op, "alpha");
}

// A tangent would be lost without a word otherwise: torch asks about it only where a gradient is
// wanted as well.
inline void refuse_tangent(const char* op, const at::Tensor& tensor) {
  TORCH_CHECK_NOT_IMPLEMENTED(!tensor.defined() || !tensor._fw_grad(/*level=*/0).defined(), op,
                              "(): forward-mode derivatives are not implemented: PowerGrad",
                              " Transform defines a gradient, for reverse mode");
}
inline void refuse_tangent(const char* op, const OptionalTensor& tensor) {
  if (tensor.has_value()) refuse_tangent(op, *tensor);
}
inline void refuse_tangent(const char* op, const CrossEntropyOptions& options) {
  refuse_tangent(op, options.weight);
  refuse_tangent(op, options.row_weight);
  refuse_tangent(op, options.alpha);
}
template <class... Arguments>
void refuse_tangents(const char* op, const Arguments&... arguments) {
  (refuse_tangent(op, arguments), ...);
}

}  // namespace powergrad

// The options of cross-entropy as one argument: of every function that takes them, of the schemas
// and of autograd. What they are called one by one is written here and in check_cross_entropy.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "torch/dispatch.h"

namespace torch::autograd {
struct AutogradContext;
}

namespace powergrad {

using OptionalTensor = std::optional<at::Tensor>;

enum class Reduction : int64_t { none, mean, sum };

// ValueError for an unknown name.
Reduction parse_reduction(std::string_view name);
std::string_view name_of(Reduction reduction);

// Autograd saves no tensor that inference mode has made, as the alpha of a schedule may be.
inline at::Tensor savable(const at::Tensor& alpha) {
  return alpha.is_inference() ? alpha.clone() : alpha;
}

// The options in the schema of a raw operator, and in that of one for users.
#define POWERGRAD_OPTIONS \
  "Tensor? weight, int ignore_index, str reduction, float label_smoothing, Tensor alpha"
#define POWERGRAD_OPTIONS_WITH_DEFAULTS                                  \
  "Tensor? weight=None, int ignore_index=-100, str reduction=\"mean\", " \
  "float label_smoothing=0.0, *, Tensor alpha"

// In the order of torch.nn.functional.cross_entropy.
struct CrossEntropyOptions {
  OptionalTensor weight;
  int64_t ignore_index;
  Reduction reduction;
  double label_smoothing;
  at::Tensor alpha;

  bool has_weight() const { return weight.has_value() && weight->defined(); }
  CrossEntropyOptions with(Reduction other) const;

  // As arguments of an operator; alpha may come as another type, of which as_tensor makes a tensor.
  template <class Alpha>
  using ArgumentsWith = Types<const OptionalTensor&, int64_t, std::string_view, double, Alpha>;
  using Arguments = ArgumentsWith<const at::Tensor&>;
  template <class Alpha, auto as_tensor>
  static CrossEntropyOptions make(const OptionalTensor& weight, int64_t ignore_index,
                                  std::string_view reduction, double label_smoothing, Alpha alpha) {
    return {weight, ignore_index, parse_reduction(reduction), label_smoothing, as_tensor(alpha)};
  }
  static const at::Tensor& itself(const at::Tensor& alpha) { return alpha; }
  static constexpr auto from = make<const at::Tensor&, itself>;
  std::tuple<const OptionalTensor&, int64_t, std::string_view, double, const at::Tensor&>
  arguments() const {
    return {weight, ignore_index, name_of(reduction), label_smoothing, alpha};
  }

  // Saves the options for backward, with `tensors`.
  void save(torch::autograd::AutogradContext* context, std::vector<at::Tensor> tensors) const;
  // Takes the options' tensors from the end of what was saved.
  static CrossEntropyOptions load(torch::autograd::AutogradContext* context,
                                  std::vector<at::Tensor>& saved);
  // The saved reduction alone, whether or not the tensors can still be used.
  static Reduction load_reduction(torch::autograd::AutogradContext* context);
};

}  // namespace powergrad

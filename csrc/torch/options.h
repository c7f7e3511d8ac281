// The options of cross-entropy as one argument: of every function that takes them, of the schemas
// and of autograd. What they are called one by one is written here and in check_cross_entropy.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "powergrad.h"
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
#define POWERGRAD_OPTIONS                                                                  \
  "Tensor? weight, int ignore_index, str reduction, float label_smoothing, Tensor alpha, " \
  "Tensor? row_weight, float z_loss"
#define POWERGRAD_OPTIONS_WITH_DEFAULTS                                   \
  "Tensor? weight=None, int ignore_index=-100, str reduction=\"mean\", "  \
  "float label_smoothing=0.0, *, Tensor alpha, Tensor? row_weight=None, " \
  "float z_loss=0.0"

// In the order of torch.nn.functional.cross_entropy, then those that it does not have.
struct CrossEntropyOptions {
  OptionalTensor weight;
  int64_t ignore_index;
  Reduction reduction;
  double label_smoothing;
  at::Tensor alpha;
  OptionalTensor row_weight;  // a number for each row, in the shape of an index target
  double z_loss;

  bool has_weight() const { return weight.has_value() && weight->defined(); }
  bool has_row_weight() const { return row_weight.has_value() && row_weight->defined(); }
  CrossEntropyOptions with(Reduction other) const;
  // Those of some rows, where all rows are one dimension.
  CrossEntropyOptions of_rows(int64_t first, int64_t count) const;

  // Which rows of a target count; undefined: all do.
  at::Tensor rows_that_count(const at::Tensor& target) const;

  // How many statistics of a row backward reads: Statistic, then r of "1 + r" for z-loss.
  int64_t statistics() const { return z_loss != 0.0 ? kStatistics + 1 : kStatistics; }

  // As arguments of an operator; alpha may come as another type, of which as_tensor makes a tensor.
  template <class Alpha>
  using ArgumentsWith = Types<const OptionalTensor&, int64_t, std::string_view, double, Alpha,
                              const OptionalTensor&, double>;
  using Arguments = ArgumentsWith<const at::Tensor&>;
  template <class Alpha, auto as_tensor>
  static CrossEntropyOptions make(const OptionalTensor& weight, int64_t ignore_index,
                                  std::string_view reduction, double label_smoothing, Alpha alpha,
                                  const OptionalTensor& row_weight, double z_loss) {
    return {weight,     ignore_index, parse_reduction(reduction), label_smoothing, as_tensor(alpha),
            row_weight, z_loss};
  }
  static const at::Tensor& itself(const at::Tensor& alpha) { return alpha; }
  static constexpr auto from = make<const at::Tensor&, itself>;
  std::tuple<const OptionalTensor&, int64_t, std::string_view, double, const at::Tensor&,
             const OptionalTensor&, double>
  arguments() const {
    return {weight, ignore_index, name_of(reduction), label_smoothing, alpha, row_weight, z_loss};
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

#include "torch/options.h"

#include <ATen/TensorOperators.h>
#include <c10/util/Exception.h>
#include "torch/autograd.h"

namespace powergrad {
namespace {

constexpr std::string_view kReductions[] = {"none", "mean", "sum"};  // in the order of the enum

at::Tensor take_last(std::vector<at::Tensor>& tensors) {
  at::Tensor last = std::move(tensors.back());
  tensors.pop_back();
  return last;
}

}  // namespace

Reduction parse_reduction(std::string_view name) {
  for (const Reduction reduction : {Reduction::mean, Reduction::none, Reduction::sum}) {
    if (name == name_of(reduction)) return reduction;
  }
  TORCH_CHECK_VALUE(false, name, " is not a valid value for reduction",
                    " (expected 'none', 'mean' or 'sum')");
}

std::string_view name_of(Reduction reduction) { return kReductions[static_cast<int>(reduction)]; }

CrossEntropyOptions CrossEntropyOptions::with(Reduction other) const {
  CrossEntropyOptions result = *this;
  result.reduction = other;
  return result;
}

CrossEntropyOptions CrossEntropyOptions::of_rows(int64_t first, int64_t count) const {
  CrossEntropyOptions result = *this;
  if (has_row_weight()) result.row_weight = row_weight->narrow(0, first, count);
  return result;
}

at::Tensor CrossEntropyOptions::rows_that_count(const at::Tensor& target) const {
  at::Tensor counts;
  if (!at::isFloatingType(target.scalar_type())) counts = target.ne(ignore_index);
  if (!has_row_weight()) return counts;
  const at::Tensor is_weighted = row_weight->ne(0);
  return counts.defined() ? counts.logical_and(is_weighted) : is_weighted;
}

void CrossEntropyOptions::save(torch::autograd::AutogradContext* context,
                               std::vector<at::Tensor> tensors) const {
  tensors.push_back(weight.value_or(at::Tensor()));
  tensors.push_back(row_weight.value_or(at::Tensor()));
  tensors.push_back(savable(alpha));
  powergrad::save(context, std::move(tensors));
  context->saved_data["options"] = c10::ivalue::Tuple::create(
      {ignore_index, static_cast<int64_t>(reduction), label_smoothing, z_loss});
}

CrossEntropyOptions CrossEntropyOptions::load(torch::autograd::AutogradContext* context,
                                              std::vector<at::Tensor>& saved) {
  const auto plain = context->saved_data["options"].toTuple();
  const auto& elements = plain->elements();
  CrossEntropyOptions options;
  options.alpha = take_last(saved);
  if (at::Tensor rows = take_last(saved); rows.defined()) options.row_weight = std::move(rows);
  if (at::Tensor weight = take_last(saved); weight.defined()) options.weight = std::move(weight);
  options.ignore_index = elements[0].toInt();
  options.reduction = load_reduction(context);
  options.label_smoothing = elements[2].toDouble();
  options.z_loss = elements[3].toDouble();
  return options;
}

Reduction CrossEntropyOptions::load_reduction(torch::autograd::AutogradContext* context) {
  const auto plain = context->saved_data["options"].toTuple();
  return static_cast<Reduction>(plain->elements()[1].toInt());
}

}  // namespace powergrad

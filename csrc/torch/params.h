// What filling a struct from tensors has in common between operators.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <vector>

#include "powergrad.h"
#include "torch/checks.h"
#include "torch/layout.h"

namespace powergrad {

inline DataType data_type_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return DataType::float32;
    case at::kBFloat16:
      return DataType::bfloat16;
    case at::kHalf:
      return DataType::float16;
    case at::kDouble:
      return DataType::float64;
    default:
      TORCH_INTERNAL_ASSERT(false, "unchecked type ", tensor.scalar_type());
  }
}

// Logits in a layout that the kernels read in place; a copy where theirs is not one.
struct ReadableLogits {
  at::Tensor tensor;
  Layout layout;

  ReadableLogits(const at::Tensor& input, int64_t class_dim) : tensor(input) {
    auto found = find_layout(tensor, class_dim);
    if (!found) {
      tensor = input.contiguous();
      found = find_layout(tensor, class_dim);
    }
    if (!found) {
      tensor = input.movedim(class_dim, -1).contiguous().movedim(-1, class_dim);
      found = find_layout(tensor, class_dim);
    }
    layout = *found;
  }
  Strides strides() const { return *strides_in(layout, tensor); }
  at::TensorOptions accumulate_options() const {
    return tensor.options().dtype(accumulate_type(tensor));
  }
};

// alpha for the kernels: its checked value where it is on the CPU; on a GPU its address, since
// reading it would synchronise.
class Alpha {
 public:
  explicit Alpha(const at::Tensor& alpha)
      : value_(alpha.is_cpu() ? alpha_value(alpha) : 0.0),
        on_device_(alpha.is_cpu() ? at::Tensor() : alpha.to(at::kDouble)) {}

  template <class Params>
  void fill(Params& params) const {
    params.alpha = value_;
    params.alpha_on_device = on_device_.defined() ? on_device_.const_data_ptr<double>() : nullptr;
  }

 private:
  double value_;
  at::Tensor on_device_;
};

inline void check_total_weight(const at::Tensor& total_weight, c10::Device device) {
  TORCH_CHECK(total_weight.dim() == 0 && at::isFloatingType(total_weight.scalar_type()) &&
                  total_weight.device() == device,
              "total_weight must be what the forward operator returned (a 0-d float64 tensor on ",
              device, "), got ", total_weight.scalar_type(), " of shape ", total_weight.sizes(),
              " on ", total_weight.device());
}

// Statistics as the kernels read them; hooks on saved tensors may have given them back otherwise.
inline at::Tensor readable_statistics(const at::Tensor& statistics, const at::Tensor& input,
                                      int64_t count, const Shape& shape) {
  const std::vector<int64_t> expected{count, shape.rows()};
  TORCH_CHECK(statistics.sizes() == at::IntArrayRef(expected) &&
                  at::isFloatingType(statistics.scalar_type()) &&
                  statistics.device() == input.device(),
              "statistics must be what the forward operator returned for this input (",
              accumulate_type(input), " of shape ", at::IntArrayRef(expected), " on ",
              input.device(), "), got ", statistics.scalar_type(), " of shape ", statistics.sizes(),
              " on ", statistics.device());
  return statistics.to(accumulate_type(input)).contiguous();
}

}  // namespace powergrad

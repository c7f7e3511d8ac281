#include "torch/layout.h"

#include <ATen/ops/empty_strided.h>

#include <c10/util/SmallVector.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "torch/allocation.h"

namespace powergrad {
namespace {

// Across rows the kernels number classes in float.
constexpr int64_t kMostClassesAcrossRows = int64_t{1} << 24;

struct Dimension {
  int64_t size;
  int64_t stride;
};
using Dimensions = c10::SmallVector<Dimension, 5>;  // no allocation for most tensors

// The dimensions that rows are made of, [first, last) in the order of the tensor without its class
// dimension.
Dimensions row_dimensions(const at::Tensor& tensor, int64_t class_dim) {
  Dimensions dimensions;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (d != class_dim) dimensions.push_back({tensor.size(d), tensor.stride(d)});
  }
  return dimensions;
}

// One size and stride for a run of dimensions, if one stride walks them all.
std::optional<Dimension> collapse(const Dimension* begin, const Dimension* end) {
  Dimension result{1, 1};
  bool found = false;
  for (const Dimension* d = end; d-- != begin;) {
    if (d->size == 1) continue;
    if (found && d->stride != result.stride * result.size) return std::nullopt;
    if (!found) result.stride = d->stride;
    result.size *= d->size;
    found = true;
  }
  return result;
}

// A dense tensor in this layout.
at::Tensor empty_in(const Layout& layout, at::IntArrayRef sizes, const at::TensorOptions& options) {
  std::vector<int64_t> order;  // dimensions from the slowest to the fastest
  for (int64_t d = 0; d < static_cast<int64_t>(sizes.size()); ++d) {
    if (d != layout.class_dim) order.push_back(d);
  }
  const int64_t position = layout.contiguous_rows ? order.size() : layout.outer_dims;
  order.insert(order.begin() + position, layout.class_dim);
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    strides[*d] = stride;
    stride *= std::max<int64_t>(sizes[*d], 1);
  }
  const at::Tensor tensor = at::empty_strided(sizes, strides, options);
  advise_huge_pages(tensor);
  return tensor;
}

}  // namespace

std::optional<Layout> find_layout(const at::Tensor& tensor, int64_t class_dim) {
  const Dimensions dimensions = row_dimensions(tensor, class_dim);
  const Dimension* begin = dimensions.data();
  const Dimension* end = begin + dimensions.size();
  const int64_t classes = tensor.size(class_dim);
  if (tensor.numel() == 0) {  // nothing to read: any strides will do
    int64_t rows = 1;
    for (const Dimension& d : dimensions) rows *= d.size;
    return Layout{{rows, classes, 1}, class_dim, end - begin, /*contiguous_rows=*/true};
  }
  const bool contiguous_rows = classes <= 1 || tensor.stride(class_dim) == 1;
  if (!contiguous_rows && classes > kMostClassesAcrossRows) return std::nullopt;
  // The longest outer group first for contiguous rows (usually all of them), the longest inner
  // group first otherwise.
  for (int64_t i = 0; i <= end - begin; ++i) {
    const int64_t outer_dims = contiguous_rows ? (end - begin) - i : i;
    const auto outer = collapse(begin, begin + outer_dims);
    const auto inner = collapse(begin + outer_dims, end);
    if (!outer || !inner) continue;
    if (!contiguous_rows && (inner->size == 1 || inner->stride != 1)) continue;
    return Layout{{outer->size, classes, inner->size}, class_dim, outer_dims, contiguous_rows};
  }
  return std::nullopt;
}

std::optional<Strides> strides_in(const Layout& layout, const at::Tensor& tensor) {
  if (tensor.numel() == 0) return Strides{0, 1, 0};
  const Dimensions dimensions = row_dimensions(tensor, layout.class_dim);
  const Dimension* begin = dimensions.data();
  const auto outer = collapse(begin, begin + layout.outer_dims);
  const auto inner = collapse(begin + layout.outer_dims, begin + dimensions.size());
  if (!outer || !inner) return std::nullopt;
  const int64_t class_stride = layout.shape.classes <= 1 ? 1 : tensor.stride(layout.class_dim);
  if (layout.contiguous_rows ? class_stride != 1 : inner->stride != 1) return std::nullopt;
  // A class stride of 1 would tell the kernels that rows are contiguous.
  if (!layout.contiguous_rows && class_stride == 1) return std::nullopt;
  return Strides{outer->stride, class_stride, inner->stride};
}

at::Tensor readable_in(const Layout& layout, const at::Tensor& tensor) {
  if (strides_in(layout, tensor)) return tensor;
  return empty_in(layout, tensor.sizes(), tensor.options()).copy_(tensor);
}

Destination::Destination(const Layout& layout, at::Tensor result)
    : layout_(layout), result_(std::move(result)) {
  buffer_ =
      strides_in(layout, result_) ? result_ : empty_in(layout, result_.sizes(), result_.options());
}

Strides Destination::strides() const { return *strides_in(layout_, buffer_); }

at::Tensor Destination::finish() const {
  if (!is_direct()) result_.copy_(buffer_);
  return result_;
}

bool is_non_overlapping(const at::Tensor& tensor) {
  Dimensions dimensions;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) > 1) dimensions.push_back({tensor.size(d), tensor.stride(d)});
  }
  std::sort(dimensions.begin(), dimensions.end(),
            [](const Dimension& a, const Dimension& b) { return a.stride < b.stride; });
  int64_t reach = 0;  // the furthest element of the faster dimensions
  for (const Dimension& d : dimensions) {
    if (d.stride <= reach) return false;
    reach += d.stride * (d.size - 1);
  }
  return true;
}

at::DimVector row_sizes(const at::Tensor& tensor, int64_t class_dim) {
  at::DimVector sizes(tensor.sizes());
  sizes.erase(sizes.begin() + class_dim);
  return sizes;
}

}  // namespace powergrad

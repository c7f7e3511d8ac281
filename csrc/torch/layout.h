// How a tensor of any shape and strides is seen as the kernels' (outer, classes, inner).
#pragma once

#include <ATen/core/DimVector.h>
#include <ATen/core/Tensor.h>

#include <optional>

#include "powergrad.h"

namespace powergrad {

// The dimensions other than the class dimension, in their order, fall into an outer group and an
// inner group; each must be walkable with one stride. The same split serves every tensor of a call.
struct Layout {
  Shape shape;
  int64_t class_dim;
  int64_t outer_dims;    // how many of the other dimensions are outer
  bool contiguous_rows;  // classes have stride 1; otherwise neighbouring rows have
};

// The layout in which the kernels can read `tensor` in place, if there is one.
std::optional<Layout> find_layout(const at::Tensor& tensor, int64_t class_dim);

// The strides of `tensor` in this layout, if it can be read so.
std::optional<Strides> strides_in(const Layout& layout, const at::Tensor& tensor);

// `tensor` if strides_in has an answer for it, else a copy for which it has.
at::Tensor readable_in(const Layout& layout, const at::Tensor& tensor);

// A new tensor for the kernels to write, through a buffer in this layout where `result` has other
// strides than the kernels can write.
class Destination {
 public:
  Destination(const Layout& layout, at::Tensor result);
  void* data() const { return buffer_.mutable_data_ptr(); }
  Strides strides() const;
  // Whether the kernels write the result itself.
  bool is_direct() const { return buffer_.is_same(result_); }
  // To be called once the buffer is written.
  at::Tensor finish() const;

 private:
  Layout layout_;
  at::Tensor result_;
  at::Tensor buffer_;
};

// No two indices share an element.
bool is_non_overlapping(const at::Tensor& tensor);

// The sizes of one value per row: the tensor's own without the class dimension.
at::DimVector row_sizes(const at::Tensor& tensor, int64_t class_dim);

}  // namespace powergrad

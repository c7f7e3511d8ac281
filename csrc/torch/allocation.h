// New tensors of the operators. On the CPU they are made without another round through the
// dispatcher, which for a handful of rows costs as much as the kernel.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

namespace powergrad {

// First touch of fresh memory costs one fault per page: on Linux, ask for 2 MiB pages on the part
// of the allocation that can have them (128 MiB: 32768 faults become a few hundred).
void advise_huge_pages(const at::Tensor& tensor);

inline at::Tensor new_empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  if (!options.device().is_cpu()) return at::empty(sizes, options);
  const at::Tensor tensor = at::detail::empty_cpu(sizes, options);
  advise_huge_pages(tensor);
  return tensor;
}

inline at::Tensor new_empty_like(const at::Tensor& tensor) {
  if (!tensor.is_cpu() || !tensor.is_non_overlapping_and_dense()) return at::empty_like(tensor);
  const at::Tensor result =
      at::detail::empty_strided_cpu(tensor.sizes(), tensor.strides(), tensor.options());
  advise_huge_pages(result);
  return result;
}

}  // namespace powergrad

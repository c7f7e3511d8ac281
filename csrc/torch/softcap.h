// Capped logits of the last layer, contiguous, where they lie.
#pragma once

#include <ATen/core/Tensor.h>

namespace powergrad {

// logits = softcap * tanh(logits)
void softcap_(at::Tensor& logits, double softcap);

// gradient *= 1 - (capped / softcap)^2, the derivative. `capped` is overwritten on a GPU.
void softcap_backward_(at::Tensor& gradient, at::Tensor& capped, double softcap);

}  // namespace powergrad

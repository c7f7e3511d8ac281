#include "torch/softcap.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/tanh_backward.h>

#include "torch/instruction_set.h"
#include "torch/params.h"

namespace powergrad {
namespace {

// each(kernels, first, count) for the elements of a tensor on the CPU, in parallel.
template <class Each>
void for_each_range(const at::Tensor& tensor, const Each& each) {
  constexpr int64_t kWorthAThread = 16384;
  const KernelTable& kernels =
      *active_instruction_set().tables[static_cast<int>(data_type_of(tensor))];
  at::parallel_for(0, tensor.numel(), kWorthAThread,
                   [&](int64_t begin, int64_t end) { each(kernels, begin, end - begin); });
}

char* element(const at::Tensor& tensor, int64_t index) {
  return static_cast<char*>(tensor.mutable_data_ptr()) + index * tensor.element_size();
}

}  // namespace

void softcap_(at::Tensor& logits, double softcap) {
  if (!logits.is_cpu()) {
    logits.tanh_().mul_(softcap);
    return;
  }
  for_each_range(logits, [&](const KernelTable& kernels, int64_t first, int64_t count) {
    kernels.softcap(element(logits, first), count, softcap);
  });
}

void softcap_backward_(at::Tensor& gradient, at::Tensor& capped, double softcap) {
  if (!gradient.is_cpu()) {
    at::tanh_backward_out(gradient, gradient, capped.div_(softcap));
    return;
  }
  for_each_range(gradient, [&](const KernelTable& kernels, int64_t first, int64_t count) {
    kernels.softcap_backward(element(capped, first), element(gradient, first), count, softcap);
  });
}

}  // namespace powergrad

#include "torch/allocation.h"

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace powergrad {

void advise_huge_pages(const at::Tensor& tensor) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = uintptr_t{1} << 21;
  if (!tensor.is_cpu() || tensor.nbytes() < 2 * kHugePage) return;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t first = (begin + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t last = (begin + tensor.nbytes()) & ~(kHugePage - 1);
  // Advice: a kernel without huge pages refuses it and nothing is lost.
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)tensor;
#endif
}

}  // namespace powergrad

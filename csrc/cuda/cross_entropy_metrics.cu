// Cross-entropy forward with metrics: one kernel for every alpha, with and without gradient.
#include "cuda/cross_entropy_forward.cuh"

namespace powergrad {

cudaError_t launch_cross_entropy_metrics(const CrossEntropyParams& p, cudaStream_t stream) {
  return with_rows_and_target(p, [&](auto rows, auto dense_target) {
    using Rows = typename decltype(rows)::Type;
    return launch<Rows, EntropyTerms, decltype(dense_target)::value, true>(p, stream);
  });
}

}  // namespace powergrad

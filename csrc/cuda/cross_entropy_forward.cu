// Cross-entropy forward without metrics.
#include "cuda/cross_entropy_forward.cuh"

namespace powergrad {

cudaError_t launch_cross_entropy_forward(const CrossEntropyParams& p, cudaStream_t stream) {
  if (p.shape.rows() == 0) return cudaSuccess;
  if (has_metrics(p)) return launch_cross_entropy_metrics(p, stream);
  return with_rows_and_target(p, [&](auto rows, auto dense_target) {
    using Rows = typename decltype(rows)::Type;
    constexpr bool kDenseTarget = decltype(dense_target)::value;
    return with_kind<Rows, kDenseTarget>(p, [&](auto kind) {
      using Kind = decltype(kind);
      if constexpr (!std::is_same_v<Kind, NoAlpha>) {
        if (p.gradient != nullptr) return launch<Rows, Kind, kDenseTarget, true>(p, stream);
      }
      return launch<Rows, Kind, kDenseTarget, false>(p, stream);
    });
  });
}

}  // namespace powergrad

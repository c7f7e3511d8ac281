// Log-softmax forward: log-probabilities, and the statistics of each row that backward needs.
//
// Memory: the logits are read once, the output is written once. Rows that do not fit into shared
// memory are read twice.
#include "cuda/launch.cuh"
#include "cuda/launchers.h"
#include "cuda/softmax.cuh"

namespace powergrad {
namespace {

template <class Rows, class Kind>
__global__ void __launch_bounds__(kMostThreadsOf<typename Rows::Element>, kLeastBlocks<Rows, false>)
    log_softmax_forward_kernel(const LogSoftmaxParams p, const Plan plan,
                               const Alpha<AccumulateOf<typename Rows::Element>> alpha) {
  using Storage = typename Rows::Element;
  using Scalar = AccumulateOf<Storage>;
  using Reduction = SoftmaxReduction<Rows, Kind, false>;
  const Rows rows(plan, p.shape, p.logits, p.logits_strides, static_cast<int>(blockIdx.x));
  const auto logits =
      rows.shared_tensor(0, static_cast<const Storage*>(p.logits), p.logits_strides);
  const Evaluator<Kind, Scalar> evaluate(alpha);
  const Reduction reduction(plan, rows, logits, {}, evaluate);
  reduction.copy_in(0);
  typename Reduction::State state[Rows::kRows];
  reduction.run(rows.active, state);

  Scalar log_sum[Rows::kRows];
#pragma unroll
  for (int r = 0; r < Rows::kRows; ++r) {
    log_sum[r] = std::log1p(state[r].sumexp_m1 + nan_if_infinite(state[r].maximum));
    if (!rows.is_leader() || p.statistics == nullptr) continue;
    Scalar* statistics = static_cast<Scalar*>(p.statistics) + rows.row + r;
    statistics[kMaximum * plan.rows] = state[r].maximum;
    statistics[kAlphaSumexpM1 * plan.rows] =
        state[r].alpha_sumexp_m1 + nan_if_infinite(state[r].maximum);
  }

  const auto output = rows.global_view(static_cast<Storage*>(p.output), p.output_strides);
  for (int pass = rows.passes() - 1; pass >= 0; --pass) {
    reduction.reload(pass);
    rows.template for_each_store<kUnroll<Storage, false>>(pass, output, [&](int i, auto is_whole) {
      const Numbers<Storage, Rows::kElements> z(logits.vectors.get(i));
      Scalar values[Rows::kElements];
#pragma unroll
      for (int e = 0; e < Rows::kElements; ++e) {
        const int r = Rows::kRows == 1 ? 0 : e;
        // The difference first: it is exact or nearly so, however far from 0 the row lies.
        values[e] = (z.at[e] - state[r].maximum) - log_sum[r];
      }
      rows.store(output, pass, i, packed<Storage>(values), is_whole);
    });
  }
  rows.finish_stores(output);
  leave_cluster(plan);
}

template <class Rows, class Kind>
cudaError_t launch(const LogSoftmaxParams& p, cudaStream_t stream) {
  const Work work = SoftmaxReduction<Rows, Kind, false>::work(work_of<Rows>());
  return launch_rows<Rows>(log_softmax_forward_kernel<Rows, Kind>, p, work, stream);
}

}  // namespace

cudaError_t launch_log_softmax_forward(const LogSoftmaxParams& p, cudaStream_t stream) {
  if (p.shape.rows() == 0 || p.shape.classes == 0) return cudaSuccess;
  return with_rows(p.shape, p.dtype, {{p.logits, p.logits_strides}, {p.output, p.output_strides}},
                   [&](auto rows) {
                     using Rows = typename decltype(rows)::Type;
                     return with_kind<Rows, false>(
                         p, [&](auto kind) { return launch<Rows, decltype(kind)>(p, stream); });
                   });
}

}  // namespace powergrad

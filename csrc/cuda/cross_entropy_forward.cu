// Cross-entropy forward: the loss and the statistics of each row and, if asked for, the gradient.
//
// Memory: the logits are read once, the gradient is written once. Rows that do not fit into shared
// memory are read again for the gradient.
#include "cuda/cross_entropy_gradient.cuh"
#include "cuda/launch.cuh"
#include "cuda/launchers.h"
#include "cuda/softmax.cuh"

namespace powergrad {
namespace {

// Of a thread's rows; 0 for rows that do not count.
template <class Scalar, int kRows>
struct RowResults {
  Scalar loss[kRows] = {};
  Scalar maximum[kRows] = {};
  Scalar sumexp_m1[kRows] = {};
  Scalar alpha_sumexp_m1[kRows] = {};
  Scalar target_weight[kRows] = {};

  __device__ void write(const CrossEntropyParams& p, int64_t row) const {
    write_numbers(static_cast<Scalar*>(p.losses) + row, loss);
    if (p.sumexp_m1 != nullptr) write_numbers(static_cast<Scalar*>(p.sumexp_m1) + row, sumexp_m1);
    if (p.statistics == nullptr) return;
    Scalar* statistics = static_cast<Scalar*>(p.statistics) + row;
    const int64_t rows = p.shape.rows();
    write_numbers(statistics + kMaximum * rows, maximum);
    write_numbers(statistics + kAlphaSumexpM1 * rows, alpha_sumexp_m1);
    write_numbers(statistics + kTargetWeight * rows, target_weight);
  }
};

template <class Rows, class Kind, bool kDenseTarget, bool kGradient>
__global__ void __launch_bounds__(kMostThreadsOf<typename Rows::Element>,
                                  kLeastBlocks<Rows, kDenseTarget>)
    cross_entropy_forward_kernel(const CrossEntropyParams p, const Plan plan,
                                 const Alpha<AccumulateOf<typename Rows::Element>> alpha) {
  using Storage = typename Rows::Element;
  using Reduction = SoftmaxReduction<Rows, Kind, kDenseTarget>;
  using Scalar = AccumulateOf<Storage>;
  const Rows rows(plan, p.shape, p.logits, p.logits_strides, static_cast<int>(blockIdx.x));
  const auto logits =
      rows.shared_tensor(0, static_cast<const Storage*>(p.logits), p.logits_strides);
  const DenseTargetIf<kDenseTarget, Rows> dense_target(p, rows);
  const Evaluator<Kind, Scalar> evaluate(alpha);
  const Reduction reduction(plan, rows, logits, dense_target, evaluate);
  reduction.copy_in(0);
  const RowTargets<Rows> targets(p, rows, logits, /*writes_losses=*/rows.is_leader());
  typename Reduction::State state[Rows::kRows];
  reduction.run(targets.any_counts(), state);

  SoftmaxRow<Scalar> softmax[Rows::kRows];
  RowResults<Scalar, Rows::kRows> results;
#pragma unroll
  for (int r = 0; r < Rows::kRows; ++r) {
    const Scalar point_weight = targets.weights(p, r).point_weight;
    Scalar target_weight = point_weight;
    Scalar distance = 0;
    if constexpr (kDenseTarget) {
      target_weight += p.target_probabilities != nullptr ? state[r].target_weight
                                                         : static_cast<Scalar>(smoothing_weight(p));
      distance = state[r].distance;
    }
    if (p.sumexp_m1 == nullptr) {
      state[r].sumexp_m1 += nan_if_infinite(state[r].maximum);
      state[r].alpha_sumexp_m1 += nan_if_infinite(state[r].maximum);
    }
    softmax[r] = SoftmaxRow<Scalar>(state[r].maximum, state[r].alpha_sumexp_m1, target_weight);
    if (!rows.is_leader() || !targets.counts(r)) continue;
    if (targets.is_class(r)) {
      distance += point_weight * (reference_of(state[r].maximum) - targets.logit[r]);
    }
    // Both terms are >= 0, so nothing cancels.
    if (p.sumexp_m1 == nullptr) distance += target_weight * std::log1p(state[r].sumexp_m1);
    results.loss[r] = distance;
    results.maximum[r] = state[r].maximum;
    results.sumexp_m1[r] = state[r].sumexp_m1;
    results.alpha_sumexp_m1[r] = state[r].alpha_sumexp_m1;
    results.target_weight[r] = target_weight;
  }
  if (rows.is_leader()) results.write(p, rows.row);

  if constexpr (kGradient) {
    const GradientMap<Rows, kDenseTarget> map(p, alpha.scaled(), rows, logits, dense_target,
                                              targets, softmax);
    // The last pass is still in shared memory.
    for (int pass = rows.passes() - 1; pass >= 0; --pass) {
      reduction.reload(pass);
      map.write(pass);
    }
    map.finish();
  }
  leave_cluster(plan);
}

template <class Rows, class Kind, bool kDenseTarget, bool kGradient>
cudaError_t launch(const CrossEntropyParams& p, cudaStream_t stream) {
  Work work = SoftmaxReduction<Rows, Kind, kDenseTarget>::work(work_of<Rows>());
  work.tensors = has_shared_probabilities(p) ? 2 : 1;
  return launch_rows<Rows>(cross_entropy_forward_kernel<Rows, Kind, kDenseTarget, kGradient>, p,
                           work, stream);
}

}  // namespace

cudaError_t launch_cross_entropy_forward(const CrossEntropyParams& p, cudaStream_t stream) {
  if (p.shape.rows() == 0) return cudaSuccess;
  return with_rows(p.shape, p.dtype,
                   {{p.logits, p.logits_strides},
                    {p.gradient, p.gradient_strides},
                    {p.target_probabilities, p.target_strides}},
                   [&](auto rows) {
                     using Rows = typename decltype(rows)::Type;
                     return with_bool(has_dense_target(p), [&](auto dense_target) {
                       constexpr bool kDenseTarget = decltype(dense_target)::value;
                       return with_kind<Rows, kDenseTarget>(p, [&](auto kind) {
                         using Kind = decltype(kind);
                         if constexpr (!std::is_same_v<Kind, NoAlpha>) {
                           if (p.gradient != nullptr) {
                             return launch<Rows, Kind, kDenseTarget, true>(p, stream);
                           }
                         }
                         return launch<Rows, Kind, kDenseTarget, false>(p, stream);
                       });
                     });
                   });
}

}  // namespace powergrad

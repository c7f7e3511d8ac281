// Cross-entropy forward: the loss and the statistics of each row and, if asked for, the gradient
// and the metrics.
//
// Memory: the logits are read once, the gradient is written once. Rows that do not fit into shared
// memory are read again for the gradient.
#pragma once

#include "cuda/cross_entropy_gradient.cuh"
#include "cuda/launch.cuh"
#include "cuda/launchers.h"
#include "cuda/softmax.cuh"

namespace powergrad {

// As launch_cross_entropy_forward, where metrics are asked for; compiled on its own.
cudaError_t launch_cross_entropy_metrics(const CrossEntropyParams& params, cudaStream_t stream);

namespace {

// Of a thread's rows; 0, and sums of -1, for rows that do not count (shards.h).
template <class Scalar, int kRows>
struct RowResults {
  Scalar loss[kRows] = {};
  Scalar maximum[kRows] = {};
  Scalar sumexp_m1[kRows];
  Scalar alpha_sumexp_m1[kRows] = {};
  Scalar target_weight[kRows] = {};

  __device__ RowResults() {
#pragma unroll
    for (int r = 0; r < kRows; ++r) sumexp_m1[r] = -1;
  }
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

// Of a row whose leader calls it.
template <class Scalar>
__device__ void write_metrics_of(const CrossEntropyParams& p, int64_t row, bool counts,
                                 Scalar z_target, const SoftmaxState<Scalar>& state,
                                 Scalar log_sum) {
  if (!counts) {
    write_no_metrics<Scalar>(p, row);
  } else if (p.is_shard) {
    write_metrics_of_shard(p, row, z_target, state.entropy_sum);
  } else {
    compute_metrics(p, p.shape.rows(), row, state.maximum, z_target, state.sumexp_m1, log_sum,
                    state.entropy_sum);
  }
}

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
    if (!p.is_shard) {
      state[r].sumexp_m1 += nan_if_infinite(state[r].maximum);
      state[r].alpha_sumexp_m1 += nan_if_infinite(state[r].maximum);
    }
    Scalar log_sum = 0;
    if (rows.is_leader() || has_z_loss(p)) log_sum = std::log1p(state[r].sumexp_m1);
    if constexpr (kGradient) {
      Scalar z = 0;
      if (has_z_loss(p)) {
        keep_in_branch();
        z = z_loss_weight(p, state[r].maximum, log_sum);
      }
      softmax[r] = SoftmaxRow<Scalar>(state[r].maximum, state[r].alpha_sumexp_m1, target_weight, z);
    }
    if (!rows.is_leader()) continue;
    if constexpr (kHasEntropy<Kind>) {
      write_metrics_of(p, rows.row + r, targets.counts(r), targets.logit[r], state[r], log_sum);
    }
    if (!targets.counts(r)) continue;
    if (targets.is_class(r)) {
      distance += point_weight * (reference_of(state[r].maximum) - targets.logit[r]);
    }
    if (!p.is_shard) {
      // Both terms are >= 0, so nothing cancels.
      distance = weighted_loss<Scalar>(p, rows.row + r, distance + target_weight * log_sum,
                                       state[r].maximum, log_sum);
    }
    results.loss[r] = distance;
    results.maximum[r] = state[r].maximum;
    results.sumexp_m1[r] = state[r].sumexp_m1;
    results.alpha_sumexp_m1[r] = state[r].alpha_sumexp_m1;
    results.target_weight[r] = target_weight;
  }
  if (rows.is_leader()) results.write(p, rows.row);

  if constexpr (kGradient) {
    // Where metrics are asked for, one kernel serves both.
    if (!kHasEntropy<Kind> || p.gradient != nullptr) {
      const GradientMap<Rows, kDenseTarget> map(p, alpha.scaled(), rows, logits, dense_target,
                                                targets, softmax);
      // The last pass is still in shared memory.
      for (int pass = rows.passes() - 1; pass >= 0; --pass) {
        reduction.reload(pass);
        map.write(pass);
      }
      map.finish();
    }
  }
  if constexpr (Rows::kLayout == RowLayout::contiguous) leave_cluster(plan);
}

template <class Rows, class Kind, bool kDenseTarget, bool kGradient>
cudaError_t launch(const CrossEntropyParams& p, cudaStream_t stream) {
  Work work = SoftmaxReduction<Rows, Kind, kDenseTarget>::work(work_of<Rows>());
  work.tensors = has_shared_probabilities(p) ? 2 : 1;
  return launch_rows<Rows>(cross_entropy_forward_kernel<Rows, Kind, kDenseTarget, kGradient>, p,
                           work, stream);
}

// Calls launch_with(rows, dense_target) with what a kernel is instantiated for.
template <class Function>
cudaError_t with_rows_and_target(const CrossEntropyParams& p, const Function& launch_with) {
  return with_rows(p.shape, p.dtype,
                   {{p.logits, p.logits_strides},
                    {p.gradient, p.gradient_strides},
                    {p.target_probabilities, p.target_strides}},
                   [&](auto rows) { return with_target(p, rows, launch_with); });
}

}  // namespace
}  // namespace powergrad

// Log-softmax backward: dz = g - p' sum(g), cross-entropy's gradient with the upstream gradient g
// for a target, and -1 for a scale.
//
// Memory: g and the logits once, the gradient once. Rows that fit nowhere take g twice.
#include "cuda/exponentials.cuh"
#include "cuda/launch.cuh"
#include "cuda/launchers.h"
#include "cuda/meeting.cuh"

namespace powergrad {
namespace {

template <class Rows>
__global__ void __launch_bounds__(kMostThreadsOf<typename Rows::Element>, kLeastBlocks<Rows, false>)
    log_softmax_backward_kernel(const LogSoftmaxParams p, const Plan plan,
                                const Exponent<AccumulateOf<typename Rows::Element>> exponent) {
  using Storage = typename Rows::Element;
  using Scalar = AccumulateOf<Storage>;
  constexpr int kRows = Rows::kRows;
  constexpr int kElements = Rows::kElements;
  const Rows rows(plan, p.shape, p.logits, p.logits_strides, static_cast<int>(blockIdx.x));
  const auto logits = rows.resident(0, static_cast<const Storage*>(p.logits), p.logits_strides);
  const auto grad_output =
      rows.resident(1, static_cast<const Storage*>(p.grad_output), p.grad_output_strides);
  const Storage lowest = from_number<Storage>(kLowest<Scalar>);

  Scalar sum[kRows] = {};
  for (int round = 0; round < rows.rounds(); ++round) {
    rows.copy_in(grad_output, round, Storage{});
    if (round == rows.rounds() - 1) {
      // What the map begins with is under way while the sum is taken.
      rows.copy_in(logits, round, lowest);
      rows.template wait<1>();
    } else {
      rows.template wait<0>();
    }
    rows.each_run(round, [&](int begin, int end) {
      Scalar terms[kRows] = {};
#pragma unroll 4
      for (int i = begin; i < end; ++i) {
        const Numbers<Storage, kElements> g(grad_output.slots.get(i));
#pragma unroll
        for (int e = 0; e < kElements; ++e) terms[kRows == 1 ? 0 : e] += g.at[e];
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) sum[r] += terms[r];
    });
  }
  const Meeting<Rows> meeting(plan);
  meeting.template in_warp<Addition>(sum);
  meeting.template of_warps<Addition>(0, sum);
  if constexpr (kRows == 1) {
    meet_in_cluster(plan, plan.meeting_bytes(sizeof(sum)), sum[0], MergeSums{});
  }

  const Scalar scale = exponent.scaled();
  SoftmaxRow<Scalar> softmax[kRows];
  const Scalar* statistics = static_cast<const Scalar*>(p.statistics) + rows.row;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    softmax[r] = SoftmaxRow<Scalar>(statistics[kMaximum * plan.rows + r],
                                    statistics[kAlphaSumexpM1 * plan.rows + r], sum[r]);
  }
  const auto gradient = rows.output(static_cast<Storage*>(p.gradient), p.gradient_strides);
  for (int round = rows.rounds() - 1; round >= 0; --round) {
    if (round < rows.rounds() - 1) {
      rows.copy_in(grad_output, round, Storage{});
      rows.copy_in(logits, round, lowest);
    }
    rows.template wait<0>();
    rows.template each_place<kUnroll<Storage, true>>(round, gradient, [&](int i, auto is_whole) {
      const Numbers<Storage, kElements> z(logits.slots.get(i));
      const Numbers<Storage, kElements> g(grad_output.slots.get(i));
      Scalar values[kElements];
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const SoftmaxRow<Scalar>& row = softmax[kRows == 1 ? 0 : e];
        const Scalar powered = exponential((z.at[e] - row.maximum) * scale);
        values[e] = -row.minus_target_from(powered, z.at[e], g.at[e]);
      }
      rows.store(gradient, round, i, packed<Storage>(values), is_whole);
    });
  }
  rows.finish(gradient);
  leave(plan);
}

template <class Rows>
cudaError_t launch(const LogSoftmaxParams& p, cudaStream_t stream) {
  Work work = work_of<Rows>();
  work.tensors = 2;
  work.sums_bytes = Rows::kRows * static_cast<int>(sizeof(AccumulateOf<typename Rows::Element>));
  work.state_bytes = work.sums_bytes;
  return launch_rows<Rows>(log_softmax_backward_kernel<Rows>, p, work, stream);
}

}  // namespace

cudaError_t launch_log_softmax_backward(const LogSoftmaxParams& p, cudaStream_t stream) {
  if (p.shape.rows() == 0 || p.shape.classes == 0) return cudaSuccess;
  return with_rows(p.shape, p.dtype,
                   {{p.logits, p.logits_strides},
                    {p.grad_output, p.grad_output_strides},
                    {p.gradient, p.gradient_strides}},
                   [&](auto rows) { return launch<typename decltype(rows)::Type>(p, stream); });
}

}  // namespace powergrad

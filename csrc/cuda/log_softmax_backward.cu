// Log-softmax backward: dz = g - p' sum(g), which is minus the gradient of cross-entropy with g in
// place of the weighted target.
//
// Memory: g and the logits are read once, the gradient is written once. Rows that do not fit into
// shared memory read g twice.
#include "cuda/exponentials.cuh"
#include "cuda/launch.cuh"
#include "cuda/launchers.h"
#include "cuda/reductions.cuh"

namespace powergrad {
namespace {

template <class Rows>
__global__ void __launch_bounds__(kMostThreadsOf<typename Rows::Element>, kLeastBlocks<Rows, false>)
    log_softmax_backward_kernel(const LogSoftmaxParams p, const Plan plan,
                                const Alpha<AccumulateOf<typename Rows::Element>> alpha) {
  using Storage = typename Rows::Element;
  using Scalar = AccumulateOf<Storage>;
  constexpr int kRows = Rows::kRows;
  constexpr int kElements = Rows::kElements;
  const Rows rows(plan, p.shape, p.logits, p.logits_strides, static_cast<int>(blockIdx.x));
  const auto logits =
      rows.shared_tensor(0, static_cast<const Storage*>(p.logits), p.logits_strides);
  const auto grad_output =
      rows.shared_tensor(1, static_cast<const Storage*>(p.grad_output), p.grad_output_strides);
  const Storage lowest = from_number<Storage>(kLowest<Scalar>);

  Scalar sum[kRows] = {};
  for (int pass = 0; pass < rows.passes(); ++pass) {
    rows.copy_in(grad_output, pass, Storage{});
    if (pass == rows.passes() - 1) {
      // The first logits that the gradient needs are loaded while g is summed.
      rows.copy_in(logits, pass, lowest);
      rows.template wait<1>();
    } else {
      rows.template wait<0>();
    }
    rows.for_each_run(pass, [&](int begin, int end) {
      Scalar terms[kRows] = {};
#pragma unroll 4
      for (int i = begin; i < end; ++i) {
        const Numbers<Storage, kElements> g(grad_output.vectors.get(i));
#pragma unroll
        for (int e = 0; e < kElements; ++e) terms[kRows == 1 ? 0 : e] += g.at[e];
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) sum[r] += terms[r];
    });
  }
  BlockReduction<Rows>(plan).template reduce<Addition>(0, sum);
  if constexpr (kRows == 1) {
    cluster_reduce(plan, plan.reduction_bytes(sizeof(sum)), sum[0], MergeSums{});
  }

  const Scalar scale = alpha.scaled();
  SoftmaxRow<Scalar> softmax[kRows];
  const Scalar* statistics = static_cast<const Scalar*>(p.statistics) + rows.row;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    softmax[r] = SoftmaxRow<Scalar>(statistics[kMaximum * plan.rows + r],
                                    statistics[kAlphaSumexpM1 * plan.rows + r], sum[r]);
  }
  const auto gradient = rows.global_view(static_cast<Storage*>(p.gradient), p.gradient_strides);
  for (int pass = rows.passes() - 1; pass >= 0; --pass) {
    if (pass < rows.passes() - 1) {
      rows.copy_in(grad_output, pass, Storage{});
      rows.copy_in(logits, pass, lowest);
    }
    rows.template wait<0>();
    rows.template for_each_store<kUnroll<Storage, true>>(pass, gradient, [&](int i, auto is_whole) {
      const Numbers<Storage, kElements> z(logits.vectors.get(i));
      const Numbers<Storage, kElements> g(grad_output.vectors.get(i));
      Scalar values[kElements];
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const SoftmaxRow<Scalar>& row = softmax[kRows == 1 ? 0 : e];
        const Scalar powered = exponential((z.at[e] - row.maximum) * scale);
        values[e] = -row.minus_target_from(powered, z.at[e], g.at[e]);
      }
      rows.store(gradient, pass, i, packed<Storage>(values), is_whole);
    });
  }
  rows.finish_stores(gradient);
  leave_cluster(plan);
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

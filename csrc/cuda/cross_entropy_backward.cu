// Cross-entropy backward: a map from the logits to the gradient, which may take their place.
//
// Memory: the logits once, the gradient once. Nothing, where forward has written the gradient
// already for the upstream gradient that has come.
#include "cuda/cross_entropy_gradient.cuh"
#include "cuda/launch.cuh"
#include "cuda/launchers.h"

namespace powergrad {
namespace {

// Whether the gradient stands as forward wrote it. The same bits, so that zeros of either sign and
// NaN are no special cases; if they differ, forward is to assume the new one next time.
template <class Scalar>
__device__ bool is_settled(const CrossEntropyParams& p) {
  if (p.speculative_grad_output == nullptr) return false;
  const auto* grad_output = static_cast<const Scalar*>(p.grad_output);
  const auto* assumed = static_cast<const Scalar*>(p.speculative_grad_output);
  if (same_bits(*grad_output, *assumed)) return true;
  if (blockIdx.x == 0 && threadIdx.x == 0 && p.next_speculation != nullptr) {
    *static_cast<Scalar*>(p.next_speculation) = *grad_output;
  }
  return false;
}

template <class Rows, bool kDenseTarget>
__device__ void write_gradient(const CrossEntropyParams& p, const Plan& plan,
                               AccumulateOf<typename Rows::Element> exponent_scale, int block) {
  using Storage = typename Rows::Element;
  using Scalar = AccumulateOf<Storage>;
  const Rows rows(plan, p.shape, p.logits, p.logits_strides, block);
  const auto logits = rows.resident(0, static_cast<const Storage*>(p.logits), p.logits_strides);
  const DenseTargetIf<kDenseTarget, Rows> mass_of(p, rows);
  const auto copy_in = [&](int round) {
    rows.copy_in(logits, round, from_number<Storage>(kLowest<Scalar>));
    if constexpr (kDenseTarget) mass_of.copy_in(round);
  };
  copy_in(0);  // before anything is waited for
  const RowTargets<Rows> targets(p, rows, logits, /*writes_losses=*/false);
  const Scalar* statistics = static_cast<const Scalar*>(p.statistics) + rows.row;
  Scalar maximum[Rows::kRows];
  Scalar alpha_sumexp_m1[Rows::kRows];
  Scalar target_weight_sum[Rows::kRows];
  read_numbers(statistics + kMaximum * plan.rows, maximum);
  read_numbers(statistics + kAlphaSumexpM1 * plan.rows, alpha_sumexp_m1);
  read_numbers(statistics + kTargetWeight * plan.rows, target_weight_sum);
  SoftmaxRow<Scalar> softmax[Rows::kRows];
#pragma unroll
  for (int r = 0; r < Rows::kRows; ++r) {
    softmax[r] = SoftmaxRow<Scalar>(maximum[r], alpha_sumexp_m1[r], target_weight_sum[r]);
  }
  const GradientMap<Rows, kDenseTarget> map(p, exponent_scale, rows, logits, mass_of, targets,
                                            softmax);
  for (int round = 0; round < rows.rounds(); ++round) {
    if (round > 0) copy_in(round);
    rows.template wait<0>();
    map.write(round);
  }
  map.finish();
}

template <class Rows, bool kDenseTarget>
__global__ void __launch_bounds__(kMostThreadsOf<typename Rows::Element>,
                                  kLeastBlocks<Rows, kDenseTarget>)
    cross_entropy_backward_kernel(const CrossEntropyParams p, const Plan plan,
                                  const Exponent<AccumulateOf<typename Rows::Element>> exponent) {
  if (is_settled<AccumulateOf<typename Rows::Element>>(p)) return;
  // A grid that only looks whether there is anything to do is a small one.
  const int blocks = plan.units * plan.parts;
  for (int block = static_cast<int>(blockIdx.x); block < blocks;
       block += static_cast<int>(gridDim.x)) {
    write_gradient<Rows, kDenseTarget>(p, plan, exponent.scaled(), block);
    if (Rows::kLayout == Layout::chunks) __syncthreads();
  }
}

template <class Rows, bool kDenseTarget>
cudaError_t launch(const CrossEntropyParams& p, cudaStream_t stream) {
  Work work = work_of<Rows>();
  work.is_map = true;
  work.tensors = has_narrow_probabilities(p) ? 2 : 1;
  work.is_persistent = p.speculative_grad_output != nullptr;
  return launch_rows<Rows>(cross_entropy_backward_kernel<Rows, kDenseTarget>, p, work, stream);
}

}  // namespace

cudaError_t launch_cross_entropy_backward(const CrossEntropyParams& p, cudaStream_t stream) {
  if (p.shape.rows() == 0) return cudaSuccess;
  return with_rows(p.shape, p.dtype,
                   {{p.logits, p.logits_strides},
                    {p.gradient, p.gradient_strides},
                    {p.target_probabilities, p.target_strides}},
                   [&](auto rows) {
                     using Rows = typename decltype(rows)::Type;
                     return with_bool(has_dense_target(p), [&](auto dense_target) {
                       return launch<Rows, decltype(dense_target)::value>(p, stream);
                     });
                   });
}

}  // namespace powergrad

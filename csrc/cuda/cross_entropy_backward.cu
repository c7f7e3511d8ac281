// Cross-entropy backward: elementwise from the logits to the gradient, which may replace them.
//
// Memory: the logits are read once, the gradient is written once. Neither, where forward has
// already written the gradient for the right grad_output.
#include "cuda/cross_entropy_gradient.cuh"
#include "cuda/launch.cuh"
#include "cuda/launchers.h"

namespace powergrad {
namespace {

// Validates the gradient that forward has written for a speculative grad_output. Bits are compared,
// so that signed zeros and NaN are no special cases. If they differ, the next forward speculates on
// the new one.
template <class Scalar>
__device__ bool is_gradient_valid(const CrossEntropyParams& p) {
  if (p.speculative_grad_output == nullptr) return false;
  const auto* grad_output = static_cast<const Scalar*>(p.grad_output);
  const auto* speculative = static_cast<const Scalar*>(p.speculative_grad_output);
  if (same_bits(*grad_output, *speculative)) return true;
  if (blockIdx.x == 0 && threadIdx.x == 0 && p.next_speculation != nullptr) {
    *static_cast<Scalar*>(p.next_speculation) = *grad_output;
  }
  return false;
}

template <class Rows, bool kDenseTarget>
__device__ void write_gradient(const CrossEntropyParams& p, const Plan& plan,
                               AccumulateOf<typename Rows::Element> alpha_scale, int block) {
  using Storage = typename Rows::Element;
  using Scalar = AccumulateOf<Storage>;
  const Rows rows(plan, p.shape, p.logits, p.logits_strides, block);
  const auto logits =
      rows.shared_tensor(0, static_cast<const Storage*>(p.logits), p.logits_strides);
  const DenseTargetIf<kDenseTarget, Rows> dense_target(p, rows);
  const auto copy_in = [&](int pass) {
    rows.copy_in(logits, pass, from_number<Storage>(kLowest<Scalar>));
    if constexpr (kDenseTarget) dense_target.copy_in(pass);
  };
  copy_in(0);  // before the kernel waits for anything
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
    Scalar z = 0;
    if (has_z_loss(p)) {
      const Scalar log_sum = std::log1p(static_cast<const Scalar*>(p.sumexp_m1)[rows.row + r]);
      z = z_loss_weight(p, maximum[r], log_sum);
    }
    softmax[r] = SoftmaxRow<Scalar>(maximum[r], alpha_sumexp_m1[r], target_weight_sum[r], z);
  }
  const GradientMap<Rows, kDenseTarget> map(p, alpha_scale, rows, logits, dense_target, targets,
                                            softmax);
  for (int pass = 0; pass < rows.passes(); ++pass) {
    if (pass > 0) copy_in(pass);
    rows.template wait<0>();
    map.write(pass);
  }
  map.finish();
}

template <class Rows, bool kDenseTarget>
__global__ void __launch_bounds__(kMostThreadsOf<typename Rows::Element>,
                                  kLeastBlocks<Rows, kDenseTarget>)
    cross_entropy_backward_kernel(const CrossEntropyParams p, const Plan plan,
                                  const Alpha<AccumulateOf<typename Rows::Element>> alpha) {
  if (is_gradient_valid<AccumulateOf<typename Rows::Element>>(p)) return;
  // The grid is small where the kernel may have nothing to do.
  const int blocks = plan.row_groups * plan.blocks_per_row;
  for (int block = static_cast<int>(blockIdx.x); block < blocks;
       block += static_cast<int>(gridDim.x)) {
    write_gradient<Rows, kDenseTarget>(p, plan, alpha.scaled(), block);
    if (Rows::kLayout == RowLayout::packed) __syncthreads();
  }
}

template <class Rows, bool kDenseTarget>
cudaError_t launch(const CrossEntropyParams& p, cudaStream_t stream) {
  Work work = work_of<Rows>();
  work.is_elementwise = true;
  work.tensors = has_shared_probabilities(p) ? 2 : 1;
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
                     return with_target(p, rows, [&](auto rows_of_target, auto dense_target) {
                       using Rows = typename decltype(rows_of_target)::Type;
                       return launch<Rows, decltype(dense_target)::value>(p, stream);
                     });
                   });
}

}  // namespace powergrad

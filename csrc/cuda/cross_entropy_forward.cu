// Cross-entropy forward: the loss of every row, what backward needs of it, and, where it is asked
// for, the gradient while the row is at hand.
//
// Memory: the logits once, and the gradient once if there is one. Rows that fit nowhere are read
// again for the gradient.
#include "cuda/cross_entropy_gradient.cuh"
#include "cuda/launch.cuh"
#include "cuda/launchers.h"
#include "cuda/softmax.cuh"

namespace powergrad {
namespace {

// What forward leaves behind of a thread's rows; 0 of those that do not count.
template <class Scalar, int kRows>
struct RowResults {
  Scalar loss[kRows] = {};
  Scalar maximum[kRows] = {};
  Scalar rest[kRows] = {};
  Scalar alpha_rest[kRows] = {};
  Scalar mass[kRows] = {};

  __device__ void write(const CrossEntropyParams& p, int64_t row) const {
    write_numbers(static_cast<Scalar*>(p.losses) + row, loss);
    if (p.rests != nullptr) write_numbers(static_cast<Scalar*>(p.rests) + row, rest);
    if (p.statistics == nullptr) return;
    Scalar* statistics = static_cast<Scalar*>(p.statistics) + row;
    const int64_t rows = p.shape.rows();
    write_numbers(statistics + kMaximum * rows, maximum);
    write_numbers(statistics + kAlphaRest * rows, alpha_rest);
    write_numbers(statistics + kTargetMass * rows, mass);
  }
};

template <class Rows, class Kind, bool kClassMass, bool kGradient>
__global__ void __launch_bounds__(kMostThreadsOf<typename Rows::Element>,
                                  kLeastBlocks<Rows, kClassMass>)
    cross_entropy_forward_kernel(const CrossEntropyParams p, const Plan plan,
                                 const Exponent<AccumulateOf<typename Rows::Element>> exponent) {
  using Storage = typename Rows::Element;
  using Reduction = SoftmaxReduction<Rows, Kind, kClassMass>;
  using Scalar = AccumulateOf<Storage>;
  const Rows rows(plan, p.shape, p.logits, p.logits_strides, static_cast<int>(blockIdx.x));
  const auto logits = rows.resident(0, static_cast<const Storage*>(p.logits), p.logits_strides);
  const ClassMassIf<kClassMass, Rows> mass_of(p, rows);
  const Evaluator<Kind, Scalar> evaluate(exponent);
  const Reduction reduction(plan, rows, logits, mass_of, evaluate);
  reduction.copy_in(0);
  const RowTargets<Rows> targets(p, rows, logits, /*writes_losses=*/rows.leads());
  typename Reduction::State state[Rows::kRows];
  reduction.run(targets.any_counts(), state);

  SoftmaxRow<Scalar> softmax[Rows::kRows];
  RowResults<Scalar, Rows::kRows> results;
#pragma unroll
  for (int r = 0; r < Rows::kRows; ++r) {
    const Scalar point_mass = targets.mass(p, r).point_mass;
    Scalar mass = point_mass;
    Scalar distance = 0;
    if constexpr (kClassMass) {
      mass += p.target_probabilities != nullptr ? state[r].mass
                                                : static_cast<Scalar>(smoothing_mass(p));
      distance = state[r].distance;
    }
    if (p.rests == nullptr) {
      state[r].rest += poison(state[r].maximum);
      state[r].alpha_rest += poison(state[r].maximum);
    }
    softmax[r] = SoftmaxRow<Scalar>(state[r].maximum, state[r].alpha_rest, mass);
    if (!rows.leads() || !targets.counts(r)) continue;
    if (targets.is_class(r)) {
      distance += point_mass * (reference_of(state[r].maximum) - targets.logit[r]);
    }
    // Both terms are >= 0, so nothing cancels.
    if (p.rests == nullptr) distance += mass * std::log1p(state[r].rest);
    results.loss[r] = distance;
    results.maximum[r] = state[r].maximum;
    results.rest[r] = state[r].rest;
    results.alpha_rest[r] = state[r].alpha_rest;
    results.mass[r] = mass;
  }
  if (rows.leads()) results.write(p, rows.row);

  if constexpr (kGradient) {
    const GradientMap<Rows, kClassMass> map(p, exponent.scaled(), rows, logits, mass_of, targets,
                                            softmax);
    // What was copied last is still there.
    for (int round = rows.rounds() - 1; round >= 0; --round) {
      reduction.copy_again(round);
      map.write(round);
    }
    map.finish();
  }
  leave(plan);
}

template <class Rows, class Kind, bool kClassMass, bool kGradient>
cudaError_t launch(const CrossEntropyParams& p, cudaStream_t stream) {
  Work work = SoftmaxReduction<Rows, Kind, kClassMass>::work(work_of<Rows>());
  work.tensors = has_narrow_probabilities(p) ? 2 : 1;
  return launch_rows<Rows>(cross_entropy_forward_kernel<Rows, Kind, kClassMass, kGradient>, p, work,
                           stream);
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
                     return with_bool(has_class_mass(p), [&](auto class_mass) {
                       constexpr bool kClassMass = decltype(class_mass)::value;
                       return with_kind<Rows, kClassMass>(p, [&](auto kind) {
                         using Kind = decltype(kind);
                         if constexpr (!std::is_same_v<Kind, NoAlpha>) {
                           if (p.gradient != nullptr) {
                             return launch<Rows, Kind, kClassMass, true>(p, stream);
                           }
                         }
                         return launch<Rows, Kind, kClassMass, false>(p, stream);
                       });
                     });
                   });
}

}  // namespace powergrad

// The scalar part of the algorithm, shared by the CPU and CUDA kernels: what a row needs besides
// its sums of exponentials. Internal linkage, since it is compiled for several instruction sets.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "powergrad.h"

namespace powergrad {
namespace {

template <class Scalar>
inline constexpr double kLargest = std::numeric_limits<Scalar>::max();

POWERGRAD_FUNCTION int64_t row_offset(const Shape& shape, const Strides& strides, int64_t row) {
  if (shape.inner == 1) return row * strides.outer;
  return row / shape.inner * strides.outer + row % shape.inner * strides.inner;
}

// Of whole rows; the logits may be a shard of them.
POWERGRAD_FUNCTION int64_t all_classes(const CrossEntropyParams& p) {
  return p.classes_before + p.shape.classes + p.classes_after;
}

// The target weight that label smoothing alone gives to a row, in closed form, which rounds less
// than a sum.
POWERGRAD_FUNCTION double smoothing_weight(const CrossEntropyParams& p) {
  if (p.weight_sum != nullptr) {
    return p.label_smoothing * *p.weight_sum / static_cast<double>(all_classes(p));
  }
  if (p.shape.classes == all_classes(p)) return p.label_smoothing;
  return p.label_smoothing * static_cast<double>(p.shape.classes) /
         static_cast<double>(all_classes(p));
}

// The maximum, from which distances are measured; 0 where all classes are masked out, so that no
// infinity is subtracted from another.
template <class Scalar>
POWERGRAD_FUNCTION Scalar reference_of(Scalar maximum) {
  return maximum == static_cast<Scalar>(-INFINITY) ? Scalar(0) : maximum;
}

// NaN for a row whose maximum is infinite (all classes masked out, or a logit of +infinity), as in
// torch, else 0. Shards of such a row become NaN when they are merged.
template <class Scalar>
POWERGRAD_FUNCTION Scalar nan_if_infinite(Scalar maximum) {
  return maximum - maximum;
}

POWERGRAD_FUNCTION bool has_metrics(const CrossEntropyParams& p) { return p.metrics != nullptr; }

// By its bits, since double precision is slow on a GPU.
POWERGRAD_FUNCTION bool is_positive(double x) {
  int64_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits > 0;
}

template <class Params>
POWERGRAD_FUNCTION bool has_z_loss(const Params& p) {
  return is_positive(p.z_loss);
}

// Whether a row needs more than its plain loss and its statistics. One test of it, so that calls
// that ask for none of these pay one branch.
POWERGRAD_FUNCTION bool has_row_options(const CrossEntropyParams& p) {
  return p.row_weight != nullptr || has_metrics(p) || has_z_loss(p);
}

// Whether every class has a target: probabilities or label smoothing.
POWERGRAD_FUNCTION bool has_dense_target(const CrossEntropyParams& p) {
  return p.target_probabilities != nullptr || p.label_smoothing > 0.0;
}

// The factor of a row's loss and gradient.
template <class Scalar, class Params>
POWERGRAD_FUNCTION Scalar row_weight_of(const Params& p, int64_t row) {
  return p.row_weight != nullptr ? static_cast<const Scalar*>(p.row_weight)[row] : Scalar(1);
}

// The index target of a row, which counts the classes of whole rows; -1 for probabilities.
POWERGRAD_FUNCTION int64_t target_index(const CrossEntropyParams& p, int64_t row) {
  if (p.target_index == nullptr) return -1;
  return p.target_index_is_int32 ? static_cast<const int32_t*>(p.target_index)[row]
                                 : static_cast<const int64_t*>(p.target_index)[row];
}

// The class weights from the logits' first class on; null: all are 1.
template <class Scalar>
POWERGRAD_FUNCTION const Scalar* weights_of(const CrossEntropyParams& p) {
  const Scalar* weight = static_cast<const Scalar*>(p.weight);
  return weight != nullptr ? weight + p.classes_before : nullptr;
}

// The index among the logits of a class of the whole row; -1 if another shard has it.
POWERGRAD_FUNCTION int64_t own_class(const CrossEntropyParams& p, int64_t index) {
  const int64_t own = index - p.classes_before;
  return 0 <= own && own < p.shape.classes ? own : -1;
}

// The weighted target of a row at its target index.
template <class Scalar>
struct IndexTarget {
  int64_t index = -1;  // among the logits; -1: ignored, another shard's, or probabilities
  bool ignored = false;
  Scalar point_weight = 0;     // (1 - smoothing) w_index, on top of what label smoothing gives
  Scalar weighted_target = 0;  // target_index, label smoothing included

  IndexTarget() = default;
  POWERGRAD_FUNCTION static IndexTarget of_row(const CrossEntropyParams& p, int64_t row) {
    IndexTarget target;
    target.ignored = row_weight_of<Scalar>(p, row) == 0;
    if (p.target_index == nullptr || target.ignored) return target;
    const int64_t index_of_all = target_index(p, row);
    target.ignored = index_of_all == p.ignore_index;
    if (target.ignored) return target;
    target.index = own_class(p, index_of_all);
    if (target.index >= 0) target.set_weights(p);
    return target;
  }
  POWERGRAD_FUNCTION static IndexTarget of_class(const CrossEntropyParams& p, int64_t index) {
    IndexTarget target;
    target.index = index;
    target.set_weights(p);
    return target;
  }

 private:
  POWERGRAD_FUNCTION void set_weights(const CrossEntropyParams& p) {
    const Scalar* weight = weights_of<Scalar>(p);
    point_weight = weighted_target = weight != nullptr ? weight[index] : Scalar(1);
    if (!is_positive(p.label_smoothing)) return;
    const double own = static_cast<double>(weighted_target);
    point_weight = static_cast<Scalar>(own * (1.0 - p.label_smoothing));
    weighted_target = point_weight + static_cast<Scalar>(own * p.label_smoothing /
                                                         static_cast<double>(all_classes(p)));
  }
};

// Adds z-loss to the loss of a row, and the row's weight; log_sum is log(1 + r).
template <class Scalar, class Params, class Loss>
POWERGRAD_FUNCTION Loss weighted_loss(const Params& p, int64_t row, Loss loss, Loss maximum,
                                      Loss log_sum) {
  if (has_z_loss(p)) {
    const Loss lse = maximum + log_sum;
    loss += static_cast<Loss>(p.z_loss) * lse * lse;
  }
  return p.row_weight != nullptr ? loss * row_weight_of<Scalar>(p, row) : loss;
}

// 2 z_loss lse, by which z-loss raises the weight W of p'.
template <class Scalar>
POWERGRAD_FUNCTION Scalar z_loss_weight(const CrossEntropyParams& p, Scalar maximum,
                                        Scalar log_sum) {
  return static_cast<Scalar>(2.0 * p.z_loss) * (maximum + log_sum);
}

template <class Scalar, class Params>
POWERGRAD_FUNCTION Scalar& metric(const Params& p, int64_t rows, Metric which, int64_t row) {
  return static_cast<Scalar*>(p.metrics)[which * rows + row];
}
template <class Scalar, class Params>
POWERGRAD_FUNCTION void write_metrics(const Params& p, int64_t rows, int64_t row, Scalar log_prob,
                                      Scalar entropy, Scalar correct) {
  metric<Scalar>(p, rows, kLogProb, row) = log_prob;
  metric<Scalar>(p, rows, kEntropy, row) = entropy;
  metric<Scalar>(p, rows, kCorrect, row) = correct;
}
// Those of a row that counts. entropy_sum is the sum of exp(z_j - m) (m - z_j): both terms of the
// entropy are >= 0, so nothing cancels.
template <class Scalar, class Params>
POWERGRAD_FUNCTION void compute_metrics(const Params& p, int64_t rows, int64_t row, Scalar maximum,
                                        Scalar z_target, Scalar sumexp_m1, Scalar log_sum,
                                        Scalar entropy_sum) {
  const Scalar log_prob = -((maximum - z_target) + log_sum);
  const Scalar entropy = log_sum + entropy_sum / (1 + sumexp_m1);
  const bool correct = z_target == maximum && log_sum == log_sum;
  write_metrics<Scalar>(p, rows, row, log_prob, entropy, correct ? Scalar(1) : Scalar(0));
}
// What stands in their place in a shard (ShardStatistic), which has no third.
template <class Scalar>
POWERGRAD_FUNCTION void write_metrics_of_shard(const CrossEntropyParams& p, int64_t row,
                                               Scalar z_target, Scalar entropy_sum) {
  metric<Scalar>(p, p.shape.rows(), kLogProb, row) = z_target;
  metric<Scalar>(p, p.shape.rows(), kEntropy, row) = entropy_sum;
}
// Of a row that does not count.
template <class Scalar>
POWERGRAD_FUNCTION void write_no_metrics(const CrossEntropyParams& p, int64_t row) {
  if (p.is_shard) {
    write_metrics_of_shard<Scalar>(p, row, 0, 0);
  } else {
    write_metrics<Scalar>(p, p.shape.rows(), row, 0, 0, 0);
  }
}

// The factor of a row's gradient.
template <class Scalar>
POWERGRAD_FUNCTION Scalar grad_output_of_row(const CrossEntropyParams& p, int64_t row) {
  Scalar value = 1;
  if (p.grad_output != nullptr) {
    value = static_cast<const Scalar*>(p.grad_output)[row * p.grad_output_stride];
  }
  if (p.row_weight != nullptr) value *= row_weight_of<Scalar>(p, row);
  return p.total_weight == nullptr ? value : value / static_cast<Scalar>(*p.total_weight);
}

// The gradient of a row, p'_j W - target_j, from powered_j = exp(alpha (z_j - maximum)) and the sum
// r' of all but the maximum's:
//
//     p'_j W - target_j = powered_j W / (1 + r') - target_j
//     of the maximum    = (W - target_j) - r' W / (1 + r')
//
// Both are exact; they differ in what rounding leaves. The first cancels where p'_j and target_j /
// W are close to 1, and only the maximum can have p' above 1/2, where r' < 1. There the second
// keeps what the first loses: W - target_j is exact or 0, and r' is known to all its bits.
// Everywhere else p' is at most 1/2 and the first is as good. So the second formula is for the
// dominant logit: the maximum of a row with r' < 1.
//
// It is recognised by z == maximum, which compares two logits and so does not depend on how
// powered_j is computed. (Ties have r' >= 1.) powered_j == 1 is the same condition if the kernel's
// exponential of 0 is exactly 1: it serves kernels that no longer have z at hand.
//
// W / (1 + r') and r' W / (1 + r') are computed once a row, which also rounds less than multiplying
// by W for each class.
//
// z-loss gives p' the weight W + z with z = 2 z_loss lse. W - target_j of the second formula stays
// exact: z enters through `missing`, which is subtracted from it.
template <class Scalar>
struct SoftmaxRow {
  Scalar maximum;
  Scalar dominant;       // the maximum where r' < 1, else NaN, which equals nothing
  Scalar target_weight;  // W
  Scalar share;          // (W + z) / (1 + r')
  Scalar missing;        // r' (W + z) / (1 + r') - z: what the maximum's p' (W + z) lacks to W

  SoftmaxRow() = default;
  POWERGRAD_FUNCTION SoftmaxRow(Scalar row_maximum, Scalar alpha_sumexp_m1,
                                Scalar row_target_weight, Scalar z = 0)
      : maximum(row_maximum),
        dominant(alpha_sumexp_m1 < 1 ? row_maximum : static_cast<Scalar>(NAN)),
        target_weight(row_target_weight),
        share((row_target_weight + z) / (1 + alpha_sumexp_m1)),
        missing(alpha_sumexp_m1 * share - z) {}

  // p'_j W - target_j of a logit z. The first difference is an explicit fma, since the compiler
  // would otherwise fuse a target_j that is a product into it: the difference would then be that
  // product's rounding error instead of 0.
  POWERGRAD_FUNCTION Scalar minus_target_from(Scalar powered, Scalar z, Scalar target_j) const {
    if (z == dominant) return std::fma(target_j, Scalar(-1), target_weight) - missing;
    return powered * share - target_j;
  }
  POWERGRAD_FUNCTION Scalar minus_target(double alpha, Scalar z, Scalar target_j) const {
    // Bounded, since the maximum's 0 times an infinite alpha would be NaN.
    const auto bounded = static_cast<Scalar>(alpha > kLargest<Scalar> ? kLargest<Scalar> : alpha);
    return minus_target_from(std::exp(bounded * (z - maximum)), z, target_j);
  }
};

}  // namespace
}  // namespace powergrad

// What one row contributes to loss and gradient besides its sums of exponentials: the scalar part
// of the algorithm, shared by the CPU and CUDA kernels. Internal linkage, as it is compiled for
// several instruction sets.
#pragma once

#include <cmath>
#include <cstdint>
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

// Of the whole rows, of which the logits may be a shard.
POWERGRAD_FUNCTION int64_t all_classes(const CrossEntropyParams& p) {
  return p.classes_before + p.shape.classes + p.classes_after;
}

// What label smoothing alone adds to the mass of a row, rounded as little as a closed form can be.
POWERGRAD_FUNCTION double smoothing_weight(const CrossEntropyParams& p) {
  if (p.weight_sum != nullptr) {
    return p.label_smoothing * *p.weight_sum / static_cast<double>(all_classes(p));
  }
  if (p.shape.classes == all_classes(p)) return p.label_smoothing;
  return p.label_smoothing * static_cast<double>(p.shape.classes) /
         static_cast<double>(all_classes(p));
}

// What distances are taken from: where every class is masked out, 0 instead of a difference of
// infinities.
template <class Scalar>
POWERGRAD_FUNCTION Scalar reference_of(Scalar maximum) {
  return maximum == -std::numeric_limits<Scalar>::infinity() ? Scalar(0) : maximum;
}

// NaN for a row whose maximum is infinite (every class masked out, or a logit of +infinity), else
// 0: what torch gives. Shards of a row become NaN when they are put together.
template <class Scalar>
POWERGRAD_FUNCTION Scalar nan_if_infinite(Scalar maximum) {
  return maximum - maximum;
}

// True when every class has mass: probabilities or label smoothing.
POWERGRAD_FUNCTION bool has_dense_target(const CrossEntropyParams& p) {
  return p.target_probabilities != nullptr || p.label_smoothing > 0.0;
}

// The index target of a row, among the classes of all; -1 where targets are probabilities.
POWERGRAD_FUNCTION int64_t target_index(const CrossEntropyParams& p, int64_t row) {
  if (p.target_index == nullptr) return -1;
  return p.target_index_is_int32 ? static_cast<const int32_t*>(p.target_index)[row]
                                 : static_cast<const int64_t*>(p.target_index)[row];
}

// Of the classes of the logits; null where all are 1.
template <class Scalar>
POWERGRAD_FUNCTION const Scalar* weights_of(const CrossEntropyParams& p) {
  const Scalar* weight = static_cast<const Scalar*>(p.weight);
  return weight != nullptr ? weight + p.classes_before : nullptr;
}

// Where a class of the whole row is among the logits; -1 where it is not.
POWERGRAD_FUNCTION int64_t own_class(const CrossEntropyParams& p, int64_t index) {
  const int64_t own = index - p.classes_before;
  return 0 <= own && own < p.shape.classes ? own : -1;
}

// The mass that a row has at its target index, besides what label smoothing gives to every class.
template <class Scalar>
struct IndexTarget {
  int64_t index = -1;  // among the logits; none: ignored, another shard's, or probabilities
  bool ignored = false;
  Scalar point_weight = 0;  // (1 - smoothing) w_index
  Scalar mass = 0;          // with the index's share of label smoothing

  IndexTarget() = default;
  POWERGRAD_FUNCTION IndexTarget(const CrossEntropyParams& p, int64_t index_of_all) {
    if (p.target_index == nullptr) return;
    ignored = index_of_all == p.ignore_index;
    if (ignored) return;
    index = own_class(p, index_of_all);
    if (index >= 0) set_weights(p);
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
    point_weight = mass = weight != nullptr ? weight[index] : Scalar(1);
    if (p.label_smoothing == 0.0) return;  // spares a GPU its slow arithmetic
    const double own = static_cast<double>(mass);
    point_weight = static_cast<Scalar>(own * (1.0 - p.label_smoothing));
    mass = point_weight +
           static_cast<Scalar>(own * p.label_smoothing / static_cast<double>(all_classes(p)));
  }
};

// What the gradient of a row is multiplied by.
template <class Scalar>
POWERGRAD_FUNCTION Scalar grad_output_of_row(const CrossEntropyParams& p, int64_t row) {
  Scalar value = 1;
  if (p.grad_output != nullptr) {
    value = static_cast<const Scalar*>(p.grad_output)[row * p.grad_output_stride];
  }
  return p.total_weight == nullptr ? value : value / static_cast<Scalar>(*p.total_weight);
}

// What softmax'(z) - target needs of a row: with r' the sum without its maximum, p' is
// exp(alpha (z - maximum)) * inverse, and the maximum's own p' is 1 - complement.
template <class Scalar>
struct SoftmaxRow {
  Scalar maximum;
  Scalar dominant;  // the maximum where p' there is above 1/2, else NaN, which equals nothing
  Scalar inverse;
  Scalar complement;
  Scalar mass;

  SoftmaxRow() = default;
  POWERGRAD_FUNCTION SoftmaxRow(Scalar row_maximum, Scalar alpha_sumexp_m1, Scalar row_mass)
      : maximum(row_maximum),
        dominant(alpha_sumexp_m1 < 1 ? row_maximum : static_cast<Scalar>(NAN)),
        inverse(1 / (1 + alpha_sumexp_m1)),
        complement(alpha_sumexp_m1 / (1 + alpha_sumexp_m1)),
        mass(row_mass) {}

  // p' W - target_j of one logit z, with powered = exp(alpha (z - maximum)). Where p' is close to
  // 1, 1 - p' is known to full precision and p' is not: (W - target_j) - W (1 - p') then keeps what
  // p' W - target_j would cancel. Its first difference is a fused operation of its own: where
  // target_j is a product, the compiler would otherwise fuse that product into the difference,
  // which is then the product's rounding error instead of 0.
  POWERGRAD_FUNCTION Scalar minus_target_from(Scalar powered, Scalar z, Scalar target_j) const {
    if (z == dominant) return std::fma(target_j, Scalar(-1), mass) - mass * complement;
    return powered * inverse * mass - target_j;
  }
  POWERGRAD_FUNCTION Scalar minus_target(double alpha, Scalar z, Scalar target_j) const {
    // Bounded, as an infinite alpha would make NaN of the maximum's 0.
    const auto bounded = static_cast<Scalar>(alpha > kLargest<Scalar> ? kLargest<Scalar> : alpha);
    return minus_target_from(std::exp(bounded * (z - maximum)), z, target_j);
  }
};

}  // namespace
}  // namespace powergrad

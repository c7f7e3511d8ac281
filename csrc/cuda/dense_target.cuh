// The part of target_j that every class has: w_j (slope q_j + intercept). An index target adds its
// own point mass at one class (see IndexTarget).
#pragma once

#include "cuda/resident.cuh"

namespace powergrad {
namespace {

// Probabilities of the logits' type are copied into slots beside the logits. Wider ones and weights
// are read where they lie whenever they are wanted: the second time, or for the next row, they are
// still in a cache.
template <class Rows>
class DenseTarget {
 public:
  using Storage = typename Rows::Element;
  using Scalar = AccumulateOf<Storage>;
  static constexpr int kElements = Rows::kElements;

  __device__ DenseTarget(const CrossEntropyParams& p, const Rows& rows)
      : rows_(rows),
        is_narrow_(p.target_probabilities != nullptr && !p.target_is_accumulate_type),
        is_wide_(p.target_probabilities != nullptr && p.target_is_accumulate_type),
        narrow_(rows.resident(
            1, static_cast<const Storage*>(is_narrow_ ? p.target_probabilities : nullptr),
            p.target_strides)),
        wide_(rows.output(static_cast<const Scalar*>(is_wide_ ? p.target_probabilities : nullptr),
                          p.target_strides)),
        weight_(weights_of<Scalar>(p)),
        slope_(static_cast<Scalar>(1.0 - p.label_smoothing)),
        intercept_(static_cast<Scalar>(p.label_smoothing / static_cast<double>(all_classes(p)))) {}

  __device__ void copy_in(int round) const {
    if (is_narrow_) rows_.copy_in(narrow_, round, Storage{});
  }

  // Of the elements of a slot; of those outside the row anything.
  template <class IsWhole>
  __device__ __forceinline__ void load(int round, int i, IsWhole is_whole,
                                       Scalar (&mass)[kElements]) const {
#pragma unroll
    for (int e = 0; e < kElements; ++e) mass[e] = intercept_;
    if (is_narrow_) {
      const Numbers<Storage, kElements> q(narrow_.slots.get(i));
#pragma unroll
      for (int e = 0; e < kElements; ++e) mass[e] = std::fma(q.at[e], slope_, intercept_);
    } else if (is_wide_) {
      Scalar q[kElements];
      read(wide_.at(0, rows_.first_class(round, i)), round, i, is_whole, q);
#pragma unroll
      for (int e = 0; e < kElements; ++e) mass[e] = std::fma(q[e], slope_, intercept_);
    }
    if (weight_ == nullptr) return;
    if constexpr (Rows::kRows > 1) {
      const Scalar weight = weight_[rows_.first_class(round, i)];
#pragma unroll
      for (int e = 0; e < kElements; ++e) mass[e] *= weight;
    } else {
      Scalar weight[kElements];
      read(weight_ + rows_.first_class(round, i), round, i, is_whole, weight);
#pragma unroll
      for (int e = 0; e < kElements; ++e) mass[e] *= weight[e];
    }
  }

 private:
  template <class IsWhole>
  __device__ __forceinline__ void read(const Scalar* from, int round, int i, IsWhole,
                                       Scalar (&to)[kElements]) const {
    if constexpr (IsWhole::value) {
      read_numbers(from, to);
    } else {
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        to[e] = rows_.contains(rows_.first_class(round, i) + e) ? from[e] : Scalar(0);
      }
    }
  }

  const Rows& rows_;
  bool is_narrow_;
  bool is_wide_;
  typename Rows::template Resident<Storage> narrow_;
  typename Rows::template Output<const Scalar> wide_;
  const Scalar* weight_;
  Scalar slope_;
  Scalar intercept_;
};

// Without probabilities and label smoothing no class has any.
struct NoDenseTarget {
  NoDenseTarget() = default;
  template <class Rows>
  __device__ NoDenseTarget(const CrossEntropyParams&, const Rows&) {}
};
template <bool kDenseTarget, class Rows>
using DenseTargetIf = std::conditional_t<kDenseTarget, DenseTarget<Rows>, NoDenseTarget>;

}  // namespace
}  // namespace powergrad

// The target of a row that has one for every class, from probabilities or label smoothing:
// w_j (slope q_j + intercept). An index target adds its point weight at one class (IndexTarget).
#pragma once

#include "cuda/shared_vectors.cuh"

namespace powergrad {
namespace {

// Probabilities of the logits' type are copied into shared memory beside the logits. Wider ones,
// and weights, are read from global memory each time: for the gradient, or the next row, they come
// from a cache.
template <class Rows>
class DenseTarget {
 public:
  using Storage = typename Rows::Element;
  using Scalar = AccumulateOf<Storage>;
  static constexpr int kElements = Rows::kElements;

  __device__ DenseTarget(const CrossEntropyParams& p, const Rows& rows)
      : rows_(rows),
        is_shared_(p.target_probabilities != nullptr && !p.target_is_accumulate_type),
        is_global_(p.target_probabilities != nullptr && p.target_is_accumulate_type),
        shared_(rows.shared_tensor(
            1, static_cast<const Storage*>(is_shared_ ? p.target_probabilities : nullptr),
            p.target_strides)),
        global_(rows.global_view(
            static_cast<const Scalar*>(is_global_ ? p.target_probabilities : nullptr),
            p.target_strides)),
        weight_(weights_of<Scalar>(p)),
        slope_(static_cast<Scalar>(1.0 - p.label_smoothing)),
        intercept_(static_cast<Scalar>(p.label_smoothing / static_cast<double>(all_classes(p)))) {}

  __device__ void copy_in(int pass) const {
    if (is_shared_) rows_.copy_in(shared_, pass, Storage{});
  }

  // Of the elements of a vector; unspecified outside the row.
  template <class IsWhole>
  __device__ __forceinline__ void load(int pass, int i, IsWhole is_whole,
                                       Scalar (&target)[kElements]) const {
#pragma unroll
    for (int e = 0; e < kElements; ++e) target[e] = intercept_;
    if (is_shared_) {
      const Numbers<Storage, kElements> q(shared_.vectors.get(i));
#pragma unroll
      for (int e = 0; e < kElements; ++e) target[e] = std::fma(q.at[e], slope_, intercept_);
    } else if (is_global_) {
      Scalar q[kElements];
      read(global_.at(0, rows_.first_class(pass, i)), pass, i, is_whole, q);
#pragma unroll
      for (int e = 0; e < kElements; ++e) target[e] = std::fma(q[e], slope_, intercept_);
    }
    if (weight_ == nullptr) return;
    if constexpr (Rows::kRows > 1) {
      const Scalar weight = weight_[rows_.first_class(pass, i)];
#pragma unroll
      for (int e = 0; e < kElements; ++e) target[e] *= weight;
    } else {
      Scalar weight[kElements];
      read(weight_ + rows_.first_class(pass, i), pass, i, is_whole, weight);
#pragma unroll
      for (int e = 0; e < kElements; ++e) target[e] *= weight[e];
    }
  }

 private:
  template <class IsWhole>
  __device__ __forceinline__ void read(const Scalar* from, int pass, int i, IsWhole,
                                       Scalar (&to)[kElements]) const {
    if constexpr (IsWhole::value) {
      read_numbers(from, to);
    } else {
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        to[e] = rows_.contains(rows_.first_class(pass, i) + e) ? from[e] : Scalar(0);
      }
    }
  }

  const Rows& rows_;
  bool is_shared_;
  bool is_global_;
  typename Rows::template SharedTensor<Storage> shared_;
  typename Rows::template GlobalView<const Scalar> global_;
  const Scalar* weight_;
  Scalar slope_;
  Scalar intercept_;
};

// Of index targets without label smoothing.
struct NoDenseTarget {
  NoDenseTarget() = default;
  template <class Rows>
  __device__ NoDenseTarget(const CrossEntropyParams&, const Rows&) {}
};
template <bool kDenseTarget, class Rows>
using DenseTargetIf = std::conditional_t<kDenseTarget, DenseTarget<Rows>, NoDenseTarget>;

}  // namespace
}  // namespace powergrad

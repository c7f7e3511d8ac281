// The gradient of a row from its logits: scale (p'_j W - target_j).
#pragma once

#include "cuda/dense_target.cuh"
#include "cuda/exponentials.cuh"

namespace powergrad {
namespace {

// Probabilities of the logits' type are copied into shared memory: see DenseTarget.
inline bool has_shared_probabilities(const CrossEntropyParams& p) {
  return p.target_probabilities != nullptr && !p.target_is_accumulate_type;
}

// To be called before anything is indexed with a target. An ignored one is never an index, whatever
// its value.
__device__ inline void check_target(const CrossEntropyParams& p, int64_t target) {
  const bool is_valid = target == p.ignore_index || (0 <= target && target < all_classes(p));
  POWERGRAD_DEVICE_ASSERT(is_valid && "cross_entropy: a target is not in [0, classes)");
}

// The targets of a thread's rows, and their logits. Only the threads that write the loss or the
// gradient at a target read its logit, since that gradient may replace it at any time.
template <class Rows>
struct RowTargets {
  using Storage = typename Rows::Element;
  using Scalar = AccumulateOf<Storage>;
  static constexpr int kNone = -1;     // probabilities, or a class of another shard
  static constexpr int kIgnored = -2;  // the row does not count
  int index[Rows::kRows];
  Scalar logit[Rows::kRows];

  template <class Logits>
  __device__ RowTargets(const CrossEntropyParams& p, const Rows& rows, const Logits& logits,
                        bool writes_losses) {
    int64_t target[Rows::kRows] = {};
    if (p.target_index != nullptr && rows.active) read_targets(p, rows.row, target);
#pragma unroll
    for (int r = 0; r < Rows::kRows; ++r) {
      index[r] = rows.active ? checked_index(p, rows.row + r, target[r]) : kIgnored;
      logit[r] = 0;
      if (is_class(r) && (writes_losses || rows.owns_class(index[r]))) {
        logit[r] = to_number(*logits.at(r, index[r]));
      }
    }
  }
  __device__ bool is_class(int r) const { return index[r] >= 0; }
  __device__ bool counts(int r) const { return index[r] != kIgnored; }
  __device__ bool any_counts() const {
    bool any = false;
#pragma unroll
    for (int r = 0; r < Rows::kRows; ++r) any = any || counts(r);
    return any;
  }
  // Computed when needed, to save registers in the loops before.
  __device__ IndexTarget<Scalar> weights(const CrossEntropyParams& p, int r) const {
    return is_class(r) ? IndexTarget<Scalar>::of_class(p, index[r]) : IndexTarget<Scalar>();
  }

 private:
  __device__ static void read_targets(const CrossEntropyParams& p, int64_t row,
                                      int64_t (&target)[Rows::kRows]) {
    if (p.target_index_is_int32) {
      int32_t narrow[Rows::kRows];
      read_numbers(static_cast<const int32_t*>(p.target_index) + row, narrow);
#pragma unroll
      for (int r = 0; r < Rows::kRows; ++r) target[r] = narrow[r];
    } else {
      read_numbers(static_cast<const int64_t*>(p.target_index) + row, target);
    }
  }
  __device__ static int checked_index(const CrossEntropyParams& p, int64_t row, int64_t target) {
    if (row_weight_of<Scalar>(p, row) == 0) return kIgnored;
    if (p.target_index == nullptr) return kNone;
    check_target(p, target);
    return target == p.ignore_index ? kIgnored : static_cast<int>(own_class(p, target));
  }
};

template <class Rows, bool kDenseTarget>
class GradientMap {
 public:
  using Storage = typename Rows::Element;
  using Scalar = AccumulateOf<Storage>;
  static constexpr int kRows = Rows::kRows;
  static constexpr int kElements = Rows::kElements;
  using Logits = typename Rows::template SharedTensor<Storage>;
  using Dense = DenseTargetIf<kDenseTarget, Rows>;
  using Targets = RowTargets<Rows>;
  using Packed = typename Rows::template Packed<Storage>;

  __device__ GradientMap(const CrossEntropyParams& p, Scalar alpha_scale, const Rows& rows,
                         const Logits& logits, const Dense& dense_target, const Targets& targets,
                         const SoftmaxRow<Scalar> (&softmax)[kRows])
      : rows_(rows),
        logits_(logits),
        dense_target_(dense_target),
        targets_(targets),
        softmax_(softmax),
        alpha_scale_(alpha_scale),
        gradient_(rows.global_view(static_cast<Storage*>(p.gradient), p.gradient_strides)) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      scale_[r] = grad_output_of_row<Scalar>(p, rows.row + r);
      row_scale_[r] = scale_[r] * softmax[r].share;
      if (!owns_target(r)) continue;
      const Scalar z = targets.logit[r];
      const IndexTarget<Scalar> target = targets.weights(p, r);
      // Without a dense target there is no smoothing, and the compiler may drop its code.
      const Scalar target_j = kDenseTarget ? target.weighted_target : target.point_weight;
      at_target_[r] = from_number<Storage>(
          scale_[r] * softmax[r].minus_target_from(powered(z, r), z, target_j));
    }
  }

  // Of the elements in shared memory.
  __device__ void write(int pass) const {
    if (targets_.any_counts()) {
      rows_.template for_each_store<kUnroll<Storage, kDenseTarget>>(
          pass, gradient_, [&](auto i, auto is_whole) {
            rows_.store(gradient_, pass, i, of_vector(pass, i, is_whole), is_whole);
          });
    } else {
      const Packed zeros = Packed::filled(from_number<Storage>(Scalar(0)));
      rows_.template for_each_store<1>(pass, gradient_, [&](auto i, auto is_whole) {
        rows_.store(gradient_, pass, i, zeros, is_whole);
      });
    }
  }
  // After the last pass.
  __device__ void finish() const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (owns_target(r)) rows_.store_class(gradient_, r, targets_.index[r], at_target_[r]);
    }
    rows_.finish_stores(gradient_);
  }

 private:
  __device__ bool owns_target(int r) const {
    return targets_.is_class(r) && rows_.owns_class(targets_.index[r]);
  }

  __device__ __forceinline__ Scalar powered(Scalar z, int r) const {
    return exponential((z - softmax_[r].maximum) * alpha_scale_);
  }

  template <class Index, class IsWhole>
  __device__ __forceinline__ Packed of_vector(int pass, Index i, IsWhole is_whole) const {
    const Numbers<Storage, kElements> z(logits_.vectors.get(i));
    Scalar target[kElements];
    if constexpr (kDenseTarget) dense_target_.load(pass, i, is_whole, target);
    Scalar values[kElements];
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const int r = kRows == 1 ? 0 : e;
      if constexpr (kDenseTarget) {
        values[e] =
            scale_[r] * softmax_[r].minus_target_from(powered(z.at[e], r), z.at[e], target[e]);
      } else {
        values[e] = powered(z.at[e], r) * row_scale_[r];
      }
      // Not all of the thread's rows may count.
      if (kRows > 1 && !targets_.counts(r)) values[e] = 0;
    }
    return packed<Storage>(values);
  }

  const Rows& rows_;
  const Logits& logits_;
  const Dense& dense_target_;
  const Targets& targets_;
  const SoftmaxRow<Scalar> (&softmax_)[kRows];
  Scalar alpha_scale_;
  typename Rows::template GlobalView<Storage> gradient_;
  Scalar scale_[kRows];
  Scalar row_scale_[kRows];
  Storage at_target_[kRows];
};

}  // namespace
}  // namespace powergrad

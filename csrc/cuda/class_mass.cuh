// The part of mass_j that every class has: w_j (slope q_j + intercept). An index target adds its
// own point mass at one class (see IndexTarget).
#pragma once

#include "cuda/walk.cuh"

namespace powergrad {
namespace {

template <class Storage, int kPack>
class ClassMass {
 public:
  using Scalar = AccumulateOf<Storage>;

  __device__ ClassMass(const CrossEntropyParams& p, int64_t row, const Walk<kPack>& walk)
      : walk_(walk),
        has_probabilities_(p.target_probabilities != nullptr),
        is_wide_(p.target_is_accumulate_type),
        has_weight_(p.weight != nullptr),
        probabilities_(row_of<Storage>(p.target_probabilities, p.shape, p.target_strides, row),
                       p.target_strides.classes, walk),
        wide_probabilities_(row_of<Scalar>(p.target_probabilities, p.shape, p.target_strides, row),
                            p.target_strides.classes, walk),
        weight_(static_cast<const Scalar*>(p.weight), 1, walk),
        slope_(static_cast<Scalar>(1.0 - p.label_smoothing)),
        intercept_(static_cast<Scalar>(p.label_smoothing / static_cast<double>(p.shape.classes))) {}

  // Of the packs from step `begin` on; 0 outside the row.
  template <int kSteps>
  __device__ void load(int begin, Numbers<Scalar, kSteps, kPack>& mass) const {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) mass.at[s][i] = intercept_;
    }
    if (has_probabilities_) {
      if (is_wide_) {
        add_probabilities(begin, wide_probabilities_, mass);
      } else {
        add_probabilities(begin, probabilities_, mass);
      }
    }
    if (has_weight_) {
      Pack<Scalar, kPack> weights[kSteps];
      weight_.load(walk_, begin, Scalar(0), weights);
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
#pragma unroll
        for (int i = 0; i < kPack; ++i) mass.at[s][i] *= weights[s].get(i);
      }
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int pack = walk_.pack(begin + s);
      if (walk_.is_whole(pack)) continue;
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        if (!walk_.contains(walk_.first_class(pack) + i)) mass.at[s][i] = 0;
      }
    }
  }

 private:
  template <int kSteps, class View>
  __device__ void add_probabilities(int begin, const View& view,
                                    Numbers<Scalar, kSteps, kPack>& mass) const {
    typename View::Packed q[kSteps];
    view.load(walk_, begin, typename View::Element{}, q);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        mass.at[s][i] = fma(to_number(q[s].get(i)), slope_, mass.at[s][i]);
      }
    }
  }

  const Walk<kPack>& walk_;
  bool has_probabilities_;
  bool is_wide_;
  bool has_weight_;
  RowView<const Storage, kPack> probabilities_;
  RowView<const Scalar, kPack> wide_probabilities_;
  RowView<const Scalar, kPack> weight_;
  Scalar slope_;
  Scalar intercept_;
};

// Without probabilities and label smoothing no class has any.
template <int kPack>
struct NoClassMass {
  __device__ NoClassMass(const CrossEntropyParams&, int64_t, const Walk<kPack>&) {}
};
template <bool kClassMass, class Storage, int kPack>
using ClassMassIf = std::conditional_t<kClassMass, ClassMass<Storage, kPack>, NoClassMass<kPack>>;

}  // namespace
}  // namespace powergrad

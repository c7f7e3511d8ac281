// The map from the logits of a row to its gradient, scale (p'_j W - mass_j).
#pragma once

#include "cuda/class_mass.cuh"
#include "cuda/exponentials.cuh"

namespace powergrad {
namespace {

// The row's target, after asserting that it can be one: nothing is read through another.
template <class Scalar>
__device__ IndexTarget<Scalar> checked_target(const CrossEntropyParams& p, int64_t row) {
  const int64_t target = target_index(p, row);
  const int64_t classes = p.shape.classes;
  const bool is_valid =
      p.target_index == nullptr || target == p.ignore_index || (0 <= target && target < classes);
  POWERGRAD_DEVICE_ASSERT(is_valid && "cross_entropy: a target is not in [0, classes)");
  return IndexTarget<Scalar>(p, target);
}

template <class Storage, int kPack, bool kClassMass>
class GradientMap {
 public:
  using Scalar = AccumulateOf<Storage>;
  using Mass = ClassMassIf<kClassMass, Storage, kPack>;

  // `logits` is read here, at the target, by the one lane that will write there.
  __device__ GradientMap(const CrossEntropyParams& p, int64_t row, const Walk<kPack>& walk,
                         const Storage* logits, const IndexTarget<Scalar>& target,
                         const SoftmaxRow<Scalar>& softmax, const Mass& mass)
      : walk_(walk),
        mass_of_(mass),
        softmax_(softmax),
        powered_(alpha_of(p)),
        scale_(upstream_of_row<Scalar>(p, row)),
        gradient_(row_of<Storage>(p.gradient, p.shape, p.gradient_strides, row),
                  p.gradient_strides.classes, walk) {
    if (target.index < 0) return;
    const int place = static_cast<int>(target.index) + walk.phase;
    if (place / kPack % walk.lanes != walk.lane) return;
    target_pack_ = place / kPack;
    target_element_ = place % kPack;
    const Scalar z = to_number(logits[target.index * p.logits_strides.classes]);
    target_value_ = from_number<Storage>(scale_ * softmax.minus_mass(alpha_of(p), z, target.mass));
  }

  template <int kSteps>
  __device__ void operator()(int begin, const Pack<Storage, kPack> (&logits)[kSteps]) const {
    Numbers<Scalar, kSteps, kPack> mass;
    if constexpr (kClassMass) mass_of_.load(begin, mass);
    const Scalar row_scale = scale_ * softmax_.mass * softmax_.inverse;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int pack = walk_.pack(begin + s);
      Pack<Storage, kPack> values{};
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        const Scalar z = to_number(logits[s].get(i));
        const Scalar powered = powered_(z - softmax_.maximum);
        Scalar value;
        if constexpr (kClassMass) {
          value = scale_ * softmax_.minus_mass_from(powered, z, mass.at[s][i]);
        } else {
          value = powered * row_scale;
        }
        values.set(i, from_number<Storage>(value));
      }
      if (pack == target_pack_) {
#pragma unroll
        for (int i = 0; i < kPack; ++i) {
          if (i == target_element_) values.set(i, target_value_);
        }
      }
      gradient_.store(walk_, pack, values);
    }
  }

  // An ignored row.
  __device__ void zero() const {
    const auto zeros = Pack<Storage, kPack>::filled(from_number<Storage>(Scalar(0)));
    const int steps = walk_.steps();
    for (int step = 0; step < steps; ++step) {
      gradient_.store(walk_, walk_.pack(step), zeros);
    }
  }

 private:
  const Walk<kPack>& walk_;
  const Mass& mass_of_;
  SoftmaxRow<Scalar> softmax_;
  PoweredExponential<Scalar> powered_;
  Scalar scale_;
  RowView<Storage, kPack> gradient_;
  int target_pack_ = -1;
  int target_element_ = 0;
  Storage target_value_{};
};

}  // namespace
}  // namespace powergrad

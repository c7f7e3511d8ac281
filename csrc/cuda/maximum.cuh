// Maxima over packs of elements.
#pragma once

#include "cuda/numbers.cuh"

namespace powergrad {
namespace {

// The maximum of a thread's elements of each of its rows; halves two at a time. It ignores NaN,
// which the sums propagate.
template <class Storage, int kElements, int kRows>
class RunningMaximum {
 public:
  using Scalar = AccumulateOf<Storage>;
  using Packed = Pack<Storage, kElements>;

  __device__ RunningMaximum() {
#pragma unroll
    for (int i = 0; i < kChains; ++i) {
      if constexpr (Packed::kHalves) {
        maxima_[i] = Packed::filled(from_number<Storage>(kLowest<Scalar>)).words[0];
      } else {
        maxima_[i] = kLowest<Scalar>;
      }
    }
  }
  __device__ __forceinline__ void add(const Packed& pack) {
#pragma unroll
    for (int w = 0; w < Packed::kWords; ++w) {
      auto& maximum = maxima_[w % kChains];
      if constexpr (Packed::kHalves) {
        maximum = word_of(__hmax2(pair_of<Storage>(maximum), pair_of<Storage>(pack.words[w])));
      } else {
        maximum = std::fmax(maximum, to_number(pack.words[w]));
      }
    }
  }
  __device__ __forceinline__ Scalar of_row(int r) const {
    if constexpr (kRows > 1) {
      return element(r);
    } else {
      Scalar result = kLowest<Scalar>;
#pragma unroll
      for (int e = 0; e < kChains * kLanesOfChain; ++e) result = std::fmax(result, element(e));
      return result;
    }
  }

 private:
  static constexpr int kLanesOfChain = Packed::kHalves ? 2 : 1;
  // Independent chains of maxima: one for each row's word, or two to hide latency.
  static constexpr int kChains = kRows > 1 || Packed::kWords < 2 ? Packed::kWords : 2;

  __device__ __forceinline__ Scalar element(int e) const {
    if constexpr (Packed::kHalves) {
      Pack<Storage, 2> pair{{maxima_[e / 2]}};
      return to_number(pair.get(e % 2));
    } else {
      return maxima_[e];
    }
  }

  std::conditional_t<Packed::kHalves, uint32_t, Scalar> maxima_[kChains];
};

// Whether the pack contains `number`, which is its upper bound; halves two at a time.
template <class Storage, int kElements, class Scalar>
__device__ __forceinline__ bool contains(const Pack<Storage, kElements>& pack, Scalar number) {
  bool found = false;
  if constexpr (Pack<Storage, kElements>::kHalves) {
    auto highest = pair_of<Storage>(pack.words[0]);
#pragma unroll
    for (int w = 1; w < kElements / 2; ++w) {
      highest = __hmax2(highest, pair_of<Storage>(pack.words[w]));
    }
    const Pack<Storage, 2> pair{{word_of(highest)}};
    found = to_number(pair.get(0)) == number || to_number(pair.get(1)) == number;
  } else {
#pragma unroll
    for (int e = 0; e < kElements; ++e) found = found || to_number(pack.get(e)) == number;
  }
  return found;
}

}  // namespace
}  // namespace powergrad

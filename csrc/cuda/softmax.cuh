// The softmax of a thread's rows: maximum, meeting, sums, meeting.
//
// All exponentials are taken from the row's own maximum, which is looked for first. Its own one is
// the 1 of "1 + r" (powergrad.h) and is not to be added: added to the sum and taken off again it
// would drown the rest of a confident row. So every thread that has found the maximum takes one
// such element out of its slots while it sums, and the threads that did are counted beside the
// sums: all of these ones but the row's own join at the end.
#pragma once

#include "cuda/dense_target.cuh"
#include "cuda/exponentials.cuh"
#include "cuda/meeting.cuh"

namespace powergrad {
namespace {

// The highest of a thread's elements, two halves at a time. NaN is left to the sums.
template <class Storage, int kElements, int kRows>
class HighestElement {
 public:
  using Scalar = AccumulateOf<Storage>;
  using Packed = Pack<Storage, kElements>;

  __device__ HighestElement() {
#pragma unroll
    for (int i = 0; i < kChains; ++i) {
      if constexpr (Packed::kHalves) {
        best_[i] = Packed::filled(from_number<Storage>(kLowest<Scalar>)).words[0];
      } else {
        best_[i] = kLowest<Scalar>;
      }
    }
  }
  __device__ __forceinline__ void add(const Packed& pack) {
#pragma unroll
    for (int w = 0; w < Packed::kWords; ++w) {
      auto& best = best_[w % kChains];
      if constexpr (Packed::kHalves) {
        best = word_of(__hmax2(pair_of<Storage>(best), pair_of<Storage>(pack.words[w])));
      } else {
        best = std::fmax(best, to_number(pack.words[w]));
      }
    }
  }
  __device__ __forceinline__ Scalar of_row(int r) const {
    if constexpr (kRows > 1) {
      return element(r);
    } else {
      Scalar result = kLowest<Scalar>;
#pragma unroll
      for (int e = 0; e < kChains * kOfChain; ++e) result = std::fmax(result, element(e));
      return result;
    }
  }

 private:
  static constexpr int kOfChain = Packed::kHalves ? 2 : 1;
  // Independent chains: a word for each row, or two to hide latency.
  static constexpr int kChains = kRows > 1 || Packed::kWords < 2 ? Packed::kWords : 2;

  __device__ __forceinline__ Scalar element(int e) const {
    if constexpr (Packed::kHalves) {
      Pack<Storage, 2> pair{{best_[e / 2]}};
      return to_number(pair.get(e % 2));
    } else {
      return best_[e];
    }
  }

  std::conditional_t<Packed::kHalves, uint32_t, Scalar> best_[kChains];
};

// Whether any element of a pack, none of which is higher, is this number; two halves at a time.
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

template <class Scalar>
struct SoftmaxState {
  Scalar maximum = kLowest<Scalar>;
  Scalar rest = -1;  // sum of exp(z - maximum) without one maximum; of nothing, that is -1
  Scalar alpha_sumexp_m1 = -1;  // sum of exp(alpha (z - maximum)) without one maximum
  // Sums of target_j and of target_j (maximum - z_j) where every class has a mass.
  Scalar mass = 0;
  Scalar distance = 0;
};

// Puts together what the blocks of a cluster have found.
template <class Kind, class Scalar, bool kDenseTarget>
struct MergeStates {
  const Evaluator<Kind, Scalar>& evaluate;

  __device__ void warp(SoftmaxState<Scalar>& state) const {
    const Scalar maximum = of_warp<Maximum>(state.maximum);
    const bool holds = state.maximum == maximum;
    const auto holders = __popc(__ballot_sync(kAllLanes, holds));
    if (!holds) {
      // A maximum that is none any more turns its 1 into an ordinary term. Not to be fused with the
      // sum of lanes that follows: each lane would add another's product rounded and its own exact,
      // and no two would have the same bits.
      const auto e = exponentials(evaluate, state.maximum - maximum);
      state.rest = rounded_product(1 + state.rest, e.plain);
      state.alpha_sumexp_m1 = rounded_product(1 + state.alpha_sumexp_m1, e.powered);
      state.distance +=
          rounded_product(state.mass, reference_of(maximum) - reference_of(state.maximum));
    }
    state.maximum = maximum;
    const auto ones = static_cast<Scalar>(holders - 1);
    state.rest = of_warp<Addition>(state.rest) + ones;
    if constexpr (Evaluator<Kind, Scalar>::kPowersApart) {
      state.alpha_sumexp_m1 = of_warp<Addition>(state.alpha_sumexp_m1) + ones;
    } else {
      state.alpha_sumexp_m1 = state.rest;
    }
    if constexpr (kDenseTarget) {
      state.mass = of_warp<Addition>(state.mass);
      state.distance = of_warp<Addition>(state.distance);
    }
  }
};

// A thread's sums over one row, relative to the row's maximum.
template <class Scalar>
struct RowSums : ExponentialSums<Scalar> {
  int ones = 0;  // elements that equal the maximum and that the sums leave out
  Scalar mass = 0;
  Scalar distance = 0;
};

// Of kernels that reduce the softmax of `Rows` (a layout).
template <class Rows, class Kind, bool kDenseTarget>
class SoftmaxReduction {
 public:
  using Storage = typename Rows::Element;
  using Scalar = AccumulateOf<Storage>;
  using State = SoftmaxState<Scalar>;
  using E = Evaluator<Kind, Scalar>;
  static constexpr int kRows = Rows::kRows;
  static constexpr int kElements = Rows::kElements;
  using Logits = typename Rows::template Resident<Storage>;
  using Mass = DenseTargetIf<kDenseTarget, Rows>;

  static constexpr int kUnrollRun = 2 * kUnroll<Storage, kDenseTarget>;
  static constexpr int kSums = kDenseTarget ? 5 : 3;
  static constexpr int kMaximaBytes = kRows * static_cast<int>(sizeof(Scalar));
  static constexpr int kSumsBytes = kSums * kMaximaBytes;

  // With what the meetings need room for.
  static Work work(Work work) {
    work.maxima_bytes = kMaximaBytes;
    work.sums_bytes = kSumsBytes;
    work.state_bytes = static_cast<int>(sizeof(State));
    return work;
  }

  __device__ SoftmaxReduction(const Plan& plan, const Rows& rows, const Logits& logits,
                              const Mass& mass, const E& evaluate)
      : plan_(plan), rows_(rows), logits_(logits), mass_(mass), evaluate_(evaluate) {}

  // Begins to fill the slots: as early as can be, before anything is waited for.
  __device__ void copy_in(int round) const {
    rows_.copy_in(logits_, round, from_number<Storage>(kLowest<Scalar>));
    if constexpr (kDenseTarget) mass_.copy_in(round);
  }

  // Behind copy_in(0). Leaves the last round's elements in their slots. `wanted` is false for rows
  // that do not count: they only join the meetings.
  __device__ void run(bool wanted, State (&state)[kRows]) const {
    const Meeting<Rows> meeting(plan_);
    RowSums<Scalar> sums[kRows];
    Scalar maximum[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) maximum[r] = kLowest<Scalar>;
    for (int round = 0; round < rows_.rounds(); ++round) {
      if (round > 0) copy_in(round);
      rows_.template wait<0>();
      Scalar own[kRows];
      highest(round, wanted, own);
      Scalar of_row[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) of_row[r] = own[r];
      meeting.template in_warp<Maximum>(of_row);
      // Two places by turns: see Meeting.
      meeting.template of_warps<Maximum>(round % 2 * plan_.meeting_bytes(kMaximaBytes), of_row);
      if (!wanted) continue;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (round > 0 && maximum[r] < of_row[r]) raise(sums[r], maximum[r], of_row[r]);
        maximum[r] = std::fmax(maximum[r], of_row[r]);
      }
      add_without_ones(round, own, maximum, sums);
      if constexpr (kDenseTarget) add_mass(round, maximum, sums);
    }
    meet(meeting, maximum, sums, state);
  }

  // Fills the slots with what the gradient needs of a round, unless it is there.
  __device__ void copy_again(int round) const {
    if (round == rows_.rounds() - 1) return;
    copy_in(round);
    rows_.template wait<0>();
  }

 private:
  __device__ void highest(int round, bool wanted, Scalar (&values)[kRows]) const {
    HighestElement<Storage, kElements, kRows> highest;
    if (wanted) rows_.each_slot(round, [&](int i) { highest.add(logits_.slots.get(i)); });
#pragma unroll
    for (int r = 0; r < kRows; ++r) values[r] = highest.of_row(r);
  }

  // Rows that come in several rounds: the sums so far become relative to a higher maximum.
  __device__ void raise(RowSums<Scalar>& sums, Scalar from, Scalar to) const {
    const auto e = exponentials(evaluate_, from - to);
    sums.plain = (sums.plain + static_cast<Scalar>(sums.ones)) * e.plain;
    sums.powered = (sums.powered + static_cast<Scalar>(sums.ones)) * e.powered;
    sums.ones = 0;
    sums.distance += sums.mass * (reference_of(to) - reference_of(from));
  }

  // Adds what is in the slots, but for one maximum of every thread that has any, which is counted.
  __device__ void add_without_ones(int round, const Scalar (&own)[kRows],
                                   const Scalar (&maximum)[kRows],
                                   RowSums<Scalar> (&sums)[kRows]) const {
    int place[kRows];
    find_maxima(round, own, maximum, place);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      sums[r].ones += own[r] == maximum[r] ? 1 : 0;
      if (place[r] != kNowhere) *element(place[r]) = from_number<Storage>(kLowest<Scalar>);
    }
    add(round, maximum, sums);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (place[r] != kNowhere) *element(place[r]) = from_number<Storage>(own[r]);
    }
  }

  // Where among the thread's elements its rows' maxima are. Few threads have any; that they look
  // for them while others wait is cheaper than to compare every element in the sums.
  __device__ void find_maxima(int round, const Scalar (&own)[kRows], const Scalar (&maximum)[kRows],
                              int (&place)[kRows]) const {
    bool has_any = false;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      place[r] = kNowhere;
      has_any = has_any || own[r] == maximum[r];
    }
    if (!has_any) return;
    rows_.each_slot(round, [&](int i) {
      const auto pack = logits_.slots.get(i);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const bool is_here = kRows == 1 ? contains(pack, own[r]) : to_number(pack.get(r)) == own[r];
        if (is_here) place[r] = i;
      }
    });
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      // It is nowhere in a row without a number, such as one of NaN.
      if (own[r] != maximum[r]) place[r] = kNowhere;
      if (place[r] != kNowhere) place[r] = place[r] * kElements + in_slot(place[r], r, own[r]);
    }
  }
  __device__ int in_slot(int i, int r, Scalar number) const {
    if constexpr (kRows > 1) return r;
    const auto pack = logits_.slots.get(i);
    int result = 0;
#pragma unroll
    for (int e = 1; e < kElements; ++e) {
      if (to_number(pack.get(e)) == number) result = e;
    }
    return result;
  }
  __device__ Storage* element(int place) const {
    return static_cast<Storage*>(logits_.slots.at(place / kElements)) + place % kElements;
  }

  __device__ void add(int round, const Scalar (&maximum)[kRows],
                      RowSums<Scalar> (&sums)[kRows]) const {
    Scalar reference[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) reference[r] = reference_of(maximum[r]);
    rows_.each_run(round, [&](int begin, int end) {
      ExponentialSums<Scalar> terms[kRows];
#pragma unroll(kUnrollRun)
      for (int i = begin; i < end; ++i) {
        const Numbers<Storage, kElements> z(logits_.slots.get(i));
#pragma unroll
        for (int e = 0; e < kElements; ++e) {
          const int r = kRows == 1 ? 0 : e;
          // The difference first: it is exact or nearly so, however far from 0 the row lies.
          add_exponentials(evaluate_, z.at[e] - reference[r], terms[r]);
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        sums[r].plain += terms[r].plain;
        if constexpr (E::kPowersApart) sums[r].powered += terms[r].powered;
      }
    });
  }

  __device__ void add_mass(int round, const Scalar (&maximum)[kRows],
                           RowSums<Scalar> (&sums)[kRows]) const {
    Scalar masses[kRows] = {};
    Scalar distances[kRows] = {};
    const auto take_in = [&] {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        sums[r].mass += masses[r];
        sums[r].distance += distances[r];
        masses[r] = distances[r] = 0;
      }
    };
    rows_.template each_place<1>(round, logits_, [&](int i, auto is_whole) {
      const Numbers<Storage, kElements> z(logits_.slots.get(i));
      Scalar mass[kElements];
      mass_.load(round, i, is_whole, mass);
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const int r = kRows == 1 ? 0 : e;
        if (!decltype(is_whole)::value && !rows_.contains(rows_.first_class(round, i) + e)) {
          continue;
        }
        masses[r] += mass[e];
        distances[r] += mass[e] * (reference_of(maximum[r]) - z.at[e]);
      }
      // A run, as each_run has them.
      if (kElements > kRows || i % 32 == 31) take_in();
    });
    take_in();
  }

  __device__ void meet(const Meeting<Rows>& meeting, const Scalar (&maximum)[kRows],
                       const RowSums<Scalar> (&sums)[kRows], State (&state)[kRows]) const {
    Scalar values[kRows * kSums];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      Scalar* of_row = values + r * kSums;
      of_row[0] = sums[r].plain;
      of_row[1] = static_cast<Scalar>(sums[r].ones);
      of_row[2] = E::kPowersApart ? sums[r].powered : Scalar(0);
      if constexpr (kDenseTarget) {
        of_row[3] = sums[r].mass;
        of_row[4] = sums[r].distance;
      }
    }
    meeting.template in_warp<Addition>(values);
    meeting.template of_warps<Addition>(2 * plan_.meeting_bytes(kMaximaBytes), values);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const Scalar* of_row = values + r * kSums;
      state[r].maximum = maximum[r];
      state[r].rest = of_row[0] + (of_row[1] - 1);
      state[r].alpha_sumexp_m1 = E::kPowersApart ? of_row[2] + (of_row[1] - 1) : state[r].rest;
      if constexpr (kDenseTarget) {
        state[r].mass = of_row[3];
        state[r].distance = of_row[4];
      }
    }
    if constexpr (kRows == 1) {
      const int place = 2 * plan_.meeting_bytes(kMaximaBytes) + plan_.meeting_bytes(kSumsBytes);
      meet_in_cluster(plan_, place, state[0], MergeStates<Kind, Scalar, kDenseTarget>{evaluate_});
    }
  }

  static constexpr int kNowhere = -1;

  const Plan& plan_;
  const Rows& rows_;
  const Logits& logits_;
  const Mass& mass_;
  const E& evaluate_;
};

}  // namespace
}  // namespace powergrad

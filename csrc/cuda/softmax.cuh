// The softmax of a thread's rows: the maximum, its reduction, the sums, their reduction.
//
// All exponentials are relative to the row's maximum, which is computed first. The maximum's own
// exponential is the 1 of "1 + r" (powergrad.h) and must not enter the sum: adding it and
// subtracting it again would round away the r of a confident row. So elements equal to the maximum
// are left out and counted: their ones, but for the row's own, join the sum at the end. Where many
// threads work on a row, comparing every element would cost most of them for nothing: there each
// thread that holds the maximum looks for it, replaces one such element by -infinity while it sums,
// and counts that one.
#pragma once

#include "cuda/dense_target.cuh"
#include "cuda/maximum.cuh"
#include "cuda/softmax_state.cuh"

namespace powergrad {
namespace {

// `Rows` is the class of a layout (rows_contract.cuh).
template <class Rows, class Kind, bool kDenseTarget>
class SoftmaxReduction {
 public:
  using Storage = typename Rows::Element;
  using Scalar = AccumulateOf<Storage>;
  using State = SoftmaxState<Scalar>;
  using E = Evaluator<Kind, Scalar>;
  static constexpr int kRows = Rows::kRows;
  static constexpr int kElements = Rows::kElements;
  using Logits = typename Rows::template SharedTensor<Storage>;
  using Dense = DenseTargetIf<kDenseTarget, Rows>;

  // With the scratch that the reductions need.
  static Work work(Work work) {
    work.maxima_bytes = kMaximaBytes;
    work.sums_bytes = kSumsBytes;
    work.state_bytes = static_cast<int>(sizeof(State));
    return work;
  }

  __device__ SoftmaxReduction(const Plan& plan, const Rows& rows, const Logits& logits,
                              const Dense& dense_target, const E& evaluate)
      : plan_(plan),
        rows_(rows),
        logits_(logits),
        dense_target_(dense_target),
        evaluate_(evaluate) {}

  // Begins to load a pass. To be called for the first one before the kernel waits for anything.
  __device__ void copy_in(int pass) const {
    rows_.copy_in(logits_, pass, from_number<Storage>(kLowest<Scalar>));
    if constexpr (kDenseTarget) dense_target_.copy_in(pass);
  }

  // After copy_in(0). The last pass's elements stay in shared memory. Rows that are not `wanted`
  // only join the reductions.
  __device__ void run(bool wanted, State (&state)[kRows]) const {
    const BlockReduction<Rows> block(plan_);
    RowSums<Scalar> sums[kRows];
    Scalar maximum[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) maximum[r] = kLowest<Scalar>;
    for (int pass = 0; pass < rows_.passes(); ++pass) {
      if (pass > 0) copy_in(pass);
      rows_.template wait<0>();
      Scalar own[kRows];
      maxima_of_thread(wanted, pass, own);
      Scalar of_row[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) of_row[r] = own[r];
      block.template reduce<Maximum>(pass % 2 * plan_.reduction_bytes(kMaximaBytes), of_row);
      if (!wanted) continue;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (pass > 0 && maximum[r] < of_row[r]) rescale(sums[r], maximum[r], of_row[r]);
        maximum[r] = std::fmax(maximum[r], of_row[r]);
      }
      if constexpr (Rows::kManyThreads) {
        add_all_but_one_maximum(pass, own, maximum, sums);
      } else {
        add(pass, maximum, sums);
      }
      if constexpr (kDenseTarget) add_dense_target(pass, maximum, sums);
    }
    reduce_sums(block, maximum, sums, state);
  }

  // Loads a pass again, unless it is the last one, which is still there.
  __device__ void reload(int pass) const {
    if (pass == rows_.passes() - 1) return;
    copy_in(pass);
    rows_.template wait<0>();
  }

 private:
  // Rows of few classes would pay for entering and leaving an unrolled loop.
  static constexpr int kUnrollRun =
      Rows::kManyThreads ? 2 * kUnroll<Storage, kDenseTarget> : (kElements == kRows ? 2 : 1);
  static constexpr int kSumsOfTarget = kDenseTarget ? 2 : 0;
  static constexpr int kSums = 3 + kSumsOfTarget + (kHasEntropy<Kind> ? 1 : 0);
  static constexpr int kMaximaBytes = kRows * static_cast<int>(sizeof(Scalar));
  static constexpr int kSumsBytes = kSums * kMaximaBytes;
  static constexpr int kNowhere = -1;

  __device__ void maxima_of_thread(bool wanted, int pass, Scalar (&values)[kRows]) const {
    RunningMaximum<Storage, kElements, kRows> maximum;
    if (wanted) rows_.for_each_vector(pass, [&](auto i) { maximum.add(logits_.vectors.get(i)); });
#pragma unroll
    for (int r = 0; r < kRows; ++r) values[r] = maximum.of_row(r);
  }

  // A later pass has found a higher maximum.
  __device__ void rescale(RowSums<Scalar>& sums, Scalar from, Scalar to) const {
    const auto e = exponentials(evaluate_, from - to);
    if constexpr (kHasEntropy<Kind>) {
      const Scalar sum = sums.plain + static_cast<Scalar>(sums.ones);
      sums.entropy = rescaled_entropy(sums.entropy, sum, from, to, e.plain);
    }
    sums.plain = (sums.plain + static_cast<Scalar>(sums.ones)) * e.plain;
    sums.powered = (sums.powered + static_cast<Scalar>(sums.ones)) * e.powered;
    sums.ones = 0;
    sums.distance += sums.target_weight * (reference_of(to) - reference_of(from));
  }

  // A thread that holds the maximum leaves it out once, and counts it.
  __device__ void add_all_but_one_maximum(int pass, const Scalar (&own)[kRows],
                                          const Scalar (&maximum)[kRows],
                                          RowSums<Scalar> (&sums)[kRows]) const {
    static_assert(kRows == 1);
    const bool has_maximum = own[0] == maximum[0];
    const int place = has_maximum ? place_of(pass, own[0]) : kNowhere;
    sums[0].ones += has_maximum ? 1 : 0;
    if (place != kNowhere) *element(place) = from_number<Storage>(kLowest<Scalar>);
    add(pass, maximum, sums);
    if (place != kNowhere) *element(place) = from_number<Storage>(own[0]);
  }

  // Where among the thread's elements its maximum is: nowhere in a row of nothing but NaN. Few
  // threads look for it, while the others of their warps wait.
  __device__ int place_of(int pass, Scalar own) const {
    int place = kNowhere;
    rows_.for_each_vector(pass, [&](int i) {
      if (contains(logits_.vectors.get(i), own)) place = i;
    });
    if (place == kNowhere) return kNowhere;
    const auto pack = logits_.vectors.get(place);
    int in_vector = 0;
#pragma unroll
    for (int e = 1; e < kElements; ++e) {
      if (to_number(pack.get(e)) == own) in_vector = e;
    }
    return place * kElements + in_vector;
  }
  __device__ Storage* element(int place) const {
    return static_cast<Storage*>(logits_.vectors.at(place / kElements)) + place % kElements;
  }

  __device__ void add(int pass, const Scalar (&maximum)[kRows],
                      RowSums<Scalar> (&sums)[kRows]) const {
    Scalar reference[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) reference[r] = reference_of(maximum[r]);
    rows_.for_each_run(pass, [&](auto begin, auto end) {
      ExponentialSums<Scalar> terms[kRows];
#pragma unroll(kUnrollRun)
      for (auto i = begin; i < end; ++i) {
        const Numbers<Storage, kElements> z(logits_.vectors.get(i));
#pragma unroll
        for (int e = 0; e < kElements; ++e) {
          const int r = kRows == 1 ? 0 : e;
          // The difference first: it is exact or nearly so, however far from 0 the row lies.
          const Scalar t = z.at[e] - reference[r];
          if (!Rows::kManyThreads && t == 0) {
            ++sums[r].ones;
          } else {
            add_exponentials(evaluate_, t, terms[r]);
          }
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        sums[r].plain += terms[r].plain;
        if constexpr (E::kTwoSums) sums[r].powered += terms[r].powered;
        if constexpr (kHasEntropy<Kind>) sums[r].entropy += terms[r].entropy;
      }
    });
  }

  __device__ void add_dense_target(int pass, const Scalar (&maximum)[kRows],
                                   RowSums<Scalar> (&sums)[kRows]) const {
    Scalar weights[kRows] = {};
    Scalar distances[kRows] = {};
    const auto end_run = [&] {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        sums[r].target_weight += weights[r];
        sums[r].distance += distances[r];
        weights[r] = distances[r] = 0;
      }
    };
    rows_.template for_each_store<1>(pass, logits_, [&](int i, auto is_whole) {
      const Numbers<Storage, kElements> z(logits_.vectors.get(i));
      Scalar target[kElements];
      dense_target_.load(pass, i, is_whole, target);
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const int r = kRows == 1 ? 0 : e;
        if (!decltype(is_whole)::value && !rows_.contains(rows_.first_class(pass, i) + e)) {
          continue;
        }
        weights[r] += target[e];
        distances[r] += target[e] * (reference_of(maximum[r]) - z.at[e]);
      }
      if (kElements > kRows || i % 32 == 31) end_run();  // runs as in for_each_run
    });
    end_run();
  }

  __device__ void reduce_sums(const BlockReduction<Rows>& block, const Scalar (&maximum)[kRows],
                              const RowSums<Scalar> (&sums)[kRows], State (&state)[kRows]) const {
    Scalar values[kRows * kSums];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      Scalar* of_row = values + r * kSums;
      of_row[0] = sums[r].plain;
      of_row[1] = static_cast<Scalar>(sums[r].ones);
      of_row[2] = E::kTwoSums ? sums[r].powered : Scalar(0);
      if constexpr (kDenseTarget) {
        of_row[3] = sums[r].target_weight;
        of_row[4] = sums[r].distance;
      }
      if constexpr (kHasEntropy<Kind>) of_row[3 + kSumsOfTarget] = sums[r].entropy;
    }
    block.template reduce<Addition>(2 * plan_.reduction_bytes(kMaximaBytes), values);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const Scalar* of_row = values + r * kSums;
      state[r].maximum = maximum[r];
      state[r].sumexp_m1 = of_row[0] + (of_row[1] - 1);
      state[r].alpha_sumexp_m1 = E::kTwoSums ? of_row[2] + (of_row[1] - 1) : state[r].sumexp_m1;
      if constexpr (kDenseTarget) {
        state[r].target_weight = of_row[3];
        state[r].distance = of_row[4];
      }
      if constexpr (kHasEntropy<Kind>) state[r].entropy_sum = of_row[3 + kSumsOfTarget];
    }
    if constexpr (Rows::kLayout == RowLayout::contiguous) {
      const int offset =
          2 * plan_.reduction_bytes(kMaximaBytes) + plan_.reduction_bytes(kSumsBytes);
      cluster_reduce(plan_, offset, state[0], MergeStates<Kind, Scalar, kDenseTarget>{evaluate_});
    }
  }

  const Plan& plan_;
  const Rows& rows_;
  const Logits& logits_;
  const Dense& dense_target_;
  const E& evaluate_;
};

}  // namespace
}  // namespace powergrad

// Random problems of every size, layout and option; confident rows; rows far from zero.
#pragma once

#include "check_cross_entropy.h"
#include "check_log_softmax.h"

namespace powergrad::test {

inline constexpr double kAlphas[] = {1.0, 0.5, 1.0 / 3.0, 0.25, 0.3, 0.7, 2.0};

using Reports = std::vector<Report>;

template <class Storage>
void check_on_all(const Problem<Storage>& problem, Reports& reports) {
  const CrossEntropyReference cross_entropy(problem);
  const LogSoftmaxReference log_softmax(problem);
  for (Report& report : reports) {
    CrossEntropyCheck<Storage>(problem, cross_entropy, report).check();
    LogSoftmaxCheck<Storage>(problem, log_softmax, report).check();
  }
}

// `rows` of them, or a few times `inner` where rows have an inner index.
inline Shape shape_of(Arrangement arrangement, int64_t rows, int64_t classes, int64_t inner) {
  if (arrangement == Arrangement::inner) return {2, classes, inner};
  if (arrangement == Arrangement::nested) return {2, classes, 3};
  return {rows, classes, 1};
}

inline Options random_options(Random& random) {
  Options options;
  options.target = static_cast<TargetKind>(random.below(4));
  options.weighted = random.one_in(2);
  options.smoothing = random.one_in(3) ? 0.1 : random.one_in(4) ? 1.0 : 0.0;
  options.upstream = static_cast<Upstream>(random.below(3));
  options.total_weight = random.one_in(2) ? 37.5 : 0.0;
  return options;
}

template <class Storage>
void check_sizes(Reports& reports) {
  // One class and two; around the widths of vectors (2, 4, 8 and 16 lanes); a size that no width
  // divides; one that all do not; around one chunk; several chunks, the last one partial.
  const int64_t kSizes[] = {1,    2,          7,      15,         16,  17, 33,
                            1000, kChunk - 1, kChunk, kChunk + 1, 2 * kChunk + 904};
  // Less than a vector, exactly vectors, vectors and a rest.
  const int64_t kInners[] = {1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 40};
  Random random(1);
  int64_t turn = 0;
  for (const int64_t classes : kSizes) {
    for (const double alpha : kAlphas) {
      for (int a = 0; a < kArrangements; ++a) {
        const bool small = classes < 100;
        Options options = random_options(random);
        options.alpha = alpha;
        options.arrangement = static_cast<Arrangement>(a);
        const int64_t inner = kInners[turn++ % (small ? std::size(kInners) : 7)];
        options.shape = shape_of(options.arrangement, small ? 9 : 2, classes, inner);
        const double spread = random.one_in(4) ? 30.0 : 3.0;
        check_on_all(Problem<Storage>(options, random, 0.0, spread), reports);
      }
    }
  }
}

// One class stands `gap` above the rest: p' - 1 and the loss are tiny there, and still have to be
// right to the last few bits, not merely to the rounding of 1.
template <class Storage>
void check_confident_rows(Reports& reports) {
  Random random(2);
  for (const int64_t classes : {int64_t{2}, int64_t{17}, int64_t{1000}, 2 * kChunk + 904}) {
    for (const double alpha : kAlphas) {
      for (const double gap : {5.0, 20.0, 60.0}) {
        for (const Arrangement arrangement : {Arrangement::packed, Arrangement::inner}) {
          Options options;
          options.alpha = alpha;
          options.arrangement = arrangement;
          options.target = static_cast<TargetKind>(random.below(4));
          options.shape = shape_of(arrangement, classes < 100 ? 24 : 2, classes,
                                   classes < 100 ? 17 : 1);
          Problem<Storage> problem(options, random, 0.0, 1.0);
          for (int64_t row = 0; row < problem.rows(); ++row) {
            const int64_t target = random.below(classes);
            const Row z = problem.logits_row(row);
            long double highest = -kInfinity;
            for (int64_t j = 0; j < classes; ++j) {
              if (j != target) highest = std::fmax(highest, z[j]);
              problem.upstream.at(row, j) = narrow<Storage>(j == target ? -1.0 : 0.0);
            }
            problem.logits.at(row, target) = narrow<Storage>(highest + gap + random.uniform());
            problem.set_one_hot(row, target);
          }
          check_on_all(problem, reports);
        }
      }
    }
  }
}

// A constant added to a row changes nothing but the rounding of its logits. float16 ends at 65504.
template <class Storage>
void check_far_rows(Reports& reports) {
  constexpr bool kShortRange = std::is_same_v<Storage, Float16>;
  constexpr double kOffset = kShortRange ? 0x1p15 : 0x1p20;
  // A few rounding steps at that distance, so that the logits differ at all.
  const double spread =
      std::max(3.0, 2.0 * static_cast<double>(ulp<Storage>(static_cast<long double>(kOffset))));
  Random random(3);
  for (const int64_t classes : {int64_t{17}, kChunk + 1}) {
    for (const double alpha : kAlphas) {
      for (const double offset : {kOffset, -kOffset}) {
        for (const Arrangement arrangement : {Arrangement::padded, Arrangement::inner}) {
          Options options = random_options(random);
          options.alpha = alpha;
          options.arrangement = arrangement;
          options.shape = shape_of(arrangement, 3, classes, 3);
          check_on_all(Problem<Storage>(options, random, offset, spread), reports);
        }
      }
    }
  }
}

}  // namespace powergrad::test

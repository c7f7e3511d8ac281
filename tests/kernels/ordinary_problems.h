// Random problems of every size, layout and option; confident rows; rows far from zero.
#pragma once

#include "check_cross_entropy.h"
#include "check_log_softmax.h"
#include "check_shards.h"

namespace powergrad::test {

inline constexpr double kAlphas[] = {1.0, 0.5, 1.0 / 3.0, 0.25, 0.3, 0.7, 2.0};

// An index past the classes of every problem, which fits both index types.
inline constexpr int64_t kFarIndex = 1 << 30;

using Reports = std::vector<Report>;

// Each dtype has its own sequence, so that together they see more options.
template <class Storage>
Random random_for(uint64_t suite) {
  return Random(suite * kDataTypes + static_cast<uint64_t>(Traits<Storage>::dtype));
}

template <class Storage>
void check_on_all(const Problem<Storage>& problem, Reports& reports) {
  static int turn = 0;
  if (++turn % kEvery != 0) return;
  const auto softmax_rows = problem.softmax_rows();
  const CrossEntropyReference<Storage> cross_entropy(problem, softmax_rows);
  const LogSoftmaxReference<Storage> log_softmax(problem, softmax_rows);
  for (Report& report : reports) {
    if (turn % turns_of(report.machine()) != 0) continue;
    CrossEntropyCheck<Storage>(problem, cross_entropy, report).check();
    LogSoftmaxCheck<Storage>(problem, log_softmax, report).check();
    if (turn % 7 != 0 || !problem.options.by_index()) continue;
    ShardsCheck<Storage>(problem, cross_entropy, cuts_of(problem.classes(), turn), report).check();
  }
}

inline bool is_small(int64_t classes) { return classes < 100; }

// Every arrangement for a small size; one of them, in turn, for a large one.
inline std::vector<Arrangement> arrangements(int64_t classes, int64_t turn) {
  const auto arrangement = [](int64_t i) { return static_cast<Arrangement>(i % kArrangements); };
  if (!is_small(classes)) return {arrangement(turn)};
  return {arrangement(0), arrangement(1), arrangement(2), arrangement(3)};
}

inline Shape shape_of(Arrangement arrangement, int64_t classes, int64_t turn) {
  // Less than a vector, whole vectors, whole vectors and a partial one.
  constexpr int64_t kInners[] = {1, 3, 8, 2, 5, 7, 9, 15, 16, 17, 31, 33, 40};
  const int64_t inner = kInners[turn % (is_small(classes) ? 13 : 3)];
  const int64_t outer = is_small(classes) ? 2 : 1;
  if (arrangement == Arrangement::inner) return {outer, classes, inner};
  if (arrangement == Arrangement::nested) return {outer, classes, 3};
  return {is_small(classes) ? 9 : 2, classes, 1};
}

inline Options random_options(Random& random) {
  Options options;
  options.target = static_cast<TargetKind>(random.below(4));
  options.weighted = random.one_in(2);
  options.smoothing = random.one_in(3) ? 0.1 : 0.0;
  options.grad_output = static_cast<GradOutput>(random.below(3));
  if (random.one_in(2)) options.total_weight = 37.5;
  // An ignored index may also be that of a class, or far past the last one.
  constexpr int64_t kIgnoreIndices[] = {-7, 0, kFarIndex};
  options.ignore_index = kIgnoreIndices[random.below(3)];
  if (random.one_in(2)) options.lead = random.below(8);
  options.row_weighted = random.one_in(3);
  if (random.one_in(3)) options.z_loss = random.one_in(2) ? 1e-4 : 0.03;
  options.metrics = options.by_index() && random.one_in(2);
  return options;
}

inline void set_target_kind(Options& options, TargetKind target) {
  options.target = target;
  options.metrics = options.metrics && options.by_index();
}

template <class Storage>
void check_sizes(Reports& reports) {
  Random random = random_for<Storage>(1);
  int64_t turn = 0;
  for (const int64_t classes : kSizes) {
    for (const double alpha : kAlphas) {
      ++turn;
      // Every second alpha is enough for a large size; the next size takes the others.
      if (!is_small(classes) && turn % 2 == 0) continue;
      for (const Arrangement arrangement : arrangements(classes, turn / 2)) {
        Options options = random_options(random);
        if (random.one_in(8)) options.smoothing = 1.0;
        options.alpha = alpha;
        options.arrangement = arrangement;
        options.shape = shape_of(arrangement, classes, turn);
        const double spread = random.one_in(4) ? 10.0 : 3.0;
        check_on_all(Problem<Storage>(options, random, 0.0, spread), reports);
      }
    }
  }
}

// Packed rows of several thread blocks, which begin anywhere in a vector.
template <class Storage>
void check_many_rows(Reports& reports) {
  Random random = random_for<Storage>(7);
  int64_t turn = 0;
  for (const int64_t classes : {1, 2, 3, 10, 32, 65, 150, 511}) {
    for (const int64_t rows : {int64_t{37}, int64_t{259}}) {
      Options options = random_options(random);
      options.alpha = kAlphas[turn % 7];
      options.lead = turn++ % 8;
      options.shape = {rows, classes, 1};
      check_on_all(Problem<Storage>(options, random, 0.0, 3.0), reports);
    }
  }
}

// Contiguous rows of few classes, which the CPU transposes: every number of classes up to two times
// 16 bytes, then some around 16 and 64, and the most; more rows than a vector and fewer; every kind
// of target; the first and the last class as a target, and a row that does not count among others.
template <class Storage>
void check_few_classes(Reports& reports) {
  Random random = random_for<Storage>(8);
  std::vector<int64_t> sizes = {17, 31, 32, 63, 65, 100, 300};
  for (int64_t classes = 1; classes <= 16; ++classes) sizes.push_back(classes);
  int64_t turn = 0;
  for (const int64_t classes : sizes) {
    for (const TargetKind target : {TargetKind::index64, TargetKind::index32,
                                    TargetKind::probabilities, TargetKind::wide_probabilities}) {
      constexpr int64_t kRows[] = {33, 21, 16, 47, 8};
      Options options = random_options(random);
      set_target_kind(options, target);
      options.alpha = kAlphas[turn % 7];
      options.arrangement = static_cast<Arrangement>(turn % 3);  // those of contiguous rows
      options.shape = {kRows[turn % 5], classes, 1};
      if (options.arrangement == Arrangement::nested) options.shape = {2, classes, kRows[turn % 5]};
      ++turn;
      Problem<Storage> problem(options, random, 0.0, 3.0);
      problem.set_target(3, 0);
      problem.set_target(4, classes - 1);
      problem.set_target(5, options.ignore_index);
      check_on_all(problem, reports);
    }
  }
}

// Strided rows in several of the CPU's tiles, whole and partial ones; tiles narrowed by many
// classes; partial tiles of rows that are split. Every kind of target with and without smoothing.
template <class Storage>
void check_many_neighbours(Reports& reports) {
  Random random = random_for<Storage>(6);
  constexpr Shape kShapes[] = {{2, 5, 300}, {1, 40, 128}, {3, 33, 129}, {1, 700, 150}};
  int64_t turn = 0;
  for (const Shape& shape : kShapes) {
    for (const TargetKind target : {TargetKind::index64, TargetKind::index32,
                                    TargetKind::probabilities, TargetKind::wide_probabilities}) {
      Options options = random_options(random);
      set_target_kind(options, target);
      options.smoothing = turn % 2 == 0 ? 0.0 : 0.1;
      options.alpha = kAlphas[turn++ % 7];
      options.arrangement = Arrangement::inner;
      options.shape = shape;
      check_on_all(Problem<Storage>(options, random, 0.0, 3.0), reports);
    }
  }
}

// Raises one class of every row `gap` above all others and makes it the whole target.
template <class Storage>
void make_confident(Problem<Storage>& problem, double gap, Random& random) {
  for (int64_t row = 0; row < problem.rows(); ++row) {
    const int64_t target = random.below(problem.classes());
    const Row z = problem.logits_row(row);
    long double highest = -kInfinity;
    for (int64_t j = 0; j < problem.classes(); ++j) {
      if (j != target) highest = std::fmax(highest, z[j]);
      problem.grad_output.at(row, j) = narrow<Storage>(j == target ? -1.0 : 0.0);
    }
    problem.logits.at(row, target) = narrow<Storage>(highest + gap + random.uniform());
    problem.set_one_hot(row, target);
  }
}

// p' - 1 and the loss are tiny there, and have to be right to the last few bits all the same, not
// merely to the rounding of 1. Around 25 the kernels turn to exact exponents; at 74 float rounds
// the differences themselves by more than they may be off.
template <class Storage>
void check_confident_rows(Reports& reports) {
  Random random = random_for<Storage>(2);
  int64_t turn = 0;
  for (const int64_t classes : {int64_t{2}, int64_t{17}, int64_t{1000}, kLongRow}) {
    for (const double alpha : kAlphas) {
      for (const double gap : {5.0, 20.0, 24.0, 34.0, 74.0}) {
        ++turn;
        // A fifth of the large ones, each alpha with another gap.
        if (!is_small(classes) && (turn + turn / 5) % 5 != 0) continue;
        for (const Arrangement arrangement : arrangements(classes, turn)) {
          Options options;
          options.alpha = alpha;
          options.arrangement = arrangement;
          options.target = static_cast<TargetKind>(random.below(4));
          options.weighted = random.one_in(2);
          options.metrics = options.by_index();
          if (turn % 2 == 0) options.z_loss = 0.03;
          options.shape = shape_of(arrangement, classes, turn);
          Problem<Storage> problem(options, random, 0.0, 1.0);
          make_confident(problem, gap, random);
          check_on_all(problem, reports);
        }
      }
    }
  }
}

// A constant added to a row only changes the rounding of its logits. float16 ends at 65504.
template <class Storage>
void check_far_rows(Reports& reports) {
  constexpr double kOffset = std::is_same_v<Storage, Float16> ? 0x1p15 : 0x1p20;
  // A few ulp at that distance, so that the logits differ.
  const double step = static_cast<double>(ulp<Storage>(static_cast<long double>(kOffset)));
  Random random = random_for<Storage>(3);
  int64_t turn = 0;
  for (const int64_t classes : {int64_t{17}, kPiece + 1}) {
    for (const double alpha : kAlphas) {
      ++turn;
      for (const Arrangement arrangement : arrangements(classes, turn)) {
        Options options = random_options(random);
        options.alpha = alpha;
        options.arrangement = arrangement;
        options.shape = shape_of(arrangement, classes, turn);
        const double offset = turn % 2 == 0 ? kOffset : -kOffset;
        check_on_all(Problem<Storage>(options, random, offset, std::max(3.0, 2.0 * step)), reports);
      }
    }
  }
}

}  // namespace powergrad::test

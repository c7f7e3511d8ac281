// Masked classes, NaN, infinities: each in a row of its own, between ordinary rows.
#pragma once

#include "ordinary_problems.h"

namespace powergrad::test {

// Each changes one row; those from `all_masked` on poison it, so that it has to become NaN.
enum class Edit {
  none,
  scattered_masked,  // -infinity here and there
  vector_masked,     // -infinity over any vector's width
  first_chunk_masked,
  last_chunk_masked,
  all_but_one_masked,
  target_masked,
  ignored_nan,  // NaN everywhere in an ignored row
  all_masked,
  nan_first,
  nan_last,
  nan_among_masked,  // the rest of its chunk is -infinity
  infinite,
};
inline constexpr int kEdits = 13;

inline bool poisons(Edit edit) { return edit >= Edit::all_masked; }

template <class Storage>
void apply(Edit edit, int64_t row, Problem<Storage>& problem) {
  const int64_t classes = problem.classes();
  // The class that stays when its neighbours are masked, and the target, which has to stay.
  const int64_t kept = classes / 2;
  problem.set_target(row, kept);
  const auto set = [&](int64_t begin, int64_t end, int64_t step, long double value) {
    for (int64_t j = begin; j < end; j += step) {
      if (j != kept || edit == Edit::all_masked) problem.logits.at(row, j) = narrow<Storage>(value);
    }
  };
  const int64_t last_chunk = (chunk_count(problem.shape()) - 1) * kChunk;
  const int64_t first_chunk_end = std::min(kChunk, classes);
  switch (edit) {
    case Edit::none:
      break;
    case Edit::scattered_masked:
      set(0, classes, 3, -kInfinity);
      break;
    case Edit::vector_masked:
      set(0, std::min<int64_t>(48, classes), 1, -kInfinity);
      break;
    case Edit::first_chunk_masked:
      set(0, first_chunk_end, 1, -kInfinity);
      break;
    case Edit::last_chunk_masked:
      set(last_chunk, classes, 1, -kInfinity);
      break;
    case Edit::all_but_one_masked:
    case Edit::all_masked:
      set(0, classes, 1, -kInfinity);
      break;
    case Edit::target_masked:
      problem.set_target(row, 0);
      set(0, 1, 1, -kInfinity);
      break;
    case Edit::ignored_nan:
      problem.set_target(row, Problem<Storage>::kIgnored);
      if (problem.options.by_index()) set(0, classes, 1, kNaN);
      break;
    case Edit::nan_first:
      set(0, 1, 1, kNaN);
      break;
    case Edit::nan_last:
      set(classes - 1, classes, 1, kNaN);
      break;
    case Edit::nan_among_masked:
      set(0, first_chunk_end, 1, -kInfinity);
      set(5, 6, 1, kNaN);
      break;
    case Edit::infinite:
      set(classes / 3, classes / 3 + 1, 1, kInfinity);
      break;
  }
}

// Poisoned rows leave their neighbours' bits as they are without them.
template <class Storage>
void check_neighbours(const Problem<Storage>& problem, const Problem<Storage>& clean,
                      const std::vector<Edit>& edits, Report& report) {
  const auto both = [&](const Problem<Storage>& p) {
    return std::make_pair(
        CrossEntropyCheck<Storage>(p, CrossEntropyReference(p), report).check(),
        LogSoftmaxCheck<Storage>(p, LogSoftmaxReference(p), report).check());
  };
  const auto [cross_entropy, log_softmax] = both(problem);
  const auto [clean_cross_entropy, clean_log_softmax] = both(clean);
  for (int64_t row = 0; row < problem.rows(); ++row) {
    if (poisons(edits[row])) continue;
    bool same = same_number(cross_entropy.losses[row], clean_cross_entropy.losses[row]);
    for (int64_t j = 0; j < problem.classes(); ++j) {
      same = same &&
             same_number(cross_entropy.gradient.at(row, j),
                         clean_cross_entropy.gradient.at(row, j)) &&
             same_number(log_softmax.output.at(row, j), clean_log_softmax.output.at(row, j)) &&
             same_number(log_softmax.gradient.at(row, j), clean_log_softmax.gradient.at(row, j));
    }
    report.expect(same, "row %lld changes with its neighbours", static_cast<long long>(row));
  }
}

template <class Storage>
void check_special_values(Reports& reports) {
  Random random(4);
  for (const int64_t classes : {int64_t{17}, int64_t{100}, kChunk + 1, 2 * kChunk + 904}) {
    for (const double alpha : {1.0, 0.3, 0.7}) {
      for (const Arrangement arrangement : {Arrangement::packed, Arrangement::inner}) {
        Options options = random_options(random);
        options.alpha = alpha;
        options.arrangement = arrangement;
        options.shape = {1, classes, 1};
        (arrangement == Arrangement::inner ? options.shape.inner : options.shape.outer) = kEdits;
        Problem<Storage> problem(options, random, 0.0, 3.0);
        for (int64_t row = 0; row < kEdits; ++row) problem.set_target(row, classes / 2);
        Problem<Storage> clean = problem;
        // 5 and kEdits have no common factor: ordinary and poisoned rows take turns.
        std::vector<Edit> edits;
        for (int64_t row = 0; row < kEdits; ++row) {
          edits.push_back(static_cast<Edit>(row * 5 % kEdits));
          apply(edits[row], row, problem);
          if (!poisons(edits[row])) apply(edits[row], row, clean);
        }
        for (Report& report : reports) check_neighbours(problem, clean, edits, report);
      }
    }
  }
}

}  // namespace powergrad::test

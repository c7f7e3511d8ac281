// Masked classes, NaN and infinities, each in its own row between ordinary ones.
#pragma once

#include "ordinary_problems.h"

namespace powergrad::test {

// A change to one row, which becomes NaN by those from `all_masked` on.
enum class Edit {
  none,
  scattered_masked,  // -infinity here and there
  vector_masked,     // -infinity over any vector's width
  first_piece_masked,
  last_piece_masked,
  all_but_one_masked,
  target_masked,
  ignored_nan,  // NaN everywhere in a row that does not count, and any target
  all_masked,
  nan_first,
  nan_last,
  nan_among_masked,  // all others of its piece are -infinity
  infinite,
};
inline constexpr int kEdits = 13;

inline bool becomes_nan(Edit edit) { return edit >= Edit::all_masked; }

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
  const int64_t last_piece = (classes - 1) / kPiece * kPiece;
  const int64_t first_piece_end = std::min(kPiece, classes);
  switch (edit) {
    case Edit::none:
      break;
    case Edit::scattered_masked:
      set(0, classes, 3, -kInfinity);
      break;
    case Edit::vector_masked:
      set(0, std::min<int64_t>(48, classes), 1, -kInfinity);
      break;
    case Edit::first_piece_masked:
      set(0, first_piece_end, 1, -kInfinity);
      break;
    case Edit::last_piece_masked:
      set(last_piece, classes, 1, -kInfinity);
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
      problem.set_target(row, problem.options.ignore_index);
      if (problem.options.row_weighted) {
        problem.row_weight[row] = 0;
        problem.set_target(row, kFarIndex);
      }
      if (problem.ignored(row)) set(0, classes, 1, kNaN);
      break;
    case Edit::nan_first:
      set(0, 1, 1, kNaN);
      break;
    case Edit::nan_last:
      set(classes - 1, classes, 1, kNaN);
      break;
    case Edit::nan_among_masked:
      set(0, first_piece_end, 1, -kInfinity);
      set(5, 6, 1, kNaN);
      break;
    case Edit::infinite:
      set(classes / 3, classes / 3 + 1, 1, kInfinity);
      break;
  }
}

// The other rows have the same bits as without the rows that become NaN.
template <class Storage>
void check_neighbours(const Problem<Storage>& problem, const Problem<Storage>& clean,
                      const std::vector<Edit>& edits, bool has_scratch, Report& report) {
  const auto cross_entropy = [&](const Problem<Storage>& p) {
    return CrossEntropyRunner<Storage>(p, report).forward(true, whole(), has_scratch);
  };
  const auto log_softmax = [&](const Problem<Storage>& p) {
    return LogSoftmaxRunner<Storage>(p, report).forward_and_backward(whole(), has_scratch);
  };
  const auto loss = cross_entropy(problem);
  const auto clean_loss = cross_entropy(clean);
  const auto output = log_softmax(problem);
  const auto clean_output = log_softmax(clean);
  for (int64_t row = 0; row < problem.rows(); ++row) {
    if (becomes_nan(edits[row])) continue;
    const auto same_at = [row](const Tensor<Storage>& a, const Tensor<Storage>& b, int64_t j) {
      return same_number(a.at(row, j), b.at(row, j));
    };
    bool same = same_number(loss.losses[row], clean_loss.losses[row]);
    for (int64_t j = 0; j < problem.classes(); ++j) {
      same = same && same_at(loss.gradient, clean_loss.gradient, j) &&
             same_at(output.output, clean_output.output, j) &&
             same_at(output.gradient, clean_output.gradient, j);
    }
    report.expect(same, "row " + std::to_string(row) + " changes with its neighbours");
  }
}

// Without a smoothing of 1, which makes a masked target 0 times infinity.
template <class Storage>
void check_special_values(Reports& reports) {
  Random random = random_for<Storage>(4);
  int64_t turn = 0;
  for (const int64_t classes : {int64_t{17}, int64_t{99}, kPiece + 1, kLongRow}) {
    for (const double alpha : {1.0, 0.3, 0.7}) {
      ++turn;
      if (!is_small(classes) && turn % 3 != classes % 3) continue;  // one alpha is enough
      for (const bool inner : {true, false}) {
        Options options = random_options(random);
        options.alpha = alpha;
        options.arrangement = inner ? Arrangement::inner : Arrangement::packed;
        options.shape = {inner ? 1 : kEdits, classes, inner ? kEdits : 1};
        Problem<Storage> problem(options, random, 0.0, 3.0);
        for (int64_t row = 0; row < kEdits; ++row) problem.set_target(row, classes / 2);
        Problem<Storage> clean = problem;
        // 5 and kEdits have no common factor: ordinary rows and those that become NaN alternate.
        std::vector<Edit> edits;
        for (int64_t row = 0; row < kEdits; ++row) {
          edits.push_back(static_cast<Edit>(row * 5 % kEdits));
          apply(edits[row], row, problem);
          if (!becomes_nan(edits[row])) apply(edits[row], row, clean);
        }
        check_on_all(problem, reports);
        for (Report& report : reports) {
          check_neighbours(problem, clean, edits, false, report);
          if (kScratchIsOptional) check_neighbours(problem, clean, edits, true, report);
        }
      }
    }
  }
}

// The mean over no rows: the total weight is 0, and the gradient of ignored rows is 0 all the same.
template <class Storage>
void check_nothing_counted(Reports& reports) {
  Random random = random_for<Storage>(5);
  for (const Arrangement arrangement : arrangements(17, 0)) {
    Options options;
    options.arrangement = arrangement;
    options.shape = shape_of(arrangement, 17, 1);
    options.grad_output = GradOutput::scalar;
    options.total_weight = 0.0;
    Problem<Storage> problem(options, random, 0.0, 1.0);
    for (int64_t row = 0; row < problem.rows(); ++row) {
      problem.set_target(row, problem.options.ignore_index);
    }
    check_on_all(problem, reports);
  }
}

}  // namespace powergrad::test

// Index targets at both ends of whatever a kernel divides a row into: vectors, the classes of a
// thread, column blocks, thread blocks, passes, shards. A kernel that passes one over leaves its
// gradient without the target.
#pragma once

#include "ordinary_problems.h"

namespace powergrad::test {

// A row for each target, which are all classes of short rows.
template <class Storage>
void check_target_places(Reports& reports) {
  Random random = random_for<Storage>(9);
  int64_t turn = 0;
  const auto check = [&](Arrangement arrangement, int64_t classes, double smoothing,
                         const std::vector<int64_t>& targets, Report& report) {
    const auto rows = static_cast<int64_t>(targets.size());
    Options options;
    options.arrangement = arrangement;
    options.shape = {1, classes, rows};
    if (arrangement == Arrangement::packed) options.shape = {rows, classes, 1};
    options.target = turn % 2 == 0 ? TargetKind::index64 : TargetKind::index32;
    options.weighted = turn % 3 == 0;
    options.smoothing = smoothing;
    options.alpha = kAlphas[turn % 7];
    Problem<Storage> problem(options, random, 0.0, 3.0);
    for (int64_t row = 0; row < rows; ++row) problem.set_target(row, targets[row]);
    const CrossEntropyReference<Storage> reference(problem, problem.softmax_rows());
    CrossEntropyCheck<Storage>(problem, reference, report).check_step();
    if (!is_small(classes)) return;
    ShardsCheck<Storage>(problem, reference, {1, classes / 3, classes / 2}, report).check();
  };
  constexpr DataType kType = Traits<Storage>::dtype;
  for (const int64_t classes : sizes_of_parts(kType)) {
    for (const Arrangement arrangement : arrangements(classes, 0)) {
      for (const double smoothing : {0.0, 0.1}) {
        ++turn;
        if (turn % kEvery != 0 || (!is_small(classes) && smoothing > 0.0)) continue;
        for (Report& report : reports) {
          const std::vector<int64_t> targets = ends_of_parts(report.machine(), kType, classes);
          if (!targets.empty()) check(arrangement, classes, smoothing, targets, report);
        }
      }
    }
  }
}

}  // namespace powergrad::test

// Row lengths on both sides of every boundary of the plan.
#pragma once

#include "ordinary_problems.h"

namespace powergrad::test {

// In vectors of 16 bytes: the longest rows for each number of threads, for one block, and for
// clusters of 8 and 16 blocks (plan.cpp counts one vector more, since a row may begin in the middle
// of one); and rows of which each block's part fills its shared memory.
inline constexpr int64_t kLongestRows[] = {3,    15,    31,    255,   599,   1099,
                                           8499, 13499, 16384, 32768, 65536, 200000};
inline constexpr int64_t kVectorsOfShortRows = 2000;

template <class Storage>
void check_boundaries(Reports& reports) {
  Random random = random_for<Storage>(8);
  int64_t turn = 0;
  for (const int64_t vectors : kLongestRows) {
    const bool is_short = vectors < kVectorsOfShortRows;
    for (const int64_t more : {0, 1}) {
      ++turn;
      if (!is_short && turn % kEvery != 0) continue;
      Options options = random_options(random);
      options.alpha = kAlphas[turn % 7];
      options.lead = turn % 8;
      const int64_t classes = vectors * 16 / static_cast<int64_t>(sizeof(Storage)) + more;
      options.shape = {is_short ? 3 : 1, classes, 1};
      const Problem<Storage> problem(options, random, 0.0, 3.0);
      const CrossEntropyReference<Storage> reference(problem, problem.softmax_rows());
      for (Report& report : reports) {
        // Only on the machine whose clusters hold such rows.
        if (!is_short && report.machine().device.shared_memory < host_cuda::kSm90.shared_memory) {
          continue;
        }
        CrossEntropyCheck<Storage>(problem, reference, report).check_step();
      }
    }
  }
}

}  // namespace powergrad::test

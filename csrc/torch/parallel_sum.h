// A sum whose bits do not depend on the number of threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace powergrad {

// sum_blocks(first, last, sums) -> sums[block] for each block of [first, last), all on one thread;
// the blocks' sums are added in order.
template <class SumBlocks>
double parallel_sum_of_blocks(int64_t blocks, const SumBlocks& sum_blocks) {
  std::vector<double> sums(blocks);
  at::parallel_for(0, blocks, 1,
                   [&](int64_t first, int64_t last) { sum_blocks(first, last, sums.data()); });
  double total = 0.0;
  for (double sum : sums) total += sum;
  return total;
}

// block_sum(begin, end) -> double, over blocks of a fixed size.
template <class BlockSum>
double parallel_sum(int64_t count, const BlockSum& block_sum) {
  constexpr int64_t kBlock = 16384;
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  if (blocks <= 1) return block_sum(0, count);
  return parallel_sum_of_blocks(blocks, [&](int64_t first, int64_t last, double* sums) {
    for (int64_t block = first; block < last; ++block) {
      sums[block] = block_sum(block * kBlock, std::min(count, (block + 1) * kBlock));
    }
  });
}

}  // namespace powergrad

// A sum whose bits do not depend on the number of threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace powergrad {

// block_sum(begin, end) -> double, over blocks of a fixed size; the blocks are added in order.
template <class BlockSum>
double parallel_sum(int64_t count, const BlockSum& block_sum) {
  constexpr int64_t kBlock = 16384;
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  if (blocks <= 1) return block_sum(0, count);
  std::vector<double> sums(blocks);
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      sums[block] = block_sum(block * kBlock, std::min(count, (block + 1) * kBlock));
    }
  });
  double total = 0.0;
  for (double sum : sums) total += sum;
  return total;
}

}  // namespace powergrad

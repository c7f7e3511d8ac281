// One answer for all instruction sets and whoever allocates: compiled for any processor, once.
#include <algorithm>

#include "cpu/kernels.h"

namespace powergrad {
namespace {

constexpr int64_t kLineBytes = 64;
// Packing pays even where a tile is far past the L2 cache; the limit only bounds the memory.
constexpr int64_t kMostTileBytes = 8 * 1024 * 1024;

}  // namespace

int64_t tile_rows(const Shape& shape, int64_t accumulate_size) {
  const int64_t step = kLineBytes / accumulate_size;  // any vector's width divides it
  const int64_t bytes = shape.classes * accumulate_size;
  if (bytes * step > kMostTileBytes) return 0;
  const int64_t fitting = std::max(step, kTileBytes / bytes / step * step);
  const int64_t needed = (shape.inner + step - 1) / step * step;
  return std::min({kTileRows, fitting, needed});
}

}  // namespace powergrad

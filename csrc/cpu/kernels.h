// The CPU kernels as the binding sees them: one table per instruction set, one entry per dtype.
//
// A kernel takes a struct and a range of work and returns. Work on a row is three phases, so that
// a single huge row can be spread over threads: every column block is reduced on its own, the
// blocks' states are merged, and every block is mapped to output. `rows` runs all three for whole
// rows. Column blocks have a fixed size, so the bits do not depend on how the work was split.
#pragma once

#include <array>
#include <cstdint>

#include "powergrad.h"

namespace powergrad {

inline constexpr int64_t kBlockColumns =
    2048;  // the columns of a block: its logits and exponentials stay in the L1 cache

inline int64_t block_count(const Shape& shape) {
  return (shape.classes + kBlockColumns - 1) / kBlockColumns;
}

// Where classes are strided, kTileRows neighbouring rows are worked on together, so that each class
// is read and written in bursts of 256 to 1024 bytes; fewer where the L2 cache would not hold two
// such tiles.
inline constexpr int64_t kTileRows = 128;
inline constexpr int64_t kTileBytes = 256 * 1024;

// The rows of a tile of strided classes that is packed into scratch; 0: too many classes to pack.
int64_t tile_rows(const Shape& shape, int64_t accumulate_size);

// Sums over one column block, relative to the block's own maximum ("1 + r", see powergrad.h).
struct BlockState {
  double maximum;
  double sumexp_m1;        // sum of exp(z - maximum) without the maximum
  double alpha_sumexp_m1;  // sum of exp(alpha (z - maximum)) without the maximum
  double target_weight;    // sum of target_j
  double distance;         // sum of target_j (maximum - z_j)
  double alpha_factor;     // exp(alpha (maximum - row maximum)), set by merge
  double entropy_sum;      // sum of exp(z - maximum) (maximum - z), where metrics are asked for
};

// Memory that a kernel works in; threads on one row share it. Owned by the caller.
struct Workspace {
  BlockState* blocks;  // (block_count)
  BlockState row;      // set by merge
  void* exponentials;  // (classes) accumulate: keeps exp(alpha (z - maximum)) of half-precision
                       // logits between the phases; null: recomputes them
  void* tile;          // (classes, tile_rows) accumulate: logits with strided classes, packed, and
                       // then their exponentials; null: read in place
};

template <class Params>
struct Kernel {
  // Any layout: rows [begin, end).
  void (*rows)(const Params&, int64_t begin, int64_t end, Workspace&);
  // Contiguous rows (strides.classes == 1): blocks [begin, end) of one row.
  void (*reduce)(const Params&, int64_t row, int64_t begin, int64_t end, Workspace&);
  void (*merge)(const Params&, int64_t row, Workspace&);
  void (*map)(const Params&, int64_t row, int64_t begin, int64_t end, Workspace&);
};

struct KernelTable {
  Kernel<CrossEntropyParams> cross_entropy_forward;  // and the gradient, where one is asked for
  Kernel<CrossEntropyParams> cross_entropy_backward;
  Kernel<LogSoftmaxParams> log_softmax_forward;
  Kernel<LogSoftmaxParams> log_softmax_backward;
  // Elementwise: z = softcap tanh(z); gradient *= 1 - (capped / softcap)^2.
  void (*softcap)(void* logits, int64_t count, double softcap);
  void (*softcap_backward)(const void* capped, void* gradient, int64_t count, double softcap);
};

struct InstructionSet {
  const char* name;
  bool (*supported)();
  std::array<const KernelTable*, kDataTypes> tables;  // indexed by DataType
};

extern const KernelTable scalar_kernels[kDataTypes];
#if defined(__x86_64__)
extern const KernelTable avx2_kernels[kDataTypes];
extern const KernelTable avx512_kernels[kDataTypes];
extern const KernelTable avx512_bf16_kernels;  // of bfloat16
#endif

// Best first. The last one is supported everywhere.
struct InstructionSets {
  const InstructionSet* begin_;
  const InstructionSet* end_;
  const InstructionSet* begin() const { return begin_; }
  const InstructionSet* end() const { return end_; }
};
InstructionSets instruction_sets();

// Null if there is no instruction set of that name.
const InstructionSet* find_instruction_set(const char* name);

}  // namespace powergrad

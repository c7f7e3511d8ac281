// The CPU kernels as the checks run them: a machine is an instruction set, and an execution one way
// to run a kernel over all rows of a problem. Each way must leave the same bits.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "buffers.h"
#include "cpu/kernels.h"
#include "shards.h"

namespace powergrad::test {

using Machine = InstructionSet;

inline int turns_of(const Machine&) { return 1; }  // each checks every problem
// Whether numbers below the least normal one are stored as 0.
inline bool flushes_denormals(const Machine& machine, DataType type) {
  return machine.name == std::string("avx512_bf16") && type == DataType::bfloat16;
}

// Classes that are reduced at once.
inline constexpr int64_t kPiece = kBlockColumns;
// Several blocks, the last one partial.
inline constexpr int64_t kLongRow = 2 * kBlockColumns + 904;
// One class and two; around the widths of vectors (2, 4, 8 and 16 lanes) and two of the widest;
// a size that is a whole number of some of them only; around one block; several blocks.
inline constexpr int64_t kSizes[] = {
    1, 2, 7, 15, 16, 17, 33, 1000, kBlockColumns - 1, kBlockColumns, kBlockColumns + 1, kLongRow};

// For targets at the ends of what kernels divide a row into: all classes of a short one, the first
// and the last of each column block of a long one.
inline std::vector<int64_t> sizes_of_parts(DataType) { return {33, kLongRow}; }
inline std::vector<int64_t> ends_of_parts(const Machine&, DataType, int64_t classes) {
  std::vector<int64_t> ends;
  const int64_t part = classes < kBlockColumns ? 1 : kBlockColumns;
  for (int64_t first = 0; first < classes; first += part) {
    ends.push_back(first);
    if (part > 1) ends.push_back(std::min(first + part, classes) - 1);
  }
  return ends;
}

inline constexpr long double kRemoteFactor = 1.0L;  // remote exponents are computed exactly

// Which problems are checked: each by the plain build. A sanitizer slows them down five times, and
// the sizes that it looks for return.
#if defined(__SANITIZE_ADDRESS__)
inline constexpr int kEvery = 3;
#else
inline constexpr int kEvery = 1;
#endif

// There is scratch, for exponentials of half precision and tiles of neighbouring rows, or there is
// none.
inline constexpr bool kScratchIsOptional = true;
// Whether a forward that computes the gradient can leave the statistics out.
inline constexpr bool kStatisticsAreOptional = true;

using Cuts = std::vector<int64_t>;  // where [0, end) is cut into pieces; increasing

inline std::vector<std::pair<int64_t, int64_t>> pieces(const Cuts& cuts, int64_t end) {
  std::vector<std::pair<int64_t, int64_t>> result;
  int64_t begin = 0;
  for (const int64_t cut : cuts) {
    result.emplace_back(begin, cut);
    begin = cut;
  }
  result.emplace_back(begin, end);
  return result;
}

// A workspace of exactly the needed size, full of NaN.
template <class Accumulate>
class OwnedWorkspace : public Workspace {
 public:
  OwnedWorkspace(const Shape& shape, bool has_scratch)
      : Workspace{},
        blocks_(block_count(shape)),
        kept_(has_scratch ? shape.classes : 0),
        tile_(has_scratch ? shape.classes * tile_rows(shape, sizeof(Accumulate)) : 0) {
    blocks = blocks_.data();
    if (has_scratch) exponentials = kept_.data();
    if (tile_.count() > 0) tile = tile_.data();
  }
  bool band_untouched() const {
    return blocks_.band_untouched() && kept_.band_untouched() && tile_.band_untouched();
  }

 private:
  Block<BlockState> blocks_;
  Block<Accumulate> kept_;
  Block<Accumulate> tile_;
};

template <class Params>
void run_rows(const Kernel<Params>& kernel, const Params& p, const Cuts& cuts,
              Workspace& workspace) {
  for (const auto& [begin, end] : pieces(cuts, p.shape.rows())) {
    kernel.rows(p, begin, end, workspace);
  }
}

// The three phases as threads would share them: pieces in an order of their own.
template <class Params>
void run_blocks(const Kernel<Params>& kernel, const Params& p, const Cuts& cuts,
                Workspace& workspace) {
  auto backwards = pieces(cuts, block_count(p.shape));
  std::reverse(backwards.begin(), backwards.end());
  for (int64_t row = 0; row < p.shape.rows(); ++row) {
    for (const auto& [begin, end] : backwards) kernel.reduce(p, row, begin, end, workspace);
    kernel.merge(p, row, workspace);
    for (const auto& [begin, end] : backwards) kernel.map(p, row, begin, end, workspace);
  }
}

struct Execution {
  const char* name;
  bool by_blocks;
  Cuts cuts;

  template <class Accumulate, class Params>
  bool run(const Kernel<Params>& kernel, const Params& p, bool has_scratch) const {
    OwnedWorkspace<Accumulate> workspace(p.shape, has_scratch);
    (by_blocks ? run_blocks<Params> : run_rows<Params>)(kernel, p, cuts, workspace);
    return workspace.band_untouched();
  }
};

// One kernel of a machine, as the checks call it. What is wrong with how it ran, else nothing.
#define POWERGRAD_RUN(name, Params)                                                            \
  inline std::string run_##name(const Machine& machine, const Params& p,                       \
                                const Execution& execution, bool keeps) {                      \
    const auto& kernel = machine.tables[static_cast<int>(p.dtype)]->name;                      \
    const bool inside = p.dtype == DataType::float64 ? execution.run<double>(kernel, p, keeps) \
                                                     : execution.run<float>(kernel, p, keeps); \
    return inside ? "" : "wrote past the workspace";                                           \
  }
POWERGRAD_RUN(cross_entropy_forward, CrossEntropyParams)
POWERGRAD_RUN(cross_entropy_backward, CrossEntropyParams)
POWERGRAD_RUN(log_softmax_forward, LogSoftmaxParams)
POWERGRAD_RUN(log_softmax_backward, LogSoftmaxParams)
#undef POWERGRAD_RUN

inline std::string run_merge_shards(const Machine&, const MergeParams& p, const Execution&, bool) {
  const bool is_double = p.dtype == DataType::float64;
  for (int64_t row = 0; row < p.rows; ++row) {
    is_double ? merge_row(p, row, p.alpha) : merge_row(p, row, static_cast<float>(p.alpha));
  }
  return "";
}

inline Execution whole() { return {"whole", false, {}}; }

// Rows cut once and one by one, which may share vectors. Contiguous rows of several blocks, the
// only ones that threads share, cut into blocks in every way.
inline std::vector<Execution> splits(const Shape& shape, const Strides& strides) {
  const int64_t rows = shape.rows();
  std::vector<Execution> result;
  if (rows > 1) result.push_back({"rows cut once", false, {(rows + 1) / 2}});
  Cuts every;
  for (int64_t row = 1; row < rows; ++row) every.push_back(row);
  result.push_back({"rows one by one", false, every});
  if (strides.classes != 1 || block_count(shape) == 1) return result;
  const int64_t places = block_count(shape) - 1;
  for (int64_t chosen = 0; chosen < int64_t{1} << places; ++chosen) {
    Cuts cuts;
    for (int64_t place = 0; place < places; ++place) {
      if ((chosen >> place & 1) != 0) cuts.push_back(place + 1);
    }
    result.push_back({"pieces of blocks", true, cuts});
  }
  return result;
}

}  // namespace powergrad::test

// The algorithm, once, over a vector type. Each instruction set's file includes the standard
// headers (standard.h) outside its target region, then opens the region and includes its vector
// type and this file; everything here has internal linkage, so no code for one processor can be
// picked by the linker for another.
#pragma once

#include "alpha.h"
#include "row.h"
#include "cpu/lanes.h"
#include "cpu/exponentials.h"
#include "cpu/exponential_pairs.h"
#include "cpu/long_sum.h"
#include "cpu/row_reductions.h"
#include "cpu/cross_entropy_row.h"
#include "cpu/log_softmax_row.h"
#include "cpu/inner_tile.h"
#include "cpu/inner_reductions.h"
#include "cpu/inner_map.h"
#include "cpu/inner.h"

namespace powergrad {
namespace {

template <class Storage>
struct Kernels {
  using Scalar = AccumulateOf<Storage>;

  template <class Row, class Params>
  static void reduce_forward(const Params& p, int64_t row, int64_t begin, int64_t end,
                             Workspace& workspace) {
    with_alpha_kind<Scalar>(p.alpha, p.statistics != nullptr, [&](auto kind) {
      Row::template reduce<decltype(kind)>(p, row, begin, end, workspace);
    });
  }

  template <class Row, class Inner, class Params>
  static void forward(const Params& p, int64_t begin, int64_t end, Workspace& workspace) {
    with_alpha_kind<Scalar>(p.alpha, p.statistics != nullptr, [&](auto kind) {
      using Kind = decltype(kind);
      if (p.logits_strides.classes != 1) {
        const int64_t width = TileLogits<Storage>::tile_width(p.shape, workspace);
        for_each_tile(p.shape, width, begin, end, [&](const InnerTile& tile) {
          Inner::template forward_tile<Kind>(p, tile, workspace);
        });
        finish_streams();
        return;
      }
      const int64_t chunks = chunk_count(p.shape);
      for (int64_t row = begin; row < end; ++row) {
        Row::template reduce<Kind>(p, row, 0, chunks, workspace);
        Row::merge(p, row, workspace);
        Row::map_forward(p, row, 0, chunks, workspace);
      }
    });
  }

  // One kernel of the table from its phases; backward has no alpha kinds.
  template <auto kReduce, auto kMerge, auto kMap, class Inner, class Params>
  static void backward(const Params& p, int64_t begin, int64_t end, Workspace& workspace) {
    if (p.logits_strides.classes != 1) {
      const PoweredExponential<Vector<Scalar>> exponential(p.alpha);
      for_each_tile(p.shape, kTileRows, begin, end,
                    [&](const InnerTile& tile) { Inner::backward_tile(p, tile, exponential); });
      finish_streams();
      return;
    }
    const int64_t chunks = chunk_count(p.shape);
    for (int64_t row = begin; row < end; ++row) {
      kReduce(p, row, 0, chunks, workspace);
      kMerge(p, row, workspace);
      kMap(p, row, 0, chunks, workspace);
    }
  }

  // Cross-entropy's backward has nothing to reduce.
  static void no_reduce(const CrossEntropyParams&, int64_t, int64_t, int64_t, Workspace&) {}
  static void no_merge(const CrossEntropyParams&, int64_t, Workspace&) {}

  static constexpr KernelTable table() {
    using CrossEntropy = CrossEntropyRow<Storage>;
    using LogSoftmax = LogSoftmaxRow<Storage>;
    using CrossEntropyTiles = CrossEntropyInner<Storage>;
    using LogSoftmaxTiles = LogSoftmaxInner<Storage>;
    return {
        {forward<CrossEntropy, CrossEntropyTiles, CrossEntropyParams>,
         reduce_forward<CrossEntropy, CrossEntropyParams>, CrossEntropy::merge,
         CrossEntropy::map_forward},
        {backward<no_reduce, no_merge, CrossEntropy::map_backward, CrossEntropyTiles,
                  CrossEntropyParams>,
         no_reduce, no_merge, CrossEntropy::map_backward},
        {forward<LogSoftmax, LogSoftmaxTiles, LogSoftmaxParams>,
         reduce_forward<LogSoftmax, LogSoftmaxParams>, LogSoftmax::merge, LogSoftmax::map_forward},
        {backward<LogSoftmax::reduce_upstream, LogSoftmax::merge_upstream, LogSoftmax::map_backward,
                  LogSoftmaxTiles, LogSoftmaxParams>,
         LogSoftmax::reduce_upstream, LogSoftmax::merge_upstream, LogSoftmax::map_backward},
    };
  }
};

}  // namespace
}  // namespace powergrad

// The table of one instruction set, indexed by DataType.
#define POWERGRAD_TABLE_ENTRY(name, storage, accumulate) Kernels<storage>::table(),
#define POWERGRAD_DEFINE_KERNELS(table_name)                                                  \
  namespace powergrad {                                                                       \
  const KernelTable table_name[kDataTypes] = {POWERGRAD_FORALL_TYPES(POWERGRAD_TABLE_ENTRY)}; \
  }

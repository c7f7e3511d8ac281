// The algorithm, once, over a vector type. Each instruction set's file includes the standard
// headers (standard.h) outside its target region, then opens the region and includes its vector
// type and this file; everything here has internal linkage, so no code for one processor can be
// picked by the linker for another.
#pragma once

#include "alpha.h"
#include "row.h"
#include "cpu/lanes.h"
#include "cpu/polynomial.h"
#include "cpu/exponentials.h"
#include "cpu/log1p.h"
#include "cpu/exponential_pairs.h"
#include "cpu/long_sum.h"
#include "cpu/row_reductions.h"
#include "cpu/cross_entropy_row.h"
#include "cpu/log_softmax_row.h"
#include "cpu/tile.h"
#include "cpu/transpose.h"
#include "cpu/tile_memory.h"
#include "cpu/tile_sums.h"
#include "cpu/tile_targets.h"
#include "cpu/tile_gradient.h"
#include "cpu/tile_scale.h"
#include "cpu/two_classes.h"
#include "cpu/cross_entropy_tile.h"
#include "cpu/log_softmax_tile.h"
#include "cpu/softcap.h"

namespace powergrad {
namespace {

template <class Storage>
struct Kernels {
  using Scalar = AccumulateOf<Storage>;

  template <class Params>
  static bool needs_alpha_sum(const Params& p) {
    return p.statistics != nullptr || p.gradient != nullptr;
  }

  template <class Row, class Params>
  static void reduce_forward(const Params& p, int64_t row, int64_t begin, int64_t end,
                             Workspace& workspace) {
    with_alpha_kind<Scalar>(p.alpha, needs_alpha_sum(p), [&](auto kind) {
      Row::template reduce<decltype(kind)>(p, row, begin, end, workspace);
    });
  }

  template <class Row, class Tiles, class Params>
  static void forward(const Params& p, int64_t begin, int64_t end, Workspace& workspace) {
    with_alpha_kind<Scalar>(p.alpha, needs_alpha_sum(p), [&](auto kind) {
      using Kind = decltype(kind);
      if (works_across_rows(p)) {
        const int64_t width =
            workspace.tile != nullptr ? tile_rows(p.shape, sizeof(Scalar)) : Vector<Scalar>::kWidth;
        const TileScratch<Scalar> strided{false, width, static_cast<Scalar*>(workspace.tile),
                                          nullptr};
        for_each_tile_of<Tiles>(p, strided, begin, end, [](const Tiles& tiles, const Tile& tile) {
          tiles.template forward<Kind>(tile);
        });
        return;
      }
      const int64_t blocks = block_count(p.shape);
      for (int64_t row = begin; row < end; ++row) {
        Row::template reduce<Kind>(p, row, 0, blocks, workspace);
        Row::merge(p, row, workspace);
        Row::map_forward(p, row, 0, blocks, workspace);
      }
    });
  }

  // One kernel of the table from its phases; backward has no alpha kinds.
  template <auto kReduce, auto kMerge, auto kMap, class Tiles, class Params>
  static void backward(const Params& p, int64_t begin, int64_t end, Workspace& workspace) {
    if (works_across_rows(p)) {
      const TileScratch<Scalar> in_place{false, kTileRows, nullptr, nullptr};
      for_each_tile_of<Tiles>(p, in_place, begin, end,
                              [](const Tiles& tiles, const Tile& tile) { tiles.backward(tile); });
      return;
    }
    const int64_t blocks = block_count(p.shape);
    for (int64_t row = begin; row < end; ++row) {
      kReduce(p, row, 0, blocks, workspace);
      kMerge(p, row, workspace);
      kMap(p, row, 0, blocks, workspace);
    }
  }

  // Whether vectors run across rows: for strided classes, and for contiguous rows of few classes,
  // which are cheaper to transpose than to reduce one by one. Half a vector of rows takes as long
  // as a whole one.
  template <class Params>
  static bool works_across_rows(const Params& p) {
    if (p.logits_strides.classes != 1) return true;
    constexpr int64_t kWidth = Vector<Scalar>::kWidth;
    const int64_t neighbours = p.shape.inner == 1 ? p.shape.outer : p.shape.inner;
    return p.shape.classes * kWidth <= kMostFewClasses<Storage> * std::min(neighbours, kWidth);
  }

  // Calls each(tiles, tile) for the rows [begin, end), in the given scratch if classes are strided;
  // contiguous rows are transposed into scratch on the stack.
  template <class Tiles, class Params, class Each>
  static void for_each_tile_of(const Params& p, const TileScratch<Scalar>& strided, int64_t begin,
                               int64_t end, const Each& each) {
    if (p.logits_strides.classes != 1) {
      const Tiles tiles(p, strided);
      for_each_tile(p.shape, strided.width, begin, end,
                    [&](const Tile& tile) { each(tiles, tile); });
      finish_streams();
      return;
    }
    constexpr int64_t kWidth = Vector<Scalar>::kWidth;
    alignas(64) Scalar columns[2][kMostFewClasses<Storage> * kWidth];
    const TileScratch<Scalar> transposed{true, kWidth, columns[0], columns[1]};
    const Params neighbours = with_neighbours(p);
    const Tiles tiles(neighbours, transposed);
    for_each_tile(neighbours.shape, kWidth, begin, end,
                  [&](const Tile& tile) { each(tiles, tile); });
  }

  // The same problem, its rows numbered by the inner index where they were by the outer one.
  static CrossEntropyParams with_neighbours(CrossEntropyParams p) {
    if (p.shape.inner != 1) return p;
    to_neighbours(p.shape, {&p.logits_strides, &p.target_strides, &p.gradient_strides});
    return p;
  }
  static LogSoftmaxParams with_neighbours(LogSoftmaxParams p) {
    if (p.shape.inner != 1) return p;
    to_neighbours(p.shape, {&p.logits_strides, &p.output_strides, &p.grad_output_strides,
                            &p.gradient_strides});
    return p;
  }
  static void to_neighbours(Shape& shape, std::initializer_list<Strides*> all_strides) {
    std::swap(shape.outer, shape.inner);
    for (Strides* strides : all_strides) std::swap(strides->outer, strides->inner);
  }

  // Cross-entropy's backward has nothing to reduce.
  static void no_reduce(const CrossEntropyParams&, int64_t, int64_t, int64_t, Workspace&) {}
  static void no_merge(const CrossEntropyParams&, int64_t, Workspace&) {}

  static constexpr KernelTable table() {
    using CrossEntropy = CrossEntropyRow<Storage>;
    using LogSoftmax = LogSoftmaxRow<Storage>;
    return {
        {forward<CrossEntropy, CrossEntropyTiles<Storage>, CrossEntropyParams>,
         reduce_forward<CrossEntropy, CrossEntropyParams>, CrossEntropy::merge,
         CrossEntropy::map_forward},
        {backward<no_reduce, no_merge, CrossEntropy::map_backward, CrossEntropyTiles<Storage>,
                  CrossEntropyParams>,
         no_reduce, no_merge, CrossEntropy::map_backward},
        {forward<LogSoftmax, LogSoftmaxTiles<Storage>, LogSoftmaxParams>,
         reduce_forward<LogSoftmax, LogSoftmaxParams>, LogSoftmax::merge, LogSoftmax::map_forward},
        {backward<LogSoftmax::reduce_grad_output, LogSoftmax::merge_grad_output,
                  LogSoftmax::map_backward, LogSoftmaxTiles<Storage>, LogSoftmaxParams>,
         LogSoftmax::reduce_grad_output, LogSoftmax::merge_grad_output, LogSoftmax::map_backward},
        Softcap<Storage>::apply,
        Softcap<Storage>::differentiate,
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

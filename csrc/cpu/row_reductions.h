// Reductions and maps over consecutive columns of one contiguous row. Included inside the target
// region.
#pragma once

namespace powergrad {
namespace {

// Calls step(column, lanes) for every vector of [0, count), the last one possibly partial. Inlined,
// since GCC stops inlining in functions as large as a tile's.
template <class V, class Step>
__attribute__((always_inline)) inline void for_each_vector(int64_t count, const Step& step) {
  int64_t column = 0;
  for (; column + V::kWidth <= count; column += V::kWidth) step(column, V::kWidth);
  if (column < count) step(column, static_cast<int>(count - column));
}

// How many columns ahead passes over rows prefetch: the rest of the row or, where rows are
// neighbours, the next ones. Hardware prefetchers stop at page boundaries. It is more than a column
// block, because the search for the maximum runs over a block before its sums do.
template <class V>
inline constexpr int64_t kAhead = kBlockColumns + LongSum<V>::kRun * V::kWidth;

// store_lanes to a row of the gradient or output, which may not be in the cache yet.
template <class V, class Storage>
void prefetch_and_store(V x, Storage* p, int lanes) {
  __builtin_prefetch(p + kAhead<V>);
  store_lanes(x, p, lanes);
}

// Stores value(column, lanes) for every vector of [0, count).
template <class V, class Storage, class Value>
void map_row(int64_t count, Storage* out, const Value& value) {
  int64_t column = 0;
  if constexpr (!kIsAccumulate<Storage>) {
    for (; column + 2 * V::kWidth <= count; column += 2 * V::kWidth) {
      const V first = value(column, V::kWidth);
      const V second = value(column + V::kWidth, V::kWidth);
      __builtin_prefetch(out + column + kAhead<V>);
      store_pair(first, second, out + column);
    }
  }
  for_each_vector<V>(count - column, [&](int64_t offset, int lanes) {
    prefetch_and_store(value(column + offset, lanes), out + column + offset, lanes);
  });
}

// What nothing is less than.
template <class Scalar>
inline constexpr Scalar kLowest =
    std::is_floating_point_v<Scalar> ? static_cast<Scalar>(-kInfinity)
                                     : std::numeric_limits<Scalar>::min();

// The largest element, lane by lane; NaN may be passed over (the sums catch it).
template <class V, class Storage>
V lane_maxima(const Storage* z, int64_t count) {
  constexpr int kUnroll = 4;  // hides the latency of a chain of maxima
  const V lowest = V::broadcast(kLowest<typename V::Scalar>);
  V best[kUnroll] = {lowest, lowest, lowest, lowest};
  int64_t column = 0;
  for (; column + kUnroll * V::kWidth <= count; column += kUnroll * V::kWidth) {
    for (int u = 0; u < kUnroll; ++u) {
      best[u] = maximum(best[u], V::load(z + column + u * V::kWidth));
    }
  }
  for_each_vector<V>(count - column, [&](int64_t offset, int lanes) {
    const V x = load_lanes<V>(z + column + offset, lanes);
    best[0] = maximum(best[0], select(V::first_lanes(lanes), x, lowest));
  });
  return maximum(maximum(best[0], best[1]), maximum(best[2], best[3]));
}

// The first column of [begin, end) that equals x, or end.
template <class V, class Storage>
int64_t find_in_row(const Storage* z, int64_t begin, int64_t end, typename V::Scalar x) {
  const V wanted = V::broadcast(x);
  for (int64_t column = begin; column < end; column += V::kWidth) {
    const int lanes = static_cast<int>(std::min<int64_t>(V::kWidth, end - column));
    const int lane = first_set(equal(load_lanes<V>(z + column, lanes), wanted));
    if (lane >= 0 && lane < lanes) return column + lane;
  }
  return end;
}

template <class Scalar>
struct Largest {
  Scalar value;
  int64_t column;  // `count` if it was not found, which takes a NaN in the row
};

// Each lane remembers in which run of 16 vectors its maximum rose last; only that run is searched.
template <class V, class Storage>
Largest<typename V::Scalar> find_largest_of(const Storage* z, int64_t count) {
  using Scalar = typename V::Scalar;
  constexpr int64_t kBlock = 16 * V::kWidth;
  V best = V::broadcast(kLowest<Scalar>);
  V best_block = V::broadcast(0);
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const V maxima = lane_maxima<V>(z + begin, std::min(kBlock, count - begin));
    const V block = V::broadcast(static_cast<Scalar>(begin / kBlock));
    best_block = select(less(best, maxima), block, best_block);
    best = maximum(best, maxima);
  }
  const Scalar value = largest_of_lanes(best);
  const int lane = first_set(equal(best, V::broadcast(value)));
  if (lane < 0) return {value, count};
  Scalar blocks[V::kWidth];
  best_block.store(blocks);
  const int64_t begin = static_cast<int64_t>(blocks[lane]) * kBlock;
  const int64_t end = std::min(begin + kBlock, count);
  const int64_t column = find_in_row<V>(z, begin, end, value);
  return {value, column < end ? column : count};  // a NaN before it may have hidden the block
}

// Half precision by its bits, twice as many in a vector and without conversion. Those of negative
// numbers are in the reverse order: the first numbers tell whether all may be.
template <class Storage>
Largest<AccumulateOf<Storage>> find_largest(const Storage* z, int64_t count) {
  if constexpr (!kIsAccumulate<Storage>) {
    using Bits = Vector<int16_t>;
    const int lanes = static_cast<int>(std::min<int64_t>(count, Bits::kWidth));
    const int first = first_set(less(Bits::broadcast(-1), load_lanes<Bits>(z, lanes)));
    if (0 <= first && first < lanes) {
      const int64_t column = find_largest_of<Bits>(z, count).column;
      return {load_scalar(z + column), column};
    }
  }
  return find_largest_of<VectorOf<Storage>>(z, count);
}

// Where exp(alpha (z - reference)) is kept until the row's sums are known: in the gradient's own
// row, or in scratch if that is too narrow.
template <class Storage>
struct KeptRow {
  using Scalar = AccumulateOf<Storage>;
  Scalar* exponentials;     // null: nowhere
  const Storage* gradient;  // the row that is made of them

  KeptRow from(int64_t column) const {
    return exponentials != nullptr ? KeptRow{exponentials + column, gradient + column} : *this;
  }
  void keep(Vector<Scalar> powered, int64_t column, int lanes) const {
    if constexpr (kIsAccumulate<Storage>) {
      prefetch_and_store(powered, exponentials + column, lanes);
    } else {
      // Scratch stays in the cache. The gradient is written all at once in the end, when memory
      // would be waited for: so it is asked for here, where arithmetic takes the time.
      constexpr int kIntoL2 = 2;
      __builtin_prefetch(gradient + column, 1, kIntoL2);
      store_lanes(powered, exponentials + column, lanes);
    }
  }
};

// Running sums of exp(z - reference) and exp(alpha (z - reference)) over one column block.
template <class Evaluate, class Storage>
struct ExponentialSums {
  using Scalar = AccumulateOf<Storage>;
  using V = Vector<Scalar>;
  const Evaluate& evaluate;
  V reference;
  KeptRow<Storage> kept;
  LongSum<V> plain;
  LongSum<V> powered;

  auto at(const Storage* z, int64_t column, int lanes) const {
    __builtin_prefetch(z + column + kAhead<V>);
    const auto e = evaluate(load_lanes<V>(z + column, lanes), reference);
    if (kept.exponentials != nullptr) kept.keep(e.powered(), column, lanes);
    return e;
  }
  template <class Pair>
  void add(const Pair& e) {
    e.add_to(plain.run, powered.run);
  }
  template <class Pair>
  void add_only(typename V::Mask mask, const Pair& e) {
    e.add_to_where(mask, plain.run, powered.run);
  }

  // All columns but one. Only the run that contains it tests for it.
  void add_all_but(int64_t left_out, const Storage* z, int64_t count) {
    constexpr int64_t kRun = LongSum<V>::kRun * V::kWidth;
    for (int64_t begin = 0; begin < count; begin += kRun) {
      const int64_t end = std::min(begin + kRun, count);
      if (begin <= left_out && left_out < end) {
        add_run_without(left_out, z, begin, end);
      } else {
        add_run(z, begin, end);
      }
      plain.close_run();
      powered.close_run();
    }
  }
  void add_run(const Storage* z, int64_t begin, int64_t end) {
    int64_t column = begin;
    for (; column + V::kWidth <= end; column += V::kWidth) add(at(z, column, V::kWidth));
    if (column == end) return;
    const int lanes = static_cast<int>(end - column);
    add_only(V::first_lanes(lanes), at(z, column, lanes));
  }
  void add_run_without(int64_t left_out, const Storage* z, int64_t begin, int64_t end) {
    for_each_vector<V>(end - begin, [&](int64_t offset, int lanes) {
      const int64_t lane = left_out - (begin + offset);
      const bool here = 0 <= lane && lane < lanes;
      add_only(here ? V::other_lanes(lanes, static_cast<int>(lane)) : V::first_lanes(lanes),
               at(z, begin + offset, lanes));
    });
  }
};

// The sums of one column block without its maximum, whose exponential is exactly 1.
template <class Evaluate, class Storage>
void sum_exponentials(double alpha, const Storage* z, int64_t count,
                      const Largest<AccumulateOf<Storage>>& largest, const KeptRow<Storage>& kept,
                      BlockState& state) {
  using Scalar = AccumulateOf<Storage>;
  using V = Vector<Scalar>;
  const Evaluate evaluate(alpha);
  // If all logits are -infinity, the sums are 0; with a NaN among them, NaN.
  const Scalar reference = reference_of(largest.value);
  const bool masked_out = reference != largest.value;
  ExponentialSums<Evaluate, Storage> sums{evaluate, V::broadcast(reference), kept,
                                          LongSum<V>::start(), LongSum<V>::start()};
  sums.add_all_but(masked_out ? count : largest.column, z, count);
  state.sumexp_m1 = sum_of_lanes(sums.plain.total) + nan_if_infinite(reference);
  state.alpha_sumexp_m1 = sum_of_lanes(sums.powered.total) + nan_if_infinite(reference);
}

// The state of one column block, without its targets.
template <class Kind, class Storage>
void reduce_exponentials(double alpha, const Storage* z, int64_t count,
                         const KeptRow<Storage>& kept, BlockState& state) {
  using V = VectorOf<Storage>;
  const auto largest = find_largest(z, count);
  state.maximum = largest.value;
  using Fast = Evaluator<Kind, Exponential<V>>;
  sum_exponentials<Fast>(alpha, z, count, largest, kept, state);
  if (!is_remote(state.sumexp_m1) && !is_remote(state.alpha_sumexp_m1)) return;
  using Exact = Evaluator<Kind, ExactExponential<V>>;
  sum_exponentials<Exact>(alpha, z, count, largest, kept, state);
}

// Of one column block, relative to its own maximum.
template <class Storage>
double sum_entropy_terms(const Storage* z, int64_t count) {
  BlockState terms;
  reduce_exponentials<EntropyTerms>(1.0, z, count, KeptRow<Storage>{nullptr, nullptr}, terms);
  return -terms.alpha_sumexp_m1;
}

// The sum over the row of the blocks' entropy sums, where they have been merged otherwise.
inline double merge_entropy_sums(int64_t count, const BlockState* blocks, double row_maximum) {
  double sum = 0.0;
  for (int64_t k = 0; k < count; ++k) {
    const double below = row_maximum - blocks[k].maximum;
    const double factor = std::exp(-below);
    if (factor == 0.0) continue;  // `below` may be infinite
    sum += (blocks[k].entropy_sum + (1.0 + blocks[k].sumexp_m1) * below) * factor;
  }
  return sum;
}

// Merges the blocks' states (see powergrad.h) and sets in each the factor of its exponentials.
inline void merge_exponentials(double alpha, int64_t count, BlockState* blocks, BlockState& row) {
  int64_t highest = 0;
  for (int64_t k = 1; k < count; ++k) {
    if (blocks[k].maximum > blocks[highest].maximum) highest = k;
  }
  row = blocks[highest];
  blocks[highest].alpha_factor = 1.0;
  for (int64_t k = 0; k < count; ++k) {
    if (k == highest) continue;
    const bool as_high = blocks[k].maximum == row.maximum;  // also where both are -infinity
    const double below = as_high ? 0.0 : blocks[k].maximum - row.maximum;
    blocks[k].alpha_factor = std::exp(alpha * below);
    row.sumexp_m1 += (1.0 + blocks[k].sumexp_m1) * std::exp(below);
    row.alpha_sumexp_m1 += (1.0 + blocks[k].alpha_sumexp_m1) * blocks[k].alpha_factor;
  }
}

}  // namespace
}  // namespace powergrad

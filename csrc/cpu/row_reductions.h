// Reductions and maps over consecutive columns of one contiguous row. Included inside the target
// region.
#pragma once

namespace powergrad {
namespace {

// Calls step(column, lanes) for every vector of [0, count), the last one possibly partial.
template <class V, class Step>
void for_each_vector(int64_t count, const Step& step) {
  int64_t column = 0;
  for (; column + V::kWidth <= count; column += V::kWidth) step(column, V::kWidth);
  if (column < count) step(column, static_cast<int>(count - column));
}

// The largest element; NaN may be passed over (the sums catch it).
template <class Storage>
AccumulateOf<Storage> row_maximum(const Storage* z, int64_t count) {
  using V = VectorOf<Storage>;
  constexpr int kUnroll = 4;  // hides the latency of a chain of maxima
  const V lowest = V::broadcast(-kInfinity);
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
  return largest_of_lanes(maximum(maximum(best[0], best[1]), maximum(best[2], best[3])));
}

// The first column that equals x, or count.
template <class Storage>
int64_t find_in_row(const Storage* z, int64_t count, AccumulateOf<Storage> x) {
  using V = VectorOf<Storage>;
  const V wanted = V::broadcast(x);
  for (int64_t column = 0; column < count; column += V::kWidth) {
    const int lanes = static_cast<int>(std::min<int64_t>(V::kWidth, count - column));
    const int lane = first_set(equal(load_lanes<V>(z + column, lanes), wanted));
    if (lane >= 0 && lane < lanes) return column + lane;
  }
  return count;
}

// Adds exp(z - maximum) and exp(alpha (z - maximum)) over [0, count) to state.rest and
// state.alpha_rest; keeps the latter in `kept` (accumulate type) unless that is null.
template <class Evaluator, class Storage>
void add_exponentials(const Evaluator& evaluate, const Storage* z, int64_t count,
                      AccumulateOf<Storage> reference, AccumulateOf<Storage>* kept,
                      ChunkState& state) {
  using V = VectorOf<Storage>;
  const V origin = V::broadcast(reference);
  const V zero = V::broadcast(0);
  V plain_sum = zero;
  V powered_sum = zero;
  for_each_vector<V>(count, [&](int64_t column, int lanes) {
    // What follows this chunk in memory is needed next: fetch it while this one computes.
    __builtin_prefetch(z + column + kChunk);
    const auto e = evaluate(load_lanes<V>(z + column, lanes) - origin);
    if (kept != nullptr) store_lanes(e.powered, kept + column, lanes);
    if (lanes == V::kWidth) {
      plain_sum = plain_sum + e.plain;
      powered_sum = powered_sum + e.powered;
    } else {
      plain_sum = plain_sum + select(V::first_lanes(lanes), e.plain, zero);
      powered_sum = powered_sum + select(V::first_lanes(lanes), e.powered, zero);
    }
  });
  state.rest += sum_of_lanes(plain_sum);
  state.alpha_rest += sum_of_lanes(powered_sum);
}

// The state of one chunk, apart from its target mass. Its maximum is left out of the sums, being
// exactly 1: found by value and stepped over.
template <class Kind, class Storage>
void reduce_exponentials(double alpha, const Storage* z, int64_t count,
                         AccumulateOf<Storage>* kept, ChunkState& state) {
  using Scalar = AccumulateOf<Storage>;
  using V = Vector<Scalar>;
  const typename Kind::template Evaluator<V> evaluate(alpha);
  const Scalar largest = row_maximum(z, count);
  state.maximum = largest;
  if (largest == -static_cast<Scalar>(kInfinity)) {
    // Masked out as a whole, or NaN among -infinity: sums of zeros, or NaN.
    state.rest = state.alpha_rest = 0.0;
    add_exponentials(evaluate, z, count, Scalar(0), kept, state);
    return;
  }
  // 0 for a finite maximum; otherwise the row is NaN, as it is in torch.
  state.rest = state.alpha_rest = static_cast<double>(largest - largest);
  const int64_t at = find_in_row(z, count, largest);
  add_exponentials(evaluate, z, at, largest, kept, state);
  if (at < count) {
    if (kept != nullptr) kept[at] = 1;
    Scalar* after = kept != nullptr ? kept + at + 1 : nullptr;
    add_exponentials(evaluate, z + at + 1, count - at - 1, largest, after, state);
  }
}

// Merges the chunks' states (see powergrad.h) and leaves in each what its exponentials are to be
// multiplied by.
inline void merge_exponentials(double alpha, int64_t count, ChunkState* chunks, ChunkState& row) {
  int64_t highest = 0;
  for (int64_t k = 1; k < count; ++k) {
    if (chunks[k].maximum > chunks[highest].maximum) highest = k;
  }
  row = chunks[highest];
  chunks[highest].alpha_factor = 1.0;
  row.rest += row.maximum - row.maximum;  // every class masked out: NaN
  row.alpha_rest += row.maximum - row.maximum;
  for (int64_t k = 0; k < count; ++k) {
    if (k == highest) continue;
    const double below = chunks[k].maximum - row.maximum;
    chunks[k].alpha_factor = std::exp(alpha * below);
    row.rest += (1.0 + chunks[k].rest) * std::exp(below);
    row.alpha_rest += (1.0 + chunks[k].alpha_rest) * chunks[k].alpha_factor;
  }
}

}  // namespace
}  // namespace powergrad

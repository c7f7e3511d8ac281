// Sums over the classes of a tile's rows, lane by lane: what a row comes to must not depend on the
// rows that share its vectors. Included inside the target region.
#pragma once

namespace powergrad {
namespace {

// Calls term(c) for all classes and close_run() after each run of a LongSum.
template <class V, class Term, class CloseRun>
void for_each_class_in_runs(int64_t classes, const Term& term, const CloseRun& close_run) {
  for (int64_t begin = 0; begin < classes; begin += LongSum<V>::kRun) {
    const int64_t end = std::min(classes, begin + LongSum<V>::kRun);
    for (int64_t c = begin; c < end; ++c) term(c);
    close_run();
  }
}

// The largest logit of every lane's row; NaN may be passed over (the sums catch it).
template <class V, class T>
V find_lane_maxima(const Column<V, T>& z, int64_t classes) {
  V best = V::broadcast(-kInfinity);
  int64_t c = 0;
  for (; c + 4 <= classes; c += 4) {  // in pairs, as each maximum waits for the one before
    const V first = maximum(z[c], z[c + 1]);
    const V second = maximum(z[c + 2], z[c + 3]);
    best = maximum(maximum(first, second), best);
  }
  for (; c < classes; ++c) best = maximum(z[c], best);
  return best;
}

// Sums of exponentials without the largest one, which is 1.
template <class V>
struct LaneSums {
  V sumexp_m1;
  V alpha_sumexp_m1;

  LaneSums with_nan_if_infinite(V maximum) const {
    return {sumexp_m1 + nan_if_infinite(maximum), alpha_sumexp_m1 + nan_if_infinite(maximum)};
  }
};

// The sums of every lane's row. keep(c, powered) gets the powered exponentials; prefetch(c) asks
// for what is read after this.
template <class Evaluate, class V, class T, class Keep, class Prefetch>
LaneSums<V> sum_lanes(const Evaluate& evaluate, const Column<V, T>& z, int64_t classes, V largest,
                      const Keep& keep, const Prefetch& prefetch) {
  const V one = V::broadcast(1);
  auto plain = LongSum<V>::start();
  auto powered = LongSum<V>::start();
  V others = V::broadcast(0);  // classes with another than the largest logit
  const auto add = [&](int64_t c) {
    prefetch(c);
    const V x = z[c];
    const auto e = evaluate(x, largest);
    keep(c, e.powered());
    const auto is_other = not_equal(x, largest);
    e.add_to_where(is_other, plain.run, powered.run);
    others = add_where(is_other, others, one);
  };
  for_each_class_in_runs<V>(classes, add, [&] {
    plain.close_run();
    powered.close_run();
  });
  // One of the largest is left out.
  const V ties = V::broadcast(static_cast<typename V::Scalar>(classes - 1)) - others;
  if constexpr (Evaluate::kSecondOfLargest == 0) return {plain.total + ties, powered.total};
  return {plain.total + ties, powered.total + ties};
}

// The sums of a tensor's rows, read class by class.
template <class V, class Columns>
TileLanes<V> sum_columns(const Tile& tile, const Columns& columns, int64_t classes) {
  LongSum<V> sums[kTileVectors<V>];
  const auto each_vector = [&](const auto& function) {
    for_each_vector_of<V>(tile,
                          [&](const TileVector& vector) { function(vector, sums[vector.number]); });
  };
  const auto add = [&](int64_t c) {
    each_vector(
        [&](const TileVector& vector, LongSum<V>& sum) { sum.add(columns.next(vector, c)); });
  };
  each_vector([](const TileVector&, LongSum<V>& sum) { sum = LongSum<V>::start(); });
  for_each_class_in_runs<V>(classes, add, [&] {
    each_vector([](const TileVector&, LongSum<V>& sum) { sum.close_run(); });
  });
  TileLanes<V> totals;
  each_vector(
      [&](const TileVector& vector, const LongSum<V>& sum) { totals.set(vector, sum.total); });
  return totals;
}

// reference_of, lane by lane.
template <class V>
V lane_references(V maximum) {
  return masked(not_equal(maximum, V::broadcast(-kInfinity)), maximum);
}

// 1 in the lanes whose sum is remote (see exponentials.h), else 0.
template <class V>
V remote_lanes(V sums) {
  const V positive = masked(less(V::broadcast(0), sums), V::broadcast(1));
  return masked(less(sums, V::broadcast(static_cast<typename V::Scalar>(kRemote))), positive);
}
template <class V>
V remote_lanes(const LaneSums<V>& sums) {
  return maximum(remote_lanes(sums.sumexp_m1), remote_lanes(sums.alpha_sumexp_m1));
}
// Whether one of the first lanes is 1.
template <class V>
bool any_of(V flags, int lanes) {
  const int first = first_set(equal(flags, V::broadcast(1)));
  return first >= 0 && first < lanes;
}

// Exact exponentials in the remote lanes only.
template <class Kind, class V>
struct LanewiseEvaluator {
  Evaluator<Kind, Exponential<V>> fast;
  Evaluator<Kind, ExactExponential<V>> exact;
  V remote;
  static constexpr int kSecondOfLargest = 1;
  auto operator()(V z, V reference) const {
    const auto is_remote = equal(remote, V::broadcast(1));
    return select(is_remote, exact(z, reference), fast(z, reference));
  }
};

// The sums of one vector of a tile.
template <class Kind, class V, class Storage, class Keep>
LaneSums<V> reduce_lanes(double alpha, const TileLogits<Storage>& logits, const TileVector& vector,
                         int64_t classes, V largest, const Keep& keep) {
  const auto sum = [&](const auto& evaluate, const auto& columns) {
    return sum_lanes(evaluate, columns.of(vector), classes, largest, keep,
                     [&](int64_t c) { logits.prefetch_next(vector, c); });
  };
  const Evaluator<Kind, Exponential<V>> fast(alpha);
  const LaneSums<V> sums =
      logits.with_columns([&](const auto& columns) { return sum(fast, columns); });
  const V remote = remote_lanes(sums);
  if (!any_of(remote, vector.lanes)) return sums;
  const LanewiseEvaluator<Kind, V> lanewise{fast, Evaluator<Kind, ExactExponential<V>>(alpha),
                                            remote};
  return logits.with_columns_again([&](const auto& columns) { return sum(lanewise, columns); });
}

// The entropy sums of one vector of a tile, by exact exponentials in all lanes: they are rarely
// asked for.
template <class V, class Storage>
V sum_entropy_terms(const TileLogits<Storage>& logits, const TileVector& vector, int64_t classes,
                    V largest) {
  const Evaluator<EntropyTerms, ExactExponential<V>> evaluate(1.0);
  const LaneSums<V> sums = logits.with_columns([&](const auto& columns) {
    return sum_lanes(
        evaluate, columns.of(vector), classes, largest, [](int64_t, V) {}, [](int64_t) {});
  });
  return V::broadcast(0) - sums.alpha_sumexp_m1;
}

}  // namespace
}  // namespace powergrad

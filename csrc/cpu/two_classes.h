// Forward of rows of two classes with index targets, as masks, clicks and preferences have them:
// what CrossEntropyTiles computes, to the same bits, with everything of a row in registers. With
// the maximum m, r = exp(min - m), its power r' and the weight W of the target,
//
//     loss = W (m - z_target + log(1 + r)),
//     dz_other = W r' / (1 + r'),  dz_target = -dz_other         if the target has the maximum,
//     dz_other = W / (1 + r'),     dz_target = dz_other r' - W   if the other class has it.
//
// Included inside the target region.
#pragma once

namespace powergrad {
namespace {

template <class Storage>
class TwoClasses {
 public:
  using Scalar = AccumulateOf<Storage>;
  using V = Vector<Scalar>;
  using Mask = typename V::Mask;
  using Params = CrossEntropyParams;

  static bool fits(const Params& p) {
    return p.shape.classes == 2 && !p.is_shard && !has_dense_target(p) && !has_row_options(p);
  }

  TwoClasses(const Params& p, const TileScratch<Scalar>& scratch, const TileScale<V>& scale)
      : p_(p), scratch_(scratch), scale_(scale) {
    if (!scratch.transposes) scratch_.logits = nullptr;  // they are read once, and so in place
    const Scalar* weight = weights_of<Scalar>(p);
    for (int c = 0; c < 2; ++c) weights_[c] = V::broadcast(weight != nullptr ? weight[c] : 1);
  }

  template <class Kind>
  void forward(const Tile& tile) const {
    const TileLogits<Storage> logits(tile, p_.logits, p_.shape, p_.logits_strides, scratch_);
    const TileOutput<Storage> out(tile, p_.gradient, p_.shape, p_.gradient_strides, scratch_);
    for_each_vector_of<V>(tile, [&](const TileVector& vector) {
      const auto [first, second] = logits.with_columns([&](const auto& columns) {
        return std::pair<V, V>{columns.next(vector, 0), columns.next(vector, 1)};
      });
      const RowLanes<V> rows(tile, vector);
      const Gradient gradient = forward<Kind>(rows, first, second);
      if (p_.gradient == nullptr) return;
      out.write(vector, 0, gradient.first);
      out.write(vector, 1, gradient.second);
    });
    if (p_.gradient != nullptr) out.finish();
  }

 private:
  struct Gradient {
    V first;
    V second;
  };

  // Writes what is asked for of every row but the gradient, which it returns.
  template <class Kind>
  Gradient forward(const RowLanes<V>& rows, V first, V second) const {
    const V zero = V::broadcast(0);
    const V one = V::broadcast(1);
    const auto is_second = target_is(1, rows);
    const auto counts = equal(masked(target_is(p_.ignore_index, rows), one), zero);
    const V target = select(is_second, second, first);
    const V other = select(is_second, first, second);
    // Where either is NaN, one of the selected is.
    const auto target_is_less = less(target, other);
    const V largest = select(target_is_less, other, target);
    const LaneSums<V> sums = sum<Kind>(select(target_is_less, target, other), largest, rows.lanes);
    const V weight = masked(counts, select(is_second, weights_[1], weights_[0]));
    const V distance = weight * (lane_references(largest) - target);
    const V loss = multiply_add(weight, log1p_of_fraction(sums.sumexp_m1), distance);
    rows.store(masked(counts, loss), p_.losses);
    if (p_.statistics != nullptr) {
      rows.store(masked(counts, largest), statistic(kMaximum));
      rows.store(masked(counts, sums.alpha_sumexp_m1), statistic(kAlphaSumexpM1));
      rows.store(weight, statistic(kTargetWeight));
    }
    const V scale = scale_(rows);
    const V share = weight / (one + sums.alpha_sumexp_m1);
    const V smaller = sums.alpha_sumexp_m1 * share;
    const V of_other = select(target_is_less, one, sums.alpha_sumexp_m1) * (scale * share);
    const V of_target = scale * select(target_is_less, smaller - weight, zero - smaller);
    return {masked(counts, select(is_second, of_other, of_target)),
            masked(counts, select(is_second, of_target, of_other))};
  }

  Mask target_is(int64_t value, const RowLanes<V>& rows) const {
    return p_.target_index_is_int32
               ? V::equal_integers(static_cast<const int32_t*>(p_.target_index) + rows.row,
                                   rows.lanes, value)
               : V::equal_integers(static_cast<const int64_t*>(p_.target_index) + rows.row,
                                   rows.lanes, value);
  }

  template <class Kind>
  LaneSums<V> sum(V smallest, V largest, int lanes) const {
    const auto of = [&](const auto& evaluate) {
      const auto e = evaluate(smallest, largest);
      LaneSums<V> sums{V::broadcast(0), V::broadcast(0)};
      e.add_to(sums.sumexp_m1, sums.alpha_sumexp_m1);
      return sums.with_nan_if_infinite(largest);
    };
    const Evaluator<Kind, Exponential<V>> fast(p_.alpha);
    const LaneSums<V> sums = of(fast);
    const V remote = remote_lanes(sums);
    if (!any_of(remote, lanes)) return sums;
    return of(
        LanewiseEvaluator<Kind, V>{fast, Evaluator<Kind, ExactExponential<V>>(p_.alpha), remote});
  }

  Scalar* statistic(Statistic which) const { return statistic_of_rows<Scalar>(p_, which); }

  const Params& p_;
  TileScratch<Scalar> scratch_;
  const TileScale<V>& scale_;
  V weights_[2];
};

}  // namespace
}  // namespace powergrad

// Cross-entropy on tiles of rows, forward and backward. Included inside the target region.
#pragma once

namespace powergrad {
namespace {

template <class Storage>
class CrossEntropyTiles {
 public:
  using Scalar = AccumulateOf<Storage>;
  using V = Vector<Scalar>;
  using Params = CrossEntropyParams;

  CrossEntropyTiles(const Params& p, const TileScratch<Scalar>& scratch)
      : p_(p), scratch_(scratch), targets_(p), exponential_(p.alpha), scale_(p) {}

  template <class Kind>
  void forward(const Tile& tile) const {
    if (has_two_classes_) {
      return TwoClasses<Storage>(p_, scratch_, scale_).template forward<Kind>(tile);
    }
    const int64_t classes = p_.shape.classes;
    const TileLogits<Storage> logits(tile, p_.logits, p_.shape, p_.logits_strides, scratch_);
    const TileDenseTarget<Storage> dense(p_, tile, scratch_);
    const KeptTile<V> exponentials = kept(tile);
    Gradient gradient;
    for_each_vector_of<V>(tile, [&](const TileVector& vector) {
      const RowLanes<V> rows(tile, vector);
      const LaneTargets<V> target = targets_.read(rows);
      const V zero = V::broadcast(0);
      const V no_class = V::broadcast(kNoClass);
      LaneDistance<V> loss{zero, zero};
      const V maximum = logits.with_columns([&](const auto& columns) {
        const auto column = columns.of(vector);
        const V largest = find_lane_maxima(column, classes);
        if (has_dense_target(p_)) {
          loss = sum_dense_target<Storage>(p_, dense, vector, column, lane_references(largest));
        }
        return largest;
      });
      V z_target = zero;
      if (p_.target_index != nullptr) {
        z_target = logits.gather(vector, target.number);
        loss.target_weight = loss.target_weight + target.point_weight;
        // Not for a row without a class, whose logit may be infinite.
        const V below = lane_references(maximum) - z_target;
        const V distance = masked(less(no_class, target.number), target.point_weight * below);
        loss.distance = loss.distance + distance;
      }
      // Before exponentials take the place of packed logits.
      if (has_metrics(p_)) sum_entropy(logits, vector, rows, maximum);
      LaneSums<V> sums =
          reduce_lanes<Kind>(p_.alpha, logits, vector, classes, maximum, [&](int64_t c, V powered) {
            if (exponentials.data != nullptr) exponentials.keep(vector, c, powered);
          });
      const V ignored = target.ignored();
      const auto counts = equal(ignored, zero);
      const auto write = [&](V value, void* to) { rows.store(masked(counts, value), to); };
      V z = zero;
      if (!p_.is_shard) {
        sums = sums.with_nan_if_infinite(maximum);
        // Both terms are >= 0, so nothing cancels.
        loss.distance = multiply_add(loss.target_weight, log1p(sums.sumexp_m1), loss.distance);
      }
      if (has_options_) {
        const LossWithOptions with =
            finish_options(rows, target, z_target, maximum, sums.sumexp_m1, loss.distance);
        loss.distance = with.loss;
        z = with.z;
      }
      write(loss.distance, p_.losses);
      if (p_.statistics != nullptr) {
        write(maximum, statistic(kMaximum));
        write(sums.alpha_sumexp_m1, statistic(kAlphaSumexpM1));
        write(loss.target_weight, statistic(kTargetWeight));
      }
      if (p_.gradient == nullptr) return;
      gradient.softmax.set(vector, maximum, sums.alpha_sumexp_m1, loss.target_weight, scale_(rows),
                           ignored, z);
      set_target(gradient, vector, target, z_target);
    });
    if (p_.gradient == nullptr) return;
    if (exponentials.data != nullptr) {
      write(tile, gradient, dense, exponentials);
    } else {
      write_again(tile, gradient, dense, logits);
    }
  }

  void backward(const Tile& tile) const {
    const TileLogits<Storage> logits(tile, p_.logits, p_.shape, p_.logits_strides, scratch_);
    const TileDenseTarget<Storage> dense(p_, tile, scratch_);
    Gradient gradient;
    for_each_vector_of<V>(tile, [&](const TileVector& vector) {
      const RowLanes<V> rows(tile, vector);
      const LaneTargets<V> target = targets_.read(rows);
      const V z = has_options_ ? saved_z_loss_weights(rows) : V::broadcast(0);
      gradient.softmax.set(vector, rows.load(statistic(kMaximum)),
                           rows.load(statistic(kAlphaSumexpM1)),
                           rows.load(statistic(kTargetWeight)), scale_(rows), target.ignored(), z);
      set_target(gradient, vector, target, logits.gather(vector, target.number));
    });
    write_again(tile, gradient, dense, logits);
  }

 private:
  // What the gradient of a tile is made of besides its exponentials.
  struct Gradient {
    TileSoftmax<V> softmax;
    TileLanes<V> number;  // of the index target, where the target is dense as well
    TileLanes<V> target_weight;
  };

  void set_target(Gradient& gradient, const TileVector& vector, const LaneTargets<V>& target,
                  V z_target) const {
    if (has_dense_target(p_)) {
      gradient.number.set(vector, target.number);
      gradient.target_weight.set(vector, target.target_weight);
    } else {
      gradient.softmax.set_index_target(vector, target, z_target, exponential_);
    }
  }

  Scalar* statistic(Statistic which) const { return statistic_of_rows<Scalar>(p_, which); }

  // What options need is not inlined: tiles without options then have all registers, and GCC 12
  // fails on masks of doubles for baseline SSE2 otherwise.
  __attribute__((noinline)) void sum_entropy(const TileLogits<Storage>& logits,
                                             const TileVector& vector, const RowLanes<V>& rows,
                                             V maximum) const {
    const V sum = sum_entropy_terms(logits, vector, p_.shape.classes, maximum);
    rows.store(sum, metric(kEntropy));
  }
  // Reads the entropy's sum from metric(kEntropy), where sum_entropy wrote it, and writes the
  // entropy over it; a shard keeps the sum (ShardStatistic).
  __attribute__((noinline)) void finish_metrics(const RowLanes<V>& rows,
                                                const LaneTargets<V>& target, V z_target, V maximum,
                                                V sumexp_m1) const {
    const V one = V::broadcast(1);
    const V ignored = target.ignored();
    const auto counts = equal(ignored, V::broadcast(0));
    const V entropy_sum = rows.load(metric(kEntropy));
    if (p_.is_shard) {
      rows.store(masked(less(V::broadcast(kNoClass), target.number), z_target), metric(kLogProb));
      rows.store(masked(counts, entropy_sum), metric(kEntropy));
      return;
    }
    const V log_sum = log1p(sumexp_m1);
    const V entropy = log_sum + entropy_sum / (one + sumexp_m1);
    const V defined = z_target + (log_sum - log_sum);  // a NaN equals nothing
    const V correct = masked(equal(defined, maximum), one);
    rows.store(masked(counts, (z_target - maximum) - log_sum), metric(kLogProb));
    rows.store(masked(counts, entropy), metric(kEntropy));
    rows.store(correct * (one - ignored), metric(kCorrect));
  }

  Scalar* metric(Metric which) const {
    return static_cast<Scalar*>(p_.metrics) + which * p_.shape.rows();
  }

  struct LossWithOptions {
    V loss;
    V z;  // as in SoftmaxRow
  };
  __attribute__((noinline)) LossWithOptions finish_options(const RowLanes<V>& rows,
                                                           const LaneTargets<V>& target, V z_target,
                                                           V maximum, V sumexp_m1, V loss) const {
    if (p_.sumexp_m1 != nullptr) {
      const V ignored = target.ignored();
      const auto counts = equal(ignored, V::broadcast(0));
      rows.store(masked(counts, sumexp_m1) - ignored, p_.sumexp_m1);
    }
    if (has_metrics(p_)) finish_metrics(rows, target, z_target, maximum, sumexp_m1);
    if (p_.is_shard) return {loss, V::broadcast(0)};
    const V z = has_z_loss(p_) ? z_loss_weights(maximum, sumexp_m1) : V::broadcast(0);
    return {weighted_losses(rows, loss, maximum, sumexp_m1), z};
  }

  // weighted_loss, lane by lane.
  V weighted_losses(const RowLanes<V>& rows, V loss, V maximum, V sumexp_m1) const {
    if (has_z_loss(p_)) {
      const V lse = maximum + log1p(sumexp_m1);
      loss = multiply_add(V::broadcast(static_cast<Scalar>(p_.z_loss)) * lse, lse, loss);
    }
    return p_.row_weight != nullptr ? loss * rows.load(p_.row_weight) : loss;
  }
  // z_loss_weight, lane by lane.
  V z_loss_weights(V maximum, V sumexp_m1) const {
    return V::broadcast(static_cast<Scalar>(2.0 * p_.z_loss)) * (maximum + log1p(sumexp_m1));
  }
  __attribute__((noinline)) V saved_z_loss_weights(const RowLanes<V>& rows) const {
    if (!has_z_loss(p_)) return V::broadcast(0);
    return z_loss_weights(rows.load(statistic(kMaximum)), rows.load(p_.sumexp_m1));
  }

  // Exponentials are kept over the packed logits, or else in a gradient that is wide enough.
  KeptTile<V> kept(const Tile& tile) const {
    if (p_.gradient == nullptr) return {nullptr, 0, false};
    if (scratch_.logits != nullptr) return {scratch_.logits, scratch_.width, true};
    if constexpr (kIsAccumulate<Storage>) {
      return {static_cast<Scalar*>(p_.gradient) + tile.offset(p_.gradient_strides),
              p_.gradient_strides.classes, false};
    } else {
      return {nullptr, 0, false};
    }
  }

  void write_again(const Tile& tile, const Gradient& gradient,
                   const TileDenseTarget<Storage>& dense, const TileLogits<Storage>& logits) const {
    logits.with_columns([&](const auto& columns) {
      using Columns = std::decay_t<decltype(columns)>;
      write(tile, gradient, dense, FreshTile<V, Columns>{columns, gradient.softmax, exponential_});
    });
  }

  template <class Powered>
  void write(const Tile& tile, const Gradient& gradient, const TileDenseTarget<Storage>& dense,
             const Powered& powered) const {
    const TileOutput<Storage> out(tile, p_.gradient, p_.shape, p_.gradient_strides, scratch_);
    const auto each = [&](const auto& value) {
      for_each_class_of<V>(tile, p_.shape.classes,
                           [&](const TileVector& vector, int64_t c, V number) {
                             out.write(vector, c, value(vector, c, powered(vector, c), number));
                           });
    };
    if (has_dense_target(p_)) {
      each([&](const TileVector& vector, int64_t c, V e, V number) {
        const V target_c = select(equal(number, gradient.number.at(vector)),
                                  gradient.target_weight.at(vector), dense(vector, c));
        return gradient.softmax.gradient(vector, e, target_c);
      });
    } else {
      each([&](const TileVector& vector, int64_t, V e, V number) {
        return gradient.softmax.gradient_of_index_target(vector, e, number);
      });
    }
    out.finish();
  }

  const Params& p_;
  const TileScratch<Scalar>& scratch_;
  TargetReader<Scalar> targets_;
  PoweredExponential<V> exponential_;
  TileScale<V> scale_;
  bool has_two_classes_ = TwoClasses<Storage>::fits(p_);
  bool has_options_ = p_.is_shard || has_row_options(p_);
};

}  // namespace
}  // namespace powergrad

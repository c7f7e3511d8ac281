// Log-softmax on tiles of rows, forward and backward. Included inside the target region.
#pragma once

namespace powergrad {
namespace {

template <class Storage>
class LogSoftmaxTiles {
 public:
  using Scalar = AccumulateOf<Storage>;
  using V = Vector<Scalar>;
  using Params = LogSoftmaxParams;

  LogSoftmaxTiles(const Params& p, const TileScratch<Scalar>& scratch)
      : p_(p), scratch_(scratch), exponential_(p.alpha) {}

  template <class Kind>
  void forward(const Tile& tile) const {
    const int64_t classes = p_.shape.classes;
    const TileLogits<Storage> logits(tile, p_.logits, p_.shape, p_.logits_strides, scratch_);
    const TileOutput<Storage> out(tile, p_.output, p_.shape, p_.output_strides, scratch_);
    TileLanes<V> maxima;
    TileLanes<V> log_sums;
    const auto keep_nothing = [](int64_t, V) {};
    for_each_vector_of<V>(tile, [&](const TileVector& vector) {
      const V maximum = logits.with_columns(
          [&](const auto& columns) { return find_lane_maxima(columns.of(vector), classes); });
      const LaneSums<V> sums =
          reduce_lanes<Kind>(p_.alpha, logits, vector, classes, maximum, keep_nothing)
              .with_nan_if_infinite(maximum);
      maxima.set(vector, maximum);
      log_sums.set(vector, log1p(sums.sumexp_m1));
      if (p_.statistics == nullptr) return;
      const RowLanes<V> rows(tile, vector);
      rows.store(maximum, statistic(kMaximum));
      rows.store(sums.alpha_sumexp_m1, statistic(kAlphaSumexpM1));
    });
    logits.with_columns([&](const auto& columns) {
      for_each_class_of<V>(tile, classes, [&](const TileVector& vector, int64_t c, V) {
        // z - maximum first: it is exact or nearly so, however far from 0 the row lies.
        out.write(vector, c, (columns.of(vector)[c] - maxima.at(vector)) - log_sums.at(vector));
      });
    });
    out.finish();
  }

  void backward(const Tile& tile) const {
    const int64_t stride = p_.grad_output_strides.classes;
    const auto* g =
        static_cast<const Storage*>(p_.grad_output) + tile.offset(p_.grad_output_strides);
    if (scratch_.transposes) {
      pack_rows(g, p_.grad_output_strides.inner, tile.rows, p_.shape.classes, scratch_.other);
      backward(tile, TileColumns<Scalar, true>(scratch_.other, p_.shape.classes, V::kWidth));
    } else {
      backward(tile, TileColumns<Storage, false>(g, p_.shape.classes, stride));
    }
  }

 private:
  // dz = g - p' sum(g): cross-entropy's gradient with target g and scale -1.
  template <class Columns>
  void backward(const Tile& tile, const Columns& grad_output) const {
    const int64_t classes = p_.shape.classes;
    const TileLogits<Storage> logits(tile, p_.logits, p_.shape, p_.logits_strides, scratch_);
    const TileOutput<Storage> out(tile, p_.gradient, p_.shape, p_.gradient_strides, scratch_);
    const TileLanes<V> sums = sum_columns<V>(tile, grad_output, classes);
    TileSoftmax<V> softmax;
    for_each_vector_of<V>(tile, [&](const TileVector& vector) {
      const RowLanes<V> rows(tile, vector);
      softmax.set(vector, rows.load(statistic(kMaximum)), rows.load(statistic(kAlphaSumexpM1)),
                  sums.at(vector), V::broadcast(-1), V::broadcast(0));
    });
    logits.with_columns([&](const auto& columns) {
      for_each_class_of<V>(tile, classes, [&](const TileVector& vector, int64_t c, V) {
        const V powered = softmax.powered(vector, columns.next(vector, c), exponential_);
        out.write(vector, c, softmax.gradient(vector, powered, grad_output.next(vector, c)));
      });
    });
    out.finish();
  }

  Scalar* statistic(Statistic which) const { return statistic_of_rows<Scalar>(p_, which); }

  const Params& p_;
  const TileScratch<Scalar>& scratch_;
  PoweredExponential<V> exponential_;
};

}  // namespace
}  // namespace powergrad

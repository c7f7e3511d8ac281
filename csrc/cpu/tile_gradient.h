// gradient_j = scale (p'_j W - target_j) for the rows of a tile. Included inside the target region.
#pragma once

namespace powergrad {
namespace {

// exp(alpha (z - maximum)) for lanes of rows that may have been summed by exact exponentials. It is
// built once for all tiles: the exact ones take longer to set up than a small tile does.
template <class V>
struct PoweredExponential {
  Exponential<V> fast;
  ExactExponential<V> exact;
  explicit PoweredExponential(double alpha) : fast(alpha), exact(alpha) {}
};

// What the gradient needs of a tile's rows: SoftmaxRow, lane by lane.
template <class V>
class TileSoftmax {
 public:
  // `ignored` is 1 for a row that has no gradient; `z` as in SoftmaxRow.
  void set(const TileVector& vector, V maximum, V alpha_sumexp_m1, V target_weight, V scale,
           V ignored, V z = V::broadcast(0)) {
    const V one = V::broadcast(1);
    const V share = (target_weight + z) / (one + alpha_sumexp_m1);
    const V remote = remote_lanes(alpha_sumexp_m1);
    maximum_.set(vector, maximum);
    dominant_.set(vector, select(less(alpha_sumexp_m1, one), one, V::broadcast(NAN)));
    share_.set(vector, share);
    target_weight_.set(vector, target_weight);
    missing_.set(vector, alpha_sumexp_m1 * share - z);
    scale_.set(vector, scale);
    ignored_.set(vector, ignored);
    remote_.set(vector, remote);
    has_ignored_[vector.number] = any_of(ignored, vector.lanes);
    has_remote_[vector.number] = any_of(remote, vector.lanes);
  }

  // Of one class, with its powered exponentials. As in SoftmaxRow, where p' is above 1/2 it is
  // 1 - p' that is known to full precision. That is the case for the largest logit only: its
  // exponential is exactly 1, and were another one 1, p' would not be above 1/2.
  V gradient(const TileVector& vector, V powered, V target_c) const {
    return zero_if_ignored(vector, scale_.at(vector) * minus_target(vector, powered, target_c));
  }

  // The same where one class of each row is the whole target, told by its number and its logit.
  void set_index_target(const TileVector& vector, const LaneTargets<V>& target, V z,
                        const PoweredExponential<V>& exponential) {
    const V value = minus_target(vector, powered(vector, z, exponential), target.target_weight);
    index_.set(vector, target.number);
    at_index_.set(vector, scale_.at(vector) * value);
    scaled_share_.set(vector, scale_.at(vector) * share_.at(vector));
  }
  V gradient_of_index_target(const TileVector& vector, V powered, V number) const {
    const V other = powered * scaled_share_.at(vector);
    return zero_if_ignored(vector,
                           select(equal(number, index_.at(vector)), at_index_.at(vector), other));
  }

  // Powered exponentials, computed again: exact ones in the lanes whose sums are.
  V powered(const TileVector& vector, V z, const PoweredExponential<V>& exponential) const {
    const V reference = maximum_.at(vector);
    const V result = exponential.fast(z, reference);
    if (!has_remote_[vector.number]) return result;
    const V exact = exponential.exact(z, reference);
    return select(equal(remote_.at(vector), V::broadcast(1)), exact, result);
  }

 private:
  V minus_target(const TileVector& vector, V powered, V target_c) const {
    const V direct = powered * share_.at(vector) - target_c;
    const V near_one = (target_weight_.at(vector) - target_c) - missing_.at(vector);
    return select(equal(powered, dominant_.at(vector)), near_one, direct);
  }
  // Whatever the logits of an ignored row are: NaN, too.
  V zero_if_ignored(const TileVector& vector, V value) const {
    if (!has_ignored_[vector.number]) return value;
    return masked(equal(ignored_.at(vector), V::broadcast(0)), value);
  }

  TileLanes<V> maximum_;
  TileLanes<V> dominant_;       // 1, or NaN where no p' is above 1/2
  TileLanes<V> share_;          // as in SoftmaxRow
  TileLanes<V> target_weight_;  // W
  TileLanes<V> missing_;        // as in SoftmaxRow
  TileLanes<V> scale_;
  TileLanes<V> ignored_;
  TileLanes<V> remote_;
  TileLanes<V> index_;  // for index targets only, as are the next two
  TileLanes<V> at_index_;
  TileLanes<V> scaled_share_;
  bool has_ignored_[kTileVectors<V>];
  bool has_remote_[kTileVectors<V>];
};

// Where the exponentials of a tile were kept.
template <class V>
struct KeptTile {
  typename V::Scalar* data;  // or null
  int64_t stride;
  bool whole_vectors;  // there is room for lanes past the tile

  void keep(const TileVector& vector, int64_t c, V powered) const {
    store_lanes(powered, data + c * stride + vector.first, lanes(vector));
  }
  V operator()(const TileVector& vector, int64_t c) const {
    return load_lanes<V>(data + c * stride + vector.first, lanes(vector));
  }
  int lanes(const TileVector& vector) const { return whole_vectors ? V::kWidth : vector.lanes; }
};

// The exponentials of a tile's logits, computed again.
template <class V, class Columns>
struct FreshTile {
  const Columns& columns;
  const TileSoftmax<V>& softmax;
  const PoweredExponential<V>& exponential;

  V operator()(const TileVector& vector, int64_t c) const {
    return softmax.powered(vector, columns.next(vector, c), exponential);
  }
};

}  // namespace
}  // namespace powergrad

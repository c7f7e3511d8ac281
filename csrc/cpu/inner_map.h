// gradient_j = scale (p'_j W - target_j) for a tile of neighbouring rows. Included inside the
// target region.
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
class InnerSoftmax {
 public:
  // `counts` is 0 for a row that has no gradient.
  void set(const TileVector& vector, V maximum, V alpha_sumexp_m1, V mass, V scale, V counts) {
    const V one = V::broadcast(1);
    const V share = mass / (one + alpha_sumexp_m1);
    const V remote = remote_lanes(alpha_sumexp_m1);
    maximum_.set(vector, maximum);
    pivot_.set(vector, select(less(alpha_sumexp_m1, one), one, V::broadcast(NAN)));
    share_.set(vector, share);
    mass_.set(vector, mass);
    missing_.set(vector, alpha_sumexp_m1 * share);
    scale_.set(vector, scale);
    counts_.set(vector, counts);
    remote_.set(vector, remote);
    has_remote_[vector.number] = has_remote(remote, vector.lanes);
  }

  // Of one class, with its powered exponentials. As in SoftmaxRow, where p' is above 1/2 it is
  // 1 - p' that is known to full precision. That is the case for the largest logit only: its
  // exponential is exactly 1, and were another one 1, p' would not be above 1/2.
  V gradient(const TileVector& vector, V powered, V target_c) const {
    const V direct = powered * share_.at(vector) - target_c;
    const V near_one = (mass_.at(vector) - target_c) - missing_.at(vector);
    const V value = select(equal(powered, pivot_.at(vector)), near_one, direct);
    const V zero = V::broadcast(0);
    return select(equal(counts_.at(vector), zero), zero, scale_.at(vector) * value);
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
  TileLanes<V> maximum_;
  TileLanes<V> pivot_;    // 1, or NaN where no p' is above 1/2
  TileLanes<V> share_;    // W / (1 + r')
  TileLanes<V> mass_;     // W
  TileLanes<V> missing_;  // W (1 - p') of the largest logit
  TileLanes<V> scale_;
  TileLanes<V> counts_;
  TileLanes<V> remote_;
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
template <class Storage>
struct FreshTile {
  using V = VectorOf<Storage>;
  const Storage* logits;
  ClassWalk walk;
  const InnerSoftmax<V>& softmax;
  const PoweredExponential<V>& exponential;

  FreshTile(const Storage* its_logits, int64_t classes, int64_t stride,
            const InnerSoftmax<V>& its_softmax, const PoweredExponential<V>& its_exponential)
      : logits(its_logits),
        walk(classes, stride, kTileRows),
        softmax(its_softmax),
        exponential(its_exponential) {}
  V operator()(const TileVector& vector, int64_t c) const {
    const Storage* from = logits + c * walk.stride + vector.first;
    walk.prefetch(from, c);
    return softmax.powered(vector, load_lanes<V>(from, vector.lanes), exponential);
  }
};

// Calls function(vector, c, number) for all of a tile, `number` being c in every lane: exact in
// float up to 2^24.
template <class V, class Function>
void for_each_class_of(const InnerTile& tile, int64_t classes, const Function& function) {
  const V one = V::broadcast(1);
  V number = V::broadcast(0);
  for (int64_t c = 0; c < classes; ++c) {
    for_each_vector_of<V>(tile, [&](const TileVector& vector) { function(vector, c, number); });
    number = number + one;
  }
}

// Writes a tile's gradient, from powered(vector, c) and mass(vector, c, number).
template <class V, class Storage, class Powered, class Mass>
void map_inner(const InnerTile& tile, int64_t classes, const InnerSoftmax<V>& softmax,
               const Powered& powered, const Mass& mass, const TileOutput<Storage>& out) {
  for_each_class_of<V>(tile, classes, [&](const TileVector& vector, int64_t c, V number) {
    out.write(vector, c, softmax.gradient(vector, powered(vector, c), mass(vector, c, number)));
  });
}

}  // namespace
}  // namespace powergrad

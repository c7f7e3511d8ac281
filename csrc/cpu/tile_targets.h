// The targets of cross-entropy for the rows of a tile: index targets of a vector of rows at a time,
// and what every class of a row has (DenseTarget). Included inside the target region.
#pragma once

namespace powergrad {
namespace {

// Class numbers of rows whose target is none of these classes, and of those that do not count.
inline constexpr int kNoClass = -1;
inline constexpr int kIgnored = -2;

// IndexTarget, lane by lane.
template <class V>
struct LaneTargets {
  V number;         // the class, kNoClass or kIgnored
  V point_weight;   // 0 where there is no class
  V target_weight;  // likewise

  V ignored() const { return masked(equal(number, V::broadcast(kIgnored)), V::broadcast(1)); }
};

template <class Scalar>
class TargetReader {
 public:
  using V = Vector<Scalar>;
  explicit TargetReader(const CrossEntropyParams& p)
      : p_(p),
        weight_(weights_of<Scalar>(p)),
        point_share_(static_cast<Scalar>(1.0 - p.label_smoothing)),
        own_share_(static_cast<Scalar>(p.label_smoothing / static_cast<double>(all_classes(p)))) {}

  LaneTargets<V> read(const RowLanes<V>& rows) const {
    LaneTargets<V> target = of_numbers(numbers(rows));
    if (p_.row_weight != nullptr) ignore_weightless(target, rows);
    return target;
  }

 private:
  LaneTargets<V> of_numbers(V number) const {
    V weight = V::broadcast(1);
    if (weight_ != nullptr) weight = V::gather(weight_, maximum(number, V::broadcast(0)));
    const auto counts = less(V::broadcast(kNoClass), number);
    const V point = masked(counts, weight * V::broadcast(point_share_));
    if (own_share_ == 0) return {number, point, point};
    const V own = multiply_add(weight, V::broadcast(own_share_), point);
    return {number, point, masked(counts, own)};
  }
  V numbers(const RowLanes<V>& rows) const {
    if (p_.target_index == nullptr) return V::broadcast(kNoClass);
    return p_.target_index_is_int32
               ? numbers_of(static_cast<const int32_t*>(p_.target_index) + rows.row, rows.lanes)
               : numbers_of(static_cast<const int64_t*>(p_.target_index) + rows.row, rows.lanes);
  }
  // Rows of weight 0 do not count. Not inlined, see CrossEntropyTiles.
  __attribute__((noinline)) void ignore_weightless(LaneTargets<V>& target,
                                                   const RowLanes<V>& rows) const {
    const V zero = V::broadcast(0);
    const auto counts = not_equal(rows.load(p_.row_weight), zero);
    target.number = select(counts, target.number, V::broadcast(kIgnored));
    target.point_weight = masked(counts, target.point_weight);
    target.target_weight = masked(counts, target.target_weight);
  }
  // No integer outside [0, C) becomes one inside by rounding: float holds all up to 2^24.
  template <class Index>
  V numbers_of(const Index* target, int lanes) const {
    const V number = V::from_integers(target, lanes, p_.classes_before);
    const V none = V::broadcast(kNoClass);
    const V below = select(less(number, V::broadcast(0)), none, number);
    const V classes = V::broadcast(static_cast<Scalar>(p_.shape.classes));
    const V own = select(less(below, classes), below, none);
    return select(V::equal_integers(target, lanes, p_.ignore_index), V::broadcast(kIgnored), own);
  }

  const CrossEntropyParams& p_;
  const Scalar* weight_;
  Scalar point_share_;
  Scalar own_share_;
};

// DenseTarget of a tile's rows.
template <class Storage>
class TileDenseTarget {
 public:
  using Scalar = AccumulateOf<Storage>;
  using V = Vector<Scalar>;

  TileDenseTarget(const CrossEntropyParams& p, const Tile& tile, const TileScratch<Scalar>& scratch)
      : target_(p, p.target_probabilities != nullptr ? tile.offset(p.target_strides) : 0),
        stride_(p.target_strides.classes) {
    if (!scratch.transposes || p.target_probabilities == nullptr) return;
    const auto pack = [&](const auto* rows) {
      pack_rows(rows, p.target_strides.inner, tile.rows, p.shape.classes, scratch.other);
    };
    if (target_.probabilities != nullptr) {
      pack(target_.probabilities);
    } else {
      pack(target_.wide_probabilities);
    }
    target_.probabilities = nullptr;
    target_.wide_probabilities = scratch.other;
    stride_ = V::kWidth;
    packed_ = true;
  }
  V operator()(const TileVector& vector, int64_t c) const {
    const Scalar weight = target_.weight != nullptr ? target_.weight[c] : Scalar(1);
    return target_.at(c * stride_ + vector.first, packed_ ? V::kWidth : vector.lanes,
                      V::broadcast(weight));
  }

 private:
  DenseTarget<Storage> target_;
  int64_t stride_;
  bool packed_ = false;
};

// What the loss of a vector's rows is made of besides its sums.
template <class V>
struct LaneDistance {
  V target_weight;
  V distance;  // sum of target_j (maximum - z_j)
};

// The part of it that a dense target makes.
template <class Storage, class V, class T>
LaneDistance<V> sum_dense_target(const CrossEntropyParams& p,
                                 const TileDenseTarget<Storage>& target, const TileVector& vector,
                                 const Column<V, T>& z, V reference) {
  auto weights = LongSum<V>::start();
  auto distances = LongSum<V>::start();
  const auto add = [&](int64_t c) {
    const V target_c = target(vector, c);
    weights.add(target_c);
    distances.run = multiply_add(target_c, reference - z[c], distances.run);
  };
  for_each_class_in_runs<V>(p.shape.classes, add, [&] {
    weights.close_run();
    distances.close_run();
  });
  const V smoothing = V::broadcast(static_cast<typename V::Scalar>(smoothing_weight(p)));
  return {p.target_probabilities != nullptr ? weights.total : smoothing, distances.total};
}

}  // namespace
}  // namespace powergrad

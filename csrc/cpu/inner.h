// Layouts whose neighbouring rows are contiguous (segmentation, transposed logits): vectors run
// across rows, classes are walked one stride at a time, and nothing is transposed. Included inside
// the target region.
#pragma once

namespace powergrad {
namespace {

// Up to V::kWidth neighbouring rows.
template <class Storage>
struct InnerTile {
  int64_t row;  // the first one
  int lanes;
  int64_t outer;
  int64_t inner;

  int64_t offset(const Strides& strides) const {
    return outer * strides.outer + inner * strides.inner;
  }
};

// Calls function(tile) for the rows [begin, end), never across an outer index.
template <class Storage, class Function>
void for_each_tile(const Shape& shape, int64_t begin, int64_t end, const Function& function) {
  constexpr int kWidth = VectorOf<Storage>::kWidth;
  for (int64_t row = begin; row < end;) {
    const int64_t outer = row / shape.inner;
    const int64_t inner = row % shape.inner;
    const int64_t left = std::min(end - row, shape.inner - inner);
    const int lanes = static_cast<int>(std::min<int64_t>(left, kWidth));
    function(InnerTile<Storage>{row, lanes, outer, inner});
    row += lanes;
  }
}

template <class V>
struct InnerState {
  V maximum;
  V rest;
  V alpha_rest;
};

// The maximum of every lane's row and its class; z is the tile's first class.
template <class V>
struct InnerLargest {
  V value;
  V column;  // class numbers are exact in float up to 2^24
};
template <class V, class Storage>
InnerLargest<V> find_inner_largest(const Storage* z, int64_t classes, int64_t stride, int lanes) {
  const V one = V::broadcast(1);
  V best = V::broadcast(-kInfinity);
  V best_class = V::broadcast(0);
  V number = V::broadcast(0);
  for (int64_t c = 0; c < classes; ++c) {
    const V x = load_lanes<V>(z + c * stride, lanes);
    best_class = select(less(best, x), number, best_class);
    best = maximum(x, best);
    number = number + one;
  }
  return {best, best_class};
}

// The sums of every lane's row. The powered exponentials go to `kept` (same lanes, kept_stride per
// class) unless that is null.
template <class Evaluate, class Storage, class V>
InnerState<V> sum_inner(const Evaluate& evaluate, const Storage* z, int64_t classes, int64_t stride,
                        int lanes, const InnerLargest<V>& largest, typename V::Scalar* kept,
                        int64_t kept_stride) {
  const V zero = V::broadcast(0);
  const V one = V::broadcast(1);
  auto plain = LongSum<V>::start();
  auto powered = LongSum<V>::start();
  V number = zero;
  for (int64_t begin = 0; begin < classes; begin += LongSum<V>::kRun) {
    const int64_t end = std::min(classes, begin + LongSum<V>::kRun);
    for (int64_t c = begin; c < end; ++c) {
      // The next tile's line of this class: the strided walk defeats the hardware's prefetcher.
      __builtin_prefetch(z + c * stride + V::kWidth);
      const auto e = evaluate(load_lanes<V>(z + c * stride, lanes), largest.value);
      if (kept != nullptr) store_lanes(e.powered, kept + c * kept_stride, lanes);
      const auto own = equal(number, largest.column);
      plain.run = plain.run + select(own, zero, e.plain);
      powered.run = powered.run + select(own, zero, e.powered);
      number = number + one;
    }
    plain.close_run();
    powered.close_run();
  }
  // 0, or NaN where the maximum is infinite or NaN
  const V poison = largest.value - largest.value;
  return {largest.value, plain.total + poison, powered.total + poison};
}

// 1 in the lanes whose sum is remote (see exponentials.h), else 0.
template <class V>
V remote_lanes(V sums) {
  const V zero = V::broadcast(0);
  const V positive = select(less(zero, sums), V::broadcast(1), zero);
  return select(less(sums, V::broadcast(static_cast<typename V::Scalar>(kRemote))), positive, zero);
}
template <class V>
bool has_remote(V remote, int lanes) {
  const int first = first_set(equal(remote, V::broadcast(1)));
  return first >= 0 && first < lanes;
}

// Exact exponentials in the remote lanes only: what a row comes to must not depend on the rows that
// share its vectors.
template <class V>
struct LanewiseExponential {
  Exponential<V> fast;
  ExactExponential<V> exact;
  V remote;
  V operator()(V z, V reference) const {
    return select(equal(remote, V::broadcast(1)), exact(z, reference), fast(z, reference));
  }
};
template <class Kind, class V>
struct LanewiseEvaluator {
  Evaluator<Kind, Exponential<V>> fast;
  Evaluator<Kind, ExactExponential<V>> exact;
  V remote;
  Exponentials<V> operator()(V z, V reference) const {
    const auto is_remote = equal(remote, V::broadcast(1));
    const Exponentials<V> f = fast(z, reference);
    const Exponentials<V> e = exact(z, reference);
    return {select(is_remote, e.plain, f.plain), select(is_remote, e.powered, f.powered)};
  }
};

template <class Kind, class V, class Storage>
InnerState<V> reduce_inner(double alpha, const Storage* z, int64_t classes, int64_t stride,
                           int lanes, typename V::Scalar* kept, int64_t kept_stride) {
  const InnerLargest<V> largest = find_inner_largest<V>(z, classes, stride, lanes);
  const Evaluator<Kind, Exponential<V>> fast(alpha);
  const auto sum = [&](const auto& evaluate) {
    return sum_inner(evaluate, z, classes, stride, lanes, largest, kept, kept_stride);
  };
  const InnerState<V> state = sum(fast);
  const V remote = maximum(remote_lanes(state.rest), remote_lanes(state.alpha_rest));
  if (!has_remote(remote, lanes)) return state;
  const Evaluator<Kind, ExactExponential<V>> exact(alpha);
  return sum(LanewiseEvaluator<Kind, V>{fast, exact, remote});
}

// Calls map(exponential) with the exponential of alpha that the lanes' sums r' ask for.
template <class V, class Map>
void map_inner_exponentials(double alpha, V alpha_rest, int lanes, const Map& map) {
  const Exponential<V> fast(alpha);
  const V remote = remote_lanes(alpha_rest);
  if (has_remote(remote, lanes)) {
    map(LanewiseExponential<V>{fast, ExactExponential<V>(alpha), remote});
  } else {
    map(fast);
  }
}

// Lanes as scalars, for what differs from row to row.
template <class V>
struct LaneArray {
  typename V::Scalar lane[V::kWidth] = {};
  V vector() const { return V::load(lane); }
};

template <class V>
struct InnerSoftmax {
  V maximum;
  V pivot;
  V inverse;
  V complement;

  InnerSoftmax(V row_maximum, V alpha_rest) : maximum(row_maximum) {
    const V one = V::broadcast(1);
    pivot = select(less(alpha_rest, one), row_maximum, V::broadcast(NAN));
    inverse = one / (one + alpha_rest);
    complement = alpha_rest * inverse;
  }
};

template <class V>
V load_statistic(const void* statistics, int64_t rows, Statistic which, int64_t row, int lanes) {
  using Scalar = typename V::Scalar;
  return load_lanes<V>(static_cast<const Scalar*>(statistics) + which * rows + row, lanes);
}
template <class V>
void store_statistic(void* statistics, int64_t rows, Statistic which, int64_t row, int lanes,
                     V value) {
  using Scalar = typename V::Scalar;
  store_lanes(value, static_cast<Scalar*>(statistics) + which * rows + row, lanes);
}

template <class Storage>
struct CrossEntropyInner {
  using Scalar = AccumulateOf<Storage>;
  using V = Vector<Scalar>;
  using Params = CrossEntropyParams;
  using Tile = InnerTile<Storage>;

  // The tile's index targets, lane by lane.
  struct Targets {
    int64_t index[V::kWidth];
    LaneArray<V> point_mass;
    LaneArray<V> mass;
    LaneArray<V> counts;  // 0 for an ignored row
    LaneArray<V> logit;

    Targets(const Params& p, const Tile& tile, const Storage* z) {
      for (int i = 0; i < tile.lanes; ++i) {
        const IndexTarget<Scalar> target(p, target_index(p, tile.row + i));
        index[i] = target.ignored ? -1 : target.index;
        counts.lane[i] = target.ignored ? 0 : 1;
        point_mass.lane[i] = target.point_mass;
        mass.lane[i] = target.mass;
        if (index[i] >= 0) {
          logit.lane[i] =
              load_scalar(z + index[i] * p.logits_strides.classes + i * p.logits_strides.inner);
        }
      }
    }
  };

  static const Storage* logits(const Params& p, const Tile& tile) {
    return static_cast<const Storage*>(p.logits) + tile.offset(p.logits_strides);
  }
  static ClassMass<Storage> class_mass(const Params& p, const Tile& tile) {
    return {p, p.target_probabilities != nullptr ? tile.offset(p.target_strides) : 0};
  }
  static V class_mass_at(const Params& p, const ClassMass<Storage>& mass_of, int64_t c, int lanes) {
    const Scalar weight = mass_of.weight != nullptr ? mass_of.weight[c] : Scalar(1);
    return mass_of.at(c * p.target_strides.classes, lanes, V::broadcast(weight));
  }

  template <class Kind>
  static void forward_tile(const Params& p, const Tile& tile) {
    const Storage* z = logits(p, tile);
    const Targets targets(p, tile, z);
    Scalar* kept = nullptr;
    if constexpr (kIsAccumulate<Storage>) {
      if (p.gradient != nullptr) {
        kept = static_cast<Scalar*>(p.gradient) + tile.offset(p.gradient_strides);
      }
    }
    const auto state = reduce_inner<Kind, V>(p.alpha, z, p.shape.classes, p.logits_strides.classes,
                                             tile.lanes, kept, p.gradient_strides.classes);

    V mass = V::broadcast(0);
    V distance = V::broadcast(0);
    if (has_class_mass(p)) add_class_mass(p, tile, z, state.maximum, mass, distance);
    if (p.target_index != nullptr) {
      const V point = targets.point_mass.vector();
      mass = mass + point;
      distance = multiply_add(point, state.maximum - targets.logit.vector(), distance);
    }
    const V loss = multiply_add(mass, log1p(state.rest), distance);
    const V zero = V::broadcast(0);
    const auto ignored = equal(targets.counts.vector(), zero);
    store_lanes(select(ignored, zero, loss), static_cast<Scalar*>(p.losses) + tile.row, tile.lanes);
    if (p.statistics == nullptr) return;
    const int64_t rows = p.shape.rows();
    store_statistic(p.statistics, rows, kMaximum, tile.row, tile.lanes, state.maximum);
    store_statistic(p.statistics, rows, kAlphaRest, tile.row, tile.lanes, state.alpha_rest);
    store_statistic(p.statistics, rows, kTargetMass, tile.row, tile.lanes, mass);
    if (p.gradient == nullptr) return;
    map_tile(p, tile, targets, state.maximum, state.alpha_rest, mass, kept);
  }

  static void add_class_mass(const Params& p, const Tile& tile, const Storage* z, V reference,
                             V& mass, V& distance) {
    const ClassMass<Storage> mass_of = class_mass(p, tile);
    auto masses = LongSum<V>::start();
    auto distances = LongSum<V>::start();
    for (int64_t begin = 0; begin < p.shape.classes; begin += LongSum<V>::kRun) {
      const int64_t end = std::min(p.shape.classes, begin + LongSum<V>::kRun);
      for (int64_t c = begin; c < end; ++c) {
        const V x = load_lanes<V>(z + c * p.logits_strides.classes, tile.lanes);
        const V mass_c = class_mass_at(p, mass_of, c, tile.lanes);
        masses.run = masses.run + mass_c;
        distances.run = multiply_add(mass_c, reference - x, distances.run);
      }
      masses.close_run();
      distances.close_run();
    }
    const bool probabilities = p.target_probabilities != nullptr;
    mass = probabilities ? masses.total : V::broadcast(static_cast<Scalar>(smoothing_mass(p)));
    distance = distances.total;
  }

  static void backward_tile(const Params& p, const Tile& tile) {
    const Targets targets(p, tile, logits(p, tile));
    const int64_t rows = p.shape.rows();
    const auto statistic = [&](Statistic which) {
      return load_statistic<V>(p.statistics, rows, which, tile.row, tile.lanes);
    };
    map_tile(p, tile, targets, statistic(kMaximum), statistic(kAlphaRest), statistic(kTargetMass),
             nullptr);
  }

  static void map_tile(const Params& p, const Tile& tile, const Targets& targets, V maximum,
                       V alpha_rest, V mass, const Scalar* kept) {
    const Storage* z = logits(p, tile);
    Storage* out = static_cast<Storage*>(p.gradient) + tile.offset(p.gradient_strides);
    const InnerSoftmax<V> softmax(maximum, alpha_rest);
    const V zero = V::broadcast(0);
    const auto ignored = equal(targets.counts.vector(), zero);
    LaneArray<V> scales;
    for (int i = 0; i < tile.lanes; ++i) {
      scales.lane[i] = upstream_of_row<Scalar>(p, tile.row + i);
    }
    const V scale = scales.vector();
    const ClassMass<Storage> mass_of = class_mass(p, tile);
    const bool class_masses = has_class_mass(p);
    const V row_scale = scale * mass * softmax.inverse;
    const auto map_classes = [&](const auto& powered_at) {
      for (int64_t c = 0; c < p.shape.classes; ++c) {
        const V x = load_lanes<V>(z + c * p.logits_strides.classes, tile.lanes);
        const V powered = powered_at(c, x);
        V value = powered * row_scale;
        if (class_masses) {
          const V mass_c = class_mass_at(p, mass_of, c, tile.lanes);
          const V direct = powered * softmax.inverse * mass - mass_c;
          const V near_one = near_one_minus_mass(mass, softmax.complement, mass_c);
          value = scale * select(equal(x, softmax.pivot), near_one, direct);
        }
        store_lanes(select(ignored, zero, value), out + c * p.gradient_strides.classes, tile.lanes);
      }
    };
    if (kept != nullptr) {
      map_classes([&](int64_t c, V) {
        return load_lanes<V>(kept + c * p.gradient_strides.classes, tile.lanes);
      });
    } else {
      map_inner_exponentials(p.alpha, alpha_rest, tile.lanes, [&](const auto& exponential) {
        map_classes([&](int64_t, V x) { return exponential(x, softmax.maximum); });
      });
    }
    if (p.target_index != nullptr)
      write_targets(p, tile, targets, maximum, alpha_rest, mass, scales, out);
  }

  // The one class of each row that has the target's point mass.
  static void write_targets(const Params& p, const Tile& tile, const Targets& targets, V maximum,
                            V alpha_rest, V mass, const LaneArray<V>& scales, Storage* out) {
    LaneArray<V> maxima;
    LaneArray<V> alpha_rests;
    LaneArray<V> masses;
    maximum.store(maxima.lane);
    alpha_rest.store(alpha_rests.lane);
    mass.store(masses.lane);
    for (int i = 0; i < tile.lanes; ++i) {
      if (targets.index[i] < 0) continue;
      const SoftmaxRow<Scalar> row(maxima.lane[i], alpha_rests.lane[i], masses.lane[i]);
      const Scalar value = row.minus_mass(p.alpha, targets.logit.lane[i], targets.mass.lane[i]);
      store_scalar(scales.lane[i] * value, out + targets.index[i] * p.gradient_strides.classes +
                                               i * p.gradient_strides.inner);
    }
  }
};

template <class Storage>
struct LogSoftmaxInner {
  using Scalar = AccumulateOf<Storage>;
  using V = Vector<Scalar>;
  using Params = LogSoftmaxParams;
  using Tile = InnerTile<Storage>;

  template <class Kind>
  static void forward_tile(const Params& p, const Tile& tile) {
    const Storage* z = static_cast<const Storage*>(p.logits) + tile.offset(p.logits_strides);
    Storage* out = static_cast<Storage*>(p.output) + tile.offset(p.output_strides);
    const auto state = reduce_inner<Kind, V>(p.alpha, z, p.shape.classes, p.logits_strides.classes,
                                             tile.lanes, nullptr, 0);
    const V log_sum = log1p(state.rest);
    for (int64_t c = 0; c < p.shape.classes; ++c) {
      const V x = load_lanes<V>(z + c * p.logits_strides.classes, tile.lanes);
      store_lanes((x - state.maximum) - log_sum, out + c * p.output_strides.classes, tile.lanes);
    }
    if (p.statistics == nullptr) return;
    const int64_t rows = p.shape.rows();
    store_statistic(p.statistics, rows, kMaximum, tile.row, tile.lanes, state.maximum);
    store_statistic(p.statistics, rows, kAlphaRest, tile.row, tile.lanes, state.alpha_rest);
  }

  static void backward_tile(const Params& p, const Tile& tile) {
    const Storage* z = static_cast<const Storage*>(p.logits) + tile.offset(p.logits_strides);
    const Storage* g = static_cast<const Storage*>(p.upstream) + tile.offset(p.upstream_strides);
    Storage* out = static_cast<Storage*>(p.gradient) + tile.offset(p.gradient_strides);
    auto sum = LongSum<V>::start();
    for (int64_t begin = 0; begin < p.shape.classes; begin += LongSum<V>::kRun) {
      const int64_t end = std::min(p.shape.classes, begin + LongSum<V>::kRun);
      for (int64_t c = begin; c < end; ++c) {
        sum.run = sum.run + load_lanes<V>(g + c * p.upstream_strides.classes, tile.lanes);
      }
      sum.close_run();
    }
    const int64_t rows = p.shape.rows();
    const auto statistic = [&](Statistic which) {
      return load_statistic<V>(p.statistics, rows, which, tile.row, tile.lanes);
    };
    const V alpha_rest = statistic(kAlphaRest);
    const InnerSoftmax<V> softmax(statistic(kMaximum), alpha_rest);
    map_inner_exponentials(p.alpha, alpha_rest, tile.lanes, [&](const auto& exponential) {
      for (int64_t c = 0; c < p.shape.classes; ++c) {
        const V x = load_lanes<V>(z + c * p.logits_strides.classes, tile.lanes);
        const V g_c = load_lanes<V>(g + c * p.upstream_strides.classes, tile.lanes);
        const V powered = exponential(x, softmax.maximum);
        const V direct = powered * softmax.inverse * sum.total - g_c;
        const V near_one = near_one_minus_mass(sum.total, softmax.complement, g_c);
        const V value = select(equal(x, softmax.pivot), near_one, direct);
        store_lanes(V::broadcast(0) - value, out + c * p.gradient_strides.classes, tile.lanes);
      }
    });
  }
};

}  // namespace
}  // namespace powergrad

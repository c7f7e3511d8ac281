// Cross-entropy and log-softmax on tiles of neighbouring rows, forward and backward. Included
// inside the target region.
#pragma once

namespace powergrad {
namespace {

// One statistic of the rows of a vector.
template <class V>
struct StatisticLanes {
  typename V::Scalar* statistics;
  int64_t rows;
  int64_t row;
  int lanes;

  template <class Params>
  StatisticLanes(const Params& p, const InnerTile& tile, const TileVector& vector)
      : statistics(static_cast<typename V::Scalar*>(p.statistics)),
        rows(p.shape.rows()),
        row(tile.row + vector.first),
        lanes(vector.lanes) {}
  V load(Statistic which) const { return load_lanes<V>(statistics + which * rows + row, lanes); }
  void store(Statistic which, V value) const {
    store_lanes(value, statistics + which * rows + row, lanes);
  }
};

template <class Storage>
struct CrossEntropyInner {
  using Scalar = AccumulateOf<Storage>;
  using V = Vector<Scalar>;
  using Params = CrossEntropyParams;

  // The tile's index targets.
  struct Targets {
    TileLanes<V> index;  // -1 for none
    TileLanes<V> point_weight;
    TileLanes<V> mass;
    TileLanes<V> counts;  // 0 for an ignored row

    Targets(const Params& p, const InnerTile& tile) {
      index.clear_past(tile);
      point_weight.clear_past(tile);
      mass.clear_past(tile);
      counts.clear_past(tile);
      // Without weights all rows that count have the same masses, which spares every row its
      // branches.
      const auto common =
          p.weight == nullptr ? IndexTarget<Scalar>::of_class(p, 0) : IndexTarget<Scalar>();
      for (int64_t i = 0; i < tile.rows; ++i) {
        const int64_t target = target_index(p, tile.row + i);
        const bool ignored = p.target_index != nullptr && target == p.ignore_index;
        const int64_t own = ignored ? -1 : own_class(p, target);
        index.lane[i] = static_cast<Scalar>(own);
        point_weight.lane[i] = own < 0 ? 0 : common.point_weight;
        mass.lane[i] = own < 0 ? 0 : common.mass;
        counts.lane[i] = ignored ? 0 : 1;
      }
      if (p.weight != nullptr && p.target_index != nullptr) set_weighted_masses(p, tile);
    }
    void set_weighted_masses(const Params& p, const InnerTile& tile) {
      for (int64_t i = 0; i < tile.rows; ++i) {
        const IndexTarget<Scalar> target(p, target_index(p, tile.row + i));
        point_weight.lane[i] = target.point_weight;
        mass.lane[i] = target.mass;
      }
    }
  };
  static TileLanes<V> target_logits(const InnerTile& tile, const Targets& targets,
                                    const TileLogits<Storage>& z) {
    TileLanes<V> result;
    result.clear_past(tile);
    for (int64_t i = 0; i < tile.rows; ++i) {
      const auto index = static_cast<int64_t>(targets.index.lane[i]);
      result.lane[i] = index >= 0 ? z.at(index, i) : 0;
    }
    return result;
  }

  static const Storage* logits(const Params& p, const InnerTile& tile) {
    return static_cast<const Storage*>(p.logits) + tile.offset(p.logits_strides);
  }

  // The part of target_c that is not an index target's.
  struct OtherMass {
    DenseTarget<Storage> mass_of;
    int64_t stride;
    OtherMass(const Params& p, const InnerTile& tile)
        : mass_of(p, p.target_probabilities != nullptr ? tile.offset(p.target_strides) : 0),
          stride(p.target_strides.classes) {}
    V operator()(const TileVector& vector, int64_t c) const {
      const Scalar weight = mass_of.weight != nullptr ? mass_of.weight[c] : Scalar(1);
      return mass_of.at(c * stride + vector.first, vector.lanes, V::broadcast(weight));
    }
  };

  // What the loss of a vector's rows is made of besides its sums.
  struct Distance {
    V mass;
    V distance;  // sum of target_j (maximum - z_j)
  };
  template <class Column>
  static Distance sum_other_mass(const Params& p, const InnerTile& tile, const TileVector& vector,
                                 const Column& z, V maximum) {
    const OtherMass mass_of(p, tile);
    auto masses = LongSum<V>::start();
    auto distances = LongSum<V>::start();
    const auto add = [&](int64_t c) {
      const V mass = mass_of(vector, c);
      masses.add(mass);
      distances.run = multiply_add(mass, maximum - z[c], distances.run);
    };
    for_each_class_in_runs<V>(p.shape.classes, add, [&] {
      masses.close_run();
      distances.close_run();
    });
    const V smoothing = V::broadcast(static_cast<Scalar>(smoothing_weight(p)));
    return {p.target_probabilities != nullptr ? masses.total : smoothing, distances.total};
  }

  static V scale(const Params& p, const InnerTile& tile, const TileVector& vector) {
    V value = V::broadcast(1);
    if (p.grad_output != nullptr) {
      const Scalar* grad_output = static_cast<const Scalar*>(p.grad_output);
      value = p.grad_output_stride == 0
                  ? V::broadcast(*grad_output)
                  : load_lanes<V>(grad_output + tile.row + vector.first, vector.lanes);
    }
    if (p.total_weight == nullptr) return value;
    return value / V::broadcast(static_cast<Scalar>(*p.total_weight));
  }

  // Exponentials are kept over the packed logits, or else in a gradient that is wide enough.
  static KeptTile<V> kept(const Params& p, const InnerTile& tile, const TileLogits<Storage>& z) {
    if (p.gradient == nullptr) return {nullptr, 0, false};
    if (z.packed() != nullptr) return {z.packed(), z.width(), true};
    if constexpr (kIsAccumulate<Storage>) {
      return {static_cast<Scalar*>(p.gradient) + tile.offset(p.gradient_strides),
              p.gradient_strides.classes, false};
    } else {
      return {nullptr, 0, false};
    }
  }

  // Zero for rows that do not count.
  static void write_numbers(void* numbers, const InnerTile& tile, const TileVector& vector, V value,
                            V counts) {
    const V zero = V::broadcast(0);
    store_lanes(select(equal(counts, zero), zero, value),
                static_cast<Scalar*>(numbers) + tile.row + vector.first, vector.lanes);
  }
  static void write_statistics(const Params& p, const InnerTile& tile, const TileVector& vector,
                               V maximum, V alpha_sumexp_m1, V mass, V counts) {
    if (p.statistics == nullptr) return;
    Scalar* statistics = static_cast<Scalar*>(p.statistics);
    const int64_t rows = p.shape.rows();
    write_numbers(statistics + kMaximum * rows, tile, vector, maximum, counts);
    write_numbers(statistics + kAlphaSumexpM1 * rows, tile, vector, alpha_sumexp_m1, counts);
    write_numbers(statistics + kTargetWeight * rows, tile, vector, mass, counts);
  }

  template <class Kind>
  static void forward_tile(const Params& p, const InnerTile& tile, const Workspace& workspace) {
    const int64_t classes = p.shape.classes;
    const TileLogits<Storage> z(tile, logits(p, tile), p.shape, p.logits_strides.classes,
                                workspace);
    const Targets targets(p, tile);
    const TileLanes<V> target_logit = target_logits(tile, targets, z);
    const KeptTile<V> exponentials = kept(p, tile, z);
    InnerSoftmax<V> softmax;
    for_each_vector_of<V>(tile, [&](const TileVector& vector) {
      const V zero = V::broadcast(0);
      Distance target{zero, zero};
      const V maximum = z.with_column(vector, [&](const auto& column) {
        const V largest = find_inner_maximum(column, classes);
        if (has_dense_target(p)) {
          target = sum_other_mass(p, tile, vector, column, lane_references(largest));
        }
        return largest;
      });
      if (p.target_index != nullptr) {
        const V point = targets.point_weight.at(vector);
        const V distance = lane_references(maximum) - target_logit.at(vector);
        target.mass = target.mass + point;
        target.distance = multiply_add(point, distance, target.distance);
      }
      InnerSums<V> sums =
          reduce_inner<Kind>(p.alpha, z, vector, classes, maximum, [&](int64_t c, V powered) {
            if (exponentials.data != nullptr) exponentials.keep(vector, c, powered);
          });
      const V counts = targets.counts.at(vector);
      if (p.sumexp_m1 != nullptr) {
        write_numbers(p.sumexp_m1, tile, vector, sums.rest, counts);
      } else {
        sums = sums.poisoned(maximum);
        target.distance = multiply_add(target.mass, log1p(sums.rest), target.distance);
      }
      write_numbers(p.losses, tile, vector, target.distance, counts);
      write_statistics(p, tile, vector, maximum, sums.alpha_sumexp_m1, target.mass, counts);
      if (p.gradient == nullptr) return;
      softmax.set(vector, maximum, sums.alpha_sumexp_m1, target.mass, scale(p, tile, vector),
                  counts);
    });
    if (p.gradient == nullptr) return;
    if (exponentials.data != nullptr) {
      map(p, tile, targets, softmax, exponentials);
    } else {
      map_fresh(p, tile, targets, softmax, PoweredExponential<V>(p.alpha));
    }
  }

  static void backward_tile(const Params& p, const InnerTile& tile,
                            const PoweredExponential<V>& exponential) {
    const Targets targets(p, tile);
    InnerSoftmax<V> softmax;
    for_each_vector_of<V>(tile, [&](const TileVector& vector) {
      const StatisticLanes<V> statistics(p, tile, vector);
      softmax.set(vector, statistics.load(kMaximum), statistics.load(kAlphaSumexpM1),
                  statistics.load(kTargetWeight), scale(p, tile, vector),
                  targets.counts.at(vector));
    });
    map_fresh(p, tile, targets, softmax, exponential);
  }

  static void map_fresh(const Params& p, const InnerTile& tile, const Targets& targets,
                        const InnerSoftmax<V>& softmax, const PoweredExponential<V>& exponential) {
    map(p, tile, targets, softmax,
        FreshTile<Storage>(logits(p, tile), p.shape.classes, p.logits_strides.classes, softmax,
                           exponential));
  }

  template <class Powered>
  static void map(const Params& p, const InnerTile& tile, const Targets& targets,
                  const InnerSoftmax<V>& softmax, const Powered& powered) {
    const auto write = [&](const auto& other_mass) {
      const auto mass = [&](const TileVector& vector, int64_t c, V number) {
        const auto is_target = equal(number, targets.index.at(vector));
        return select(is_target, targets.mass.at(vector), other_mass(vector, c));
      };
      map_inner(tile, p.shape.classes, softmax, powered, mass,
                TileOutput<Storage>(tile, p.gradient, p.shape, p.gradient_strides));
    };
    if (has_dense_target(p)) {
      write(OtherMass(p, tile));
    } else {
      write([](const TileVector&, int64_t) { return V::broadcast(0); });
    }
  }
};

template <class Storage>
struct LogSoftmaxInner {
  using Scalar = AccumulateOf<Storage>;
  using V = Vector<Scalar>;
  using Params = LogSoftmaxParams;

  template <class Kind>
  static void forward_tile(const Params& p, const InnerTile& tile, const Workspace& workspace) {
    const int64_t classes = p.shape.classes;
    const Storage* logits = static_cast<const Storage*>(p.logits) + tile.offset(p.logits_strides);
    const TileLogits<Storage> z(tile, logits, p.shape, p.logits_strides.classes, workspace);
    const TileOutput<Storage> out(tile, p.output, p.shape, p.output_strides);
    TileLanes<V> maxima;
    TileLanes<V> log_sums;
    for_each_vector_of<V>(tile, [&](const TileVector& vector) {
      const V maximum = z.with_column(
          vector, [&](const auto& column) { return find_inner_maximum(column, classes); });
      const auto sums = reduce_inner<Kind>(p.alpha, z, vector, classes, maximum, [](int64_t, V) {
                        }).poisoned(maximum);
      maxima.set(vector, maximum);
      log_sums.set(vector, log1p(sums.rest));
      if (p.statistics == nullptr) return;
      const StatisticLanes<V> statistics(p, tile, vector);
      statistics.store(kMaximum, maximum);
      statistics.store(kAlphaSumexpM1, sums.alpha_sumexp_m1);
    });
    for_each_class_of<V>(tile, classes, [&](const TileVector& vector, int64_t c, V) {
      const V x = z.with_column(vector, [&](const auto& column) { return column[c]; });
      out.write(vector, c, (x - maxima.at(vector)) - log_sums.at(vector));
    });
  }

  // dz = g - p' sum(g): cross-entropy's gradient with the grad_output for a target, and -1 for a
  // scale.
  static void backward_tile(const Params& p, const InnerTile& tile,
                            const PoweredExponential<V>& exponential) {
    const int64_t stride = p.grad_output_strides.classes;
    const Storage* z = static_cast<const Storage*>(p.logits) + tile.offset(p.logits_strides);
    const Storage* g =
        static_cast<const Storage*>(p.grad_output) + tile.offset(p.grad_output_strides);
    const TileLanes<V> sums = sum_tile<V>(tile, g, p.shape.classes, stride);
    InnerSoftmax<V> softmax;
    for_each_vector_of<V>(tile, [&](const TileVector& vector) {
      const StatisticLanes<V> statistics(p, tile, vector);
      softmax.set(vector, statistics.load(kMaximum), statistics.load(kAlphaSumexpM1),
                  sums.at(vector), V::broadcast(-1), V::broadcast(1));
    });
    const ClassWalk walk(p.shape.classes, stride, kTileRows);
    const auto grad_output = [&](const TileVector& vector, int64_t c, V) {
      const Storage* from = g + c * stride + vector.first;
      walk.prefetch(from, c);
      return load_lanes<V>(from, vector.lanes);
    };
    map_inner(
        tile, p.shape.classes, softmax,
        FreshTile<Storage>(z, p.shape.classes, p.logits_strides.classes, softmax, exponential),
        grad_output, TileOutput<Storage>(tile, p.gradient, p.shape, p.gradient_strides));
  }
};

}  // namespace
}  // namespace powergrad

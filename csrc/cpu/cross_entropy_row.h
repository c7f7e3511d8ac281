// Cross-entropy on contiguous rows: the three phases of kernels.h, forward and backward. Included
// inside the target region.
#pragma once

namespace powergrad {
namespace {

// gradient_j = scale (p'_j W - target_j) over [0, count), as SoftmaxRow::minus_target_from computes
// it. powered(column, lanes, z) gives p' times 1 + r', target(column, lanes) gives target_j.
template <class Storage, class Powered, class Target>
void map_softmax_minus_target(const Storage* z, int64_t count,
                              const SoftmaxRow<AccumulateOf<Storage>>& row, const Powered& powered,
                              const Target& target, AccumulateOf<Storage> scale,
                              Storage* gradient) {
  using V = VectorOf<Storage>;
  const V share = V::broadcast(row.share);
  const V missing = V::broadcast(row.missing);
  const V dominant = V::broadcast(row.dominant);
  const V target_weight = V::broadcast(row.target_weight);
  map_row<V>(count, gradient, [&](int64_t column, int lanes) {
    const V x = load_lanes<V>(z + column, lanes);
    const V direct = powered(column, lanes, x) * share;
    const V target_j = target(column, lanes);
    const V of_dominant = multiply_add(target_j, V::broadcast(-1), target_weight) - missing;
    const V value = select(equal(x, dominant), of_dominant, direct - target_j);
    return value * V::broadcast(scale);
  });
}

// Two sources of exp(alpha (z - maximum)): what the reduction stored, relative to the maximum of
// its block, or the logits once more.
template <class Scalar>
struct KeptExponentials {
  const Scalar* kept;
  Vector<Scalar> factor;
  Vector<Scalar> operator()(int64_t column, int lanes, Vector<Scalar>) const {
    return load_lanes<Vector<Scalar>>(kept + column, lanes) * factor;
  }
  KeptExponentials times(Vector<Scalar> scale) const { return {kept, factor * scale}; }
};
template <class Exp, class Scalar>
struct FreshExponentials {
  Vector<Scalar> maximum;
  Exp exponential;
  FreshExponentials(Scalar row_maximum, double alpha)
      : maximum(Vector<Scalar>::broadcast(row_maximum)), exponential(alpha) {}
  Vector<Scalar> operator()(int64_t, int, Vector<Scalar> z) const {
    return exponential(z, maximum);
  }
  auto times(Vector<Scalar> scale) const {
    return [this, scale](int64_t column, int lanes, Vector<Scalar> z) {
      return (*this)(column, lanes, z) * scale;
    };
  }
};
// Calls map(powered) with them, for a row whose sum r' is alpha_sumexp_m1.
template <Precision kPrecision, class Scalar, class Map>
void map_fresh_exponentials(Scalar row_maximum, Scalar alpha_sumexp_m1, double alpha,
                            const Map& map) {
  using V = Vector<Scalar>;
  if (is_remote(alpha_sumexp_m1)) {
    map(FreshExponentials<ExactExponential<V>, Scalar>(row_maximum, alpha));
  } else {
    map(FreshExponentials<Exponential<V, kPrecision>, Scalar>(row_maximum, alpha));
  }
}

// The part of target_j that every class has: w_j (slope q_j + intercept). An index target adds its
// weight at one class (see IndexTarget).
template <class Storage>
struct DenseTarget {
  using Scalar = AccumulateOf<Storage>;
  using V = Vector<Scalar>;
  const Storage* probabilities;  // at most one of these two is not null
  const Scalar* wide_probabilities;
  const Scalar* weight;  // or null
  Scalar slope;
  Scalar intercept;

  DenseTarget(const CrossEntropyParams& p, int64_t target_offset)
      : probabilities(nullptr),
        wide_probabilities(nullptr),
        weight(weights_of<Scalar>(p)),
        slope(static_cast<Scalar>(1.0 - p.label_smoothing)),
        intercept(static_cast<Scalar>(p.label_smoothing / static_cast<double>(all_classes(p)))) {
    if (p.target_probabilities == nullptr) return;
    if (p.target_is_accumulate_type) {
      wide_probabilities = static_cast<const Scalar*>(p.target_probabilities) + target_offset;
    } else {
      probabilities = static_cast<const Storage*>(p.target_probabilities) + target_offset;
    }
  }

  // Lanes at column * class_stride of the probabilities; `weights` are the weights of those lanes.
  V at(int64_t offset, int lanes, V weights) const {
    V q = V::broadcast(intercept);
    if (probabilities != nullptr) {
      q = multiply_add(load_lanes<V>(probabilities + offset, lanes), V::broadcast(slope), q);
    } else if (wide_probabilities != nullptr) {
      q = multiply_add(load_lanes<V>(wide_probabilities + offset, lanes), V::broadcast(slope), q);
    }
    return q * weights;
  }
  V operator()(int64_t column, int lanes) const {
    return at(column, lanes,
              weight != nullptr ? load_lanes<V>(weight + column, lanes) : V::broadcast(1));
  }
};

template <class Storage>
struct CrossEntropyRow {
  using Scalar = AccumulateOf<Storage>;
  using V = Vector<Scalar>;
  using Params = CrossEntropyParams;

  static const Storage* logits(const Params& p, int64_t row) {
    return static_cast<const Storage*>(p.logits) + row_offset(p.shape, p.logits_strides, row);
  }
  static Storage* gradient(const Params& p, int64_t row) {
    return static_cast<Storage*>(p.gradient) + row_offset(p.shape, p.gradient_strides, row);
  }
  static DenseTarget<Storage> dense_target(const Params& p, int64_t row) {
    const bool probabilities = p.target_probabilities != nullptr;
    return {p, probabilities ? row_offset(p.shape, p.target_strides, row) : 0};
  }
  static Scalar* statistic(const Params& p, Statistic which, int64_t row) {
    return static_cast<Scalar*>(p.statistics) + which * p.shape.rows() + row;
  }
  static KeptRow<Storage> kept(const Params& p, int64_t row, Workspace& workspace) {
    if (p.gradient == nullptr) return {nullptr, nullptr};
    Storage* const out = gradient(p, row);
    if constexpr (kIsAccumulate<Storage>) {
      return {out, out};
    } else {
      return {static_cast<Scalar*>(workspace.exponentials), out};
    }
  }

  template <class Kind>
  static void reduce(const Params& p, int64_t row, int64_t begin, int64_t end,
                     Workspace& workspace) {
    const auto target = IndexTarget<Scalar>::of_row(p, row);
    if (target.ignored) return;
    const DenseTarget<Storage> target_of = dense_target(p, row);
    const Storage* z = logits(p, row);
    const KeptRow<Storage> keep = kept(p, row, workspace);
    for (int64_t k = begin; k < end; ++k) {
      const int64_t first = k * kBlockColumns;
      const int64_t count = std::min(kBlockColumns, p.shape.classes - first);
      BlockState& state = workspace.blocks[k];
      reduce_exponentials<Kind>(p.alpha, z + first, count, keep.from(first), state);
      state.target_weight = state.distance = 0.0;
      if (has_dense_target(p)) reduce_dense_target(target_of, z, first, count, state);
      if (has_metrics(p)) state.entropy_sum = sum_entropy_terms(z + first, count);
    }
  }

  static void reduce_dense_target(const DenseTarget<Storage>& target_of, const Storage* z,
                                  int64_t first, int64_t count, BlockState& state) {
    const V zero = V::broadcast(0);
    // Where all of a block is -infinity, distances from any reference are infinite.
    const V reference = V::broadcast(static_cast<Scalar>(reference_of(state.maximum)));
    auto weights = LongSum<V>::start();
    auto distances = LongSum<V>::start();
    for_each_vector<V>(count, [&](int64_t column, int lanes) {
      const auto valid = V::first_lanes(lanes);
      const V target_j = target_of(first + column, lanes);
      const V distance = target_j * (reference - load_lanes<V>(z + first + column, lanes));
      weights.add(select(valid, target_j, zero));
      distances.add(select(valid, distance, zero));
      if (column / V::kWidth % LongSum<V>::kRun == LongSum<V>::kRun - 1) {
        weights.close_run();
        distances.close_run();
      }
    });
    weights.close_run();
    distances.close_run();
    state.target_weight = sum_of_lanes(weights.total);
    state.distance = sum_of_lanes(distances.total);
  }

  static void merge(const Params& p, int64_t row, Workspace& workspace) {
    Scalar& loss = static_cast<Scalar*>(p.losses)[row];
    const auto target = IndexTarget<Scalar>::of_row(p, row);
    if (target.ignored) {
      loss = 0;
      write_statistics(p, row, 0, 0, 0);
      write_sumexp_m1(p, row, -1);
      if (has_metrics(p)) write_no_metrics<Scalar>(p, row);
      return;
    }
    const int64_t count = block_count(p.shape);
    BlockState& state = workspace.row;
    merge_exponentials(p.alpha, count, workspace.blocks, state);
    if (has_dense_target(p)) {
      state.target_weight = state.distance = 0.0;
      for (int64_t k = 0; k < count; ++k) {
        const BlockState& block = workspace.blocks[k];
        const double below = reference_of(state.maximum) - reference_of(block.maximum);
        state.target_weight += block.target_weight;
        state.distance += block.distance + (below == 0.0 ? 0.0 : block.target_weight * below);
      }
      if (p.target_probabilities == nullptr) state.target_weight = smoothing_weight(p);
    }
    double z_target = 0.0;
    if (target.index >= 0) {
      z_target = load_scalar(logits(p, row) + target.index);
      state.target_weight += target.point_weight;
      state.distance += target.point_weight * (reference_of(state.maximum) - z_target);
    }
    if (p.is_shard) {
      write_sumexp_m1(p, row, state.sumexp_m1);
      loss = static_cast<Scalar>(state.distance);
      write_statistics(p, row, state.maximum, state.alpha_sumexp_m1, state.target_weight);
      if (has_metrics(p)) {
        write_metrics_of_shard(p, row, static_cast<Scalar>(z_target), entropy_sum(p, workspace));
      }
      return;
    }
    const double undefined = nan_if_infinite(state.maximum);
    state.sumexp_m1 += undefined;
    state.alpha_sumexp_m1 += undefined;
    const auto sumexp_m1 = static_cast<Scalar>(state.sumexp_m1);
    const Scalar log_sum = log1p(sumexp_m1);
    // Both terms are >= 0, so nothing cancels.
    double whole_loss = state.distance + state.target_weight * log_sum;
    if (has_row_options(p)) {
      whole_loss = finish_options(p, row, whole_loss, z_target, sumexp_m1, log_sum, workspace);
    }
    loss = static_cast<Scalar>(whole_loss);
    write_statistics(p, row, state.maximum, state.alpha_sumexp_m1, state.target_weight);
  }

  // Not inlined: rows without options then have all registers.
  __attribute__((noinline)) static double finish_options(const Params& p, int64_t row, double loss,
                                                         double z_target, Scalar sumexp_m1,
                                                         Scalar log_sum,
                                                         const Workspace& workspace) {
    const double maximum = workspace.row.maximum;
    write_sumexp_m1(p, row, sumexp_m1);
    if (has_metrics(p)) {
      compute_metrics(p, p.shape.rows(), row, static_cast<Scalar>(maximum),
                      static_cast<Scalar>(z_target), sumexp_m1, log_sum, entropy_sum(p, workspace));
    }
    return weighted_loss<Scalar>(p, row, loss, maximum, double{log_sum});
  }

  static Scalar entropy_sum(const Params& p, const Workspace& workspace) {
    return static_cast<Scalar>(
        merge_entropy_sums(block_count(p.shape), workspace.blocks, workspace.row.maximum));
  }

  static void write_sumexp_m1(const Params& p, int64_t row, double sumexp_m1) {
    if (p.sumexp_m1 != nullptr)
      static_cast<Scalar*>(p.sumexp_m1)[row] = static_cast<Scalar>(sumexp_m1);
  }

  static void write_statistics(const Params& p, int64_t row, double maximum, double alpha_sumexp_m1,
                               double target_weight) {
    if (p.statistics == nullptr) return;
    *statistic(p, kMaximum, row) = static_cast<Scalar>(maximum);
    *statistic(p, kAlphaSumexpM1, row) = static_cast<Scalar>(alpha_sumexp_m1);
    *statistic(p, kTargetWeight, row) = static_cast<Scalar>(target_weight);
  }

  // What the gradient of a row is made of, as in BlockState.
  struct Sums {
    Scalar maximum;
    Scalar sumexp_m1;  // for z-loss
    Scalar alpha_sumexp_m1;
    Scalar target_weight;

    Scalar z_loss_weight_of(const Params& p) const {
      return has_z_loss(p) ? z_loss_weight(p, maximum, log1p(sumexp_m1)) : Scalar(0);
    }
  };

  // With the exponentials that the reduction kept, or without them.
  static void map_forward(const Params& p, int64_t row, int64_t begin, int64_t end,
                          Workspace& workspace) {
    if (p.gradient == nullptr) return;
    const BlockState& state = workspace.row;
    const Sums sums{static_cast<Scalar>(state.maximum), static_cast<Scalar>(state.sumexp_m1),
                    static_cast<Scalar>(state.alpha_sumexp_m1),
                    static_cast<Scalar>(state.target_weight)};
    map(p, row, begin, end, sums, kept(p, row, workspace).exponentials, workspace.blocks);
  }
  static void map_backward(const Params& p, int64_t row, int64_t begin, int64_t end, Workspace&) {
    const Scalar sumexp_m1 = has_z_loss(p) ? static_cast<const Scalar*>(p.sumexp_m1)[row] : 0;
    const Sums sums{*statistic(p, kMaximum, row), sumexp_m1, *statistic(p, kAlphaSumexpM1, row),
                    *statistic(p, kTargetWeight, row)};
    map(p, row, begin, end, sums, nullptr, nullptr);
  }

  static void map(const Params& p, int64_t row, int64_t begin, int64_t end, const Sums& sums,
                  const Scalar* keep, const BlockState* blocks) {
    const Storage* z = logits(p, row);
    Storage* out = gradient(p, row);
    const auto target = IndexTarget<Scalar>::of_row(p, row);
    const SoftmaxRow<Scalar> softmax(sums.maximum, sums.alpha_sumexp_m1, sums.target_weight,
                                     sums.z_loss_weight_of(p));
    const DenseTarget<Storage> target_of = dense_target(p, row);
    const Scalar scale = grad_output_of_row<Scalar>(p, row);
    for (int64_t k = begin; k < end; ++k) {
      const int64_t first = k * kBlockColumns;
      const int64_t count = std::min(kBlockColumns, p.shape.classes - first);
      if (target.ignored) {
        std::memset(static_cast<void*>(out + first), 0, count * sizeof(Storage));
        continue;
      }
      const bool here = first <= target.index && target.index < first + count;
      const Scalar z_target = here ? load_scalar(z + target.index) : 0;  // before it is overwritten
      // Calls map_block with the exponentials; only those that are computed again have a precision.
      const auto map_exponentials = [&](auto precision, const auto& map_block) {
        if (keep != nullptr) {
          const double factor = blocks[k].alpha_factor;
          map_block(KeptExponentials<Scalar>{keep + first, V::broadcast(factor)});
        } else {
          map_fresh_exponentials<decltype(precision)::value>(softmax.maximum, sums.alpha_sumexp_m1,
                                                             p.alpha, map_block);
        }
      };
      if (has_dense_target(p)) {
        const auto target_in_block = [&](int64_t column, int lanes) {
          return target_of(first + column, lanes);
        };
        // What cancels in p' W - target_j takes the first digits of both.
        map_exponentials(InPrecision<Precision::full>(), [&](const auto& powered) {
          map_softmax_minus_target(z + first, count, softmax, powered, target_in_block, scale,
                                   out + first);
        });
      } else {
        map_exponentials(InPrecision<kPrecisionOf<Storage>>(), [&](const auto& powered) {
          map_softmax(z + first, count, powered, scale * softmax.share, out + first);
        });
      }
      if (here) {
        store_scalar(scale * softmax.minus_target(p.alpha, z_target, target.weighted_target),
                     out + target.index);
      }
    }
  }

  // Every class but the target where the others have no target weight.
  template <class Powered>
  static void map_softmax(const Storage* z, int64_t count, const Powered& powered, Scalar scale,
                          Storage* out) {
    const auto scaled = powered.times(V::broadcast(scale));
    map_row<V>(count, out, [&](int64_t column, int lanes) {
      return scaled(column, lanes, load_lanes<V>(z + column, lanes));
    });
  }
};

}  // namespace
}  // namespace powergrad

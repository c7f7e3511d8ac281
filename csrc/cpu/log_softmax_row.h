// log-softmax on contiguous rows: the three phases of kernels.h, forward and backward. Included
// inside the target region.
#pragma once

namespace powergrad {
namespace {

template <class Storage>
struct LogSoftmaxRow {
  using Scalar = AccumulateOf<Storage>;
  using V = Vector<Scalar>;
  using Params = LogSoftmaxParams;

  static const Storage* logits(const Params& p, int64_t row) {
    return static_cast<const Storage*>(p.logits) + row_offset(p.shape, p.logits_strides, row);
  }
  static const Storage* grad_output(const Params& p, int64_t row) {
    return static_cast<const Storage*>(p.grad_output) +
           row_offset(p.shape, p.grad_output_strides, row);
  }
  static Scalar* statistic(const Params& p, Statistic which, int64_t row) {
    return static_cast<Scalar*>(p.statistics) + which * p.shape.rows() + row;
  }

  template <class Kind>
  static void reduce(const Params& p, int64_t row, int64_t begin, int64_t end,
                     Workspace& workspace) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t first = k * kBlockColumns;
      const int64_t count = std::min(kBlockColumns, p.shape.classes - first);
      constexpr KeptRow<Storage> kNowhere{nullptr, nullptr};
      reduce_exponentials<Kind>(p.alpha, logits(p, row) + first, count, kNowhere,
                                workspace.blocks[k]);
    }
  }

  static void merge(const Params& p, int64_t row, Workspace& workspace) {
    BlockState& state = workspace.row;
    merge_exponentials(p.alpha, block_count(p.shape), workspace.blocks, state);
    state.sumexp_m1 += nan_if_infinite(state.maximum);
    state.alpha_sumexp_m1 += nan_if_infinite(state.maximum);
    if (p.statistics == nullptr) return;
    *statistic(p, kMaximum, row) = static_cast<Scalar>(state.maximum);
    *statistic(p, kAlphaSumexpM1, row) = static_cast<Scalar>(state.alpha_sumexp_m1);
  }

  static void map_forward(const Params& p, int64_t row, int64_t begin, int64_t end,
                          Workspace& workspace) {
    const Storage* z = logits(p, row);
    Storage* out = static_cast<Storage*>(p.output) + row_offset(p.shape, p.output_strides, row);
    // z - maximum first: it is exact or nearly so, however far from 0 the row lies.
    const V maximum = V::broadcast(static_cast<Scalar>(workspace.row.maximum));
    const V log_sum = V::broadcast(log1p(static_cast<Scalar>(workspace.row.sumexp_m1)));
    const int64_t last = std::min(end * kBlockColumns, p.shape.classes);
    const int64_t first = begin * kBlockColumns;
    map_row<V>(last - first, out + first, [&](int64_t column, int lanes) {
      return (load_lanes<V>(z + first + column, lanes) - maximum) - log_sum;
    });
  }

  static void reduce_grad_output(const Params& p, int64_t row, int64_t begin, int64_t end,
                                 Workspace& workspace) {
    const Storage* g = grad_output(p, row);
    for (int64_t k = begin; k < end; ++k) {
      const int64_t first = k * kBlockColumns;
      auto sum = LongSum<V>::start();
      for_each_vector<V>(std::min(kBlockColumns, p.shape.classes - first),
                         [&](int64_t column, int lanes) {
                           sum.add(load_lanes<V>(g + first + column, lanes));
                           if (column / V::kWidth % LongSum<V>::kRun == 0) sum.close_run();
                         });
      sum.close_run();
      workspace.blocks[k].target_weight = sum_of_lanes(sum.total);
    }
  }

  static void merge_grad_output(const Params& p, int64_t, Workspace& workspace) {
    workspace.row.target_weight = 0.0;
    for (int64_t k = 0; k < block_count(p.shape); ++k) {
      workspace.row.target_weight += workspace.blocks[k].target_weight;
    }
  }

  // dz = g - p' sum(g): cross-entropy's gradient with target g and scale -1.
  static void map_backward(const Params& p, int64_t row, int64_t begin, int64_t end,
                           Workspace& workspace) {
    const int64_t first = begin * kBlockColumns;
    const Storage* z = logits(p, row) + first;
    const Storage* g = grad_output(p, row) + first;
    Storage* out =
        static_cast<Storage*>(p.gradient) + row_offset(p.shape, p.gradient_strides, row) + first;
    const Scalar alpha_sumexp_m1 = *statistic(p, kAlphaSumexpM1, row);
    const SoftmaxRow<Scalar> softmax(*statistic(p, kMaximum, row), alpha_sumexp_m1,
                                     static_cast<Scalar>(workspace.row.target_weight));
    const auto target = [g](int64_t column, int lanes) { return load_lanes<V>(g + column, lanes); };
    const int64_t count = std::min(end * kBlockColumns, p.shape.classes) - first;
    const auto map = [&](const auto& powered) {
      map_softmax_minus_target(z, count, softmax, powered, target, Scalar(-1), out);
    };
    map_fresh_exponentials<Precision::full>(softmax.maximum, alpha_sumexp_m1, p.alpha, map);
  }
};

}  // namespace
}  // namespace powergrad

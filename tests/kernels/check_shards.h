// Checks one cross-entropy problem with sharded classes on one machine: the statistics of the
// shards merged, and the gradient of each shard.
#pragma once

#include "check_cross_entropy.h"
#include "shards.h"

namespace powergrad::test {

template <class Storage>
class ShardsCheck {
 public:
  using Accumulate = AccumulateOf<Storage>;

  // Shards begin at `cuts`, which increase; where two are equal, the one between has no classes.
  ShardsCheck(const Problem<Storage>& problem, const CrossEntropyReference<Storage>& reference,
              std::vector<int64_t> cuts, Report& report)
      : problem_(problem),
        reference_(reference),
        bounds_(std::move(cuts)),
        report_(report),
        shard_statistics_((static_cast<int64_t>(bounds_.size()) + 1) *
                          shard_statistics_size(problem.rows(), problem.options.metrics)) {
    report.enter("shards of " + problem.describe());
    bounds_.insert(bounds_.begin(), 0);
    bounds_.push_back(problem.classes());
  }

  void check() {
    for (int64_t shard = 0; shard < shards(); ++shard) forward(shard);
    MergeParams p{};
    Block<Accumulate> merged(kShardStatistics * problem_.rows());
    Block<Accumulate> losses(problem_.rows());
    p.dtype = Traits<Storage>::dtype;
    p.shards = shards();
    p.rows = problem_.rows();
    p.alpha = problem_.options.alpha;
    p.z_loss = problem_.options.z_loss;
    if (problem_.options.row_weighted) p.row_weight = problem_.row_weight.data();
    RowOutputs<Storage> rows(problem_);
    if (problem_.options.metrics) p.metrics = rows.metrics.data();
    p.shard_statistics = shard_statistics_.data();
    p.merged = merged.data();
    p.losses = losses.data();
    expect_ran(run_merge_shards(report_.machine(), p, whole(), false));
    report_.expect(merged.band_untouched() && losses.band_untouched() && rows.edges_untouched(),
                   "merged past the end");
    check_merged(merged, losses);
    rows.sumexp_m1 = Block<Accumulate>();  // it is among the merged statistics
    rows.check(problem_, reference_, report_);
    for (int64_t shard = 0; shard < shards(); ++shard) check_gradient(shard, merged);
  }

 private:
  int64_t shards() const { return static_cast<int64_t>(bounds_.size()) - 1; }
  int64_t first(int64_t shard) const { return bounds_[shard]; }
  int64_t count(int64_t shard) const { return bounds_[shard + 1] - bounds_[shard]; }
  Accumulate* statistics_of(int64_t shard) {
    return shard_statistics_.data() +
           shard * shard_statistics_size(problem_.rows(), problem_.options.metrics);
  }

  // A tensor of the shard's own.
  Tensor<Storage> new_tensor(int64_t shard) const {
    const Options& options = problem_.options;
    const Shape shape{options.shape.outer, count(shard), options.shape.inner};
    return Tensor<Storage>(shape, strides_of(shape, options.arrangement, 3));
  }
  Tensor<Storage> logits_of(int64_t shard) const {
    Tensor<Storage> logits = new_tensor(shard);
    for (int64_t row = 0; row < problem_.rows(); ++row) {
      for (int64_t j = 0; j < count(shard); ++j) {
        logits.at(row, j) = problem_.logits.at(row, first(shard) + j);
      }
    }
    return logits;
  }
  CrossEntropyParams params(int64_t shard, const Tensor<Storage>& logits,
                            double* weight_sum) const {
    CrossEntropyParams p = problem_.cross_entropy();
    p.shape = logits.shape;
    p.classes_before = first(shard);
    p.classes_after = problem_.classes() - first(shard) - count(shard);
    p.logits = logits.block.data();
    p.logits_strides = logits.strides;
    if (p.weight == nullptr) return p;
    *weight_sum = 0.0;
    for (int64_t j = 0; j < count(shard); ++j) *weight_sum += problem_.weight[first(shard) + j];
    p.weight_sum = weight_sum;
    return p;
  }

  void forward(int64_t shard) {
    const int64_t rows = problem_.rows();
    *statistics_of(shard) = 42;
    Accumulate* statistics = statistics_of(shard) + 1;
    if (count(shard) == 0) {
      const Accumulate nothing[kShardStatisticsWithMetrics] = {
          -static_cast<Accumulate>(kInfinity), -1, 0, -1, 0, 0, 0};
      for (int64_t i = 0; i < shard_statistics_size(rows, problem_.options.metrics) - 1; ++i) {
        statistics[i] = nothing[i / rows];
      }
      return;
    }
    const Tensor<Storage> logits = logits_of(shard);
    double weight_sum;
    CrossEntropyParams p = params(shard, logits, &weight_sum);
    p.is_shard = true;
    p.statistics = statistics;
    p.sumexp_m1 = statistics + kSumexpM1 * rows;
    p.losses = statistics + kDistance * rows;
    if (problem_.options.metrics) p.metrics = statistics + kTargetLogit * rows;
    expect_ran(run_cross_entropy_forward(report_.machine(), p, whole(), false));
    report_.expect(shard_statistics_.band_untouched(),
                   "shard statistics are written past their end");
  }

  void check_merged(const Block<Accumulate>& merged, const Block<Accumulate>& losses) const {
    const int64_t rows = problem_.rows();
    for (int64_t i = 0; i < rows; ++i) {
      const auto& row = reference_.rows[i];
      report_.expect_close(losses[i], row.loss, "loss", i, 0);
      if (problem_.ignored(i)) continue;
      report_.expect_close(merged[kAlphaSumexpM1 * rows + i], row.alpha_sumexp_m1,
                           "alpha_sumexp_m1", i, 0);
      if (row.is_nan) continue;
      report_.expect_close(merged[kMaximum * rows + i], {row.maximum, 0}, "maximum", i, 0);
      report_.expect_close(merged[kTargetWeight * rows + i], row.target_weight, "target weight", i,
                           0);
      report_.expect_close(merged[kSumexpM1 * rows + i], row.sumexp_m1, "sumexp_m1", i, 0);
    }
  }

  void check_gradient(int64_t shard, Block<Accumulate>& merged) const {
    if (count(shard) == 0) return;
    const Tensor<Storage> logits = logits_of(shard);
    Tensor<Storage> gradient = new_tensor(shard);
    double weight_sum;
    CrossEntropyParams p = params(shard, logits, &weight_sum);
    p.statistics = merged.data();
    p.sumexp_m1 = merged.data() + kSumexpM1 * problem_.rows();
    p.gradient = gradient.block.data();
    p.gradient_strides = gradient.strides;
    expect_ran(run_cross_entropy_backward(report_.machine(), p, whole(), false));
    report_.expect(gradient.padding_untouched(), "backward wrote outside its gradient");
    for (int64_t i = 0; i < problem_.rows(); ++i) {
      for (int64_t j = 0; j < count(shard); ++j) {
        report_.expect_close(widen(gradient.at(i, j)),
                             reference_.rows[i].gradient[first(shard) + j], "gradient", i,
                             first(shard) + j);
      }
    }
  }

  void expect_ran(const std::string& wrong) const { report_.expect(wrong.empty(), wrong); }

  const Problem<Storage>& problem_;
  const CrossEntropyReference<Storage>& reference_;
  std::vector<int64_t> bounds_;
  Report& report_;
  Block<Accumulate> shard_statistics_;
};

// Shards of one class, none, about a third, all others; or two halves.
inline std::vector<int64_t> cuts_of(int64_t classes, int turn) {
  if (turn % 2 == 0)
    return {std::min<int64_t>(classes, 1), std::min<int64_t>(classes, 1), (classes + 2) / 3};
  return {classes / 2};
}

}  // namespace powergrad::test

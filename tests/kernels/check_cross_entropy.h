// Checks one cross-entropy problem on one machine, with all outputs that kernels offer.
#pragma once

#include "problem.h"
#include "report.h"
#include "running.h"

namespace powergrad::test {

template <class Storage>
struct CrossEntropyReference {
  using B = Bounds<Storage>;
  struct OfRow {
    bool is_nan = false;
    long double maximum = 0;
    Expected loss{0, 0};
    Expected sumexp_m1{0, 0};
    Expected alpha_sumexp_m1{0, 0};
    Expected target_weight{0, 0};
    Expected log_prob{0, 0};
    Expected entropy{0, 0};
    bool correct = false;
    std::vector<Expected> gradient;
  };
  std::vector<OfRow> rows;

  CrossEntropyReference(const Problem<Storage>& problem,
                        const std::vector<SoftmaxReference>& softmax_rows)
      : rows(problem.rows()) {
    for (int64_t i = 0; i < problem.rows(); ++i) {
      OfRow& row = rows[i];
      if (problem.ignored(i)) {
        row.gradient.assign(problem.classes(), {0, 0});
        continue;
      }
      const Row z = problem.logits_row(i);
      const Row target = problem.weighted_target_row(i);
      const SoftmaxReference& softmax = softmax_rows[i];
      long double loss = 0;
      long double total = 0;
      for (int64_t j = 0; j < problem.classes(); ++j) {
        total += target[j];
        // An index without smoothing names one class; the others do not enter the sum at all.
        if (!problem.options.has_dense_target() && j != problem.target(i)) continue;
        loss -= target[j] * softmax.log_probability(z[j]);
      }
      row.is_nan = softmax.is_nan;
      row.maximum = softmax.maximum;
      const long double lse = softmax.log_sum_of_exponentials();
      row.loss = B::sum((loss + problem.options.z_loss * lse * lse) * problem.row_weight_of(i));
      if (problem.options.by_index()) {
        const long double z_target = z[problem.target(i)];
        row.log_prob = B::sum(softmax.log_probability(z_target));
        row.entropy = B::entropy(softmax.entropy, softmax.sumexp_m1);
        row.correct = !row.is_nan && z_target == softmax.maximum;
      }
      row.sumexp_m1 = B::sum(softmax.sumexp_m1);
      row.alpha_sumexp_m1 = B::sum(softmax.alpha_sumexp_m1);
      row.target_weight = B::sum(total);
      Row gradient = softmax.gradient(target, problem.z_loss_weight(softmax));
      for (long double& g : gradient) g *= problem.scale(i);
      row.gradient = B::gradient(gradient);
      for (int64_t j = 0; j < problem.classes(); ++j) {
        // A masked class without a target has a gradient of exactly 0.
        if (z[j] == -kInfinity && gradient[j] == 0) row.gradient[j].tolerance = 0;
      }
    }
  }
};

// What a call writes for each row besides, where its options ask for it.
template <class Storage>
struct RowOutputs {
  using Accumulate = AccumulateOf<Storage>;
  Block<Accumulate> sumexp_m1;
  Block<Accumulate> metrics;

  explicit RowOutputs(const Problem<Storage>& problem)
      : sumexp_m1(problem.options.z_loss != 0 ? problem.rows() : 0),
        metrics(problem.options.metrics ? kMetrics * problem.rows() : 0) {}
  void fill(CrossEntropyParams& p) {
    if (sumexp_m1.count() > 0) p.sumexp_m1 = sumexp_m1.data();
    if (metrics.count() > 0) p.metrics = metrics.data();
  }
  bool edges_untouched() const { return sumexp_m1.band_untouched() && metrics.band_untouched(); }
  bool same_as(const RowOutputs& other) const {
    return same_numbers(sumexp_m1, other.sumexp_m1) && same_numbers(metrics, other.metrics);
  }
  void check(const Problem<Storage>& problem, const CrossEntropyReference<Storage>& reference,
             Report& report) const {
    for (int64_t i = 0; i < problem.rows(); ++i) {
      const auto& row = reference.rows[i];
      if (sumexp_m1.count() > 0 && !problem.ignored(i)) {
        report.expect_close(sumexp_m1[i], row.sumexp_m1, "sumexp_m1", i, 0);
      }
      if (metrics.count() == 0) continue;
      const auto metric = [&](Metric which) { return metrics[which * problem.rows() + i]; };
      report.expect_close(metric(kLogProb), row.log_prob, "log_prob", i, 0);
      report.expect_close(metric(kEntropy), row.entropy, "entropy", i, 0);
      report.expect_close(metric(kCorrect), {row.correct ? 1.0L : 0.0L, 0}, "correct", i, 0);
    }
  }
};

template <class Storage>
struct CrossEntropyOutputs {
  using Accumulate = AccumulateOf<Storage>;
  Block<Accumulate> losses;
  Block<Accumulate> statistics;
  RowOutputs<Storage> rows;
  Tensor<Storage> gradient;

  CrossEntropyOutputs(const Problem<Storage>& problem, Tensor<Storage> its_gradient)
      : losses(problem.rows()),
        statistics(kStatistics * problem.rows()),
        rows(problem),
        gradient(std::move(its_gradient)) {}
  bool edges_untouched() const {
    return losses.band_untouched() && statistics.band_untouched() && rows.edges_untouched() &&
           gradient.padding_untouched();
  }
  bool same_as(const CrossEntropyOutputs& other) const {
    return same_numbers(losses, other.losses) && same_numbers(statistics, other.statistics) &&
           rows.same_as(other.rows) && same_numbers(gradient.block, other.gradient.block);
  }
};

// Runs the kernels of one machine on a problem.
template <class Storage>
class CrossEntropyRunner {
 public:
  using Accumulate = AccumulateOf<Storage>;
  using Outputs = CrossEntropyOutputs<Storage>;

  CrossEntropyRunner(const Problem<Storage>& problem, Report& report)
      : problem_(problem), report_(report) {
    report.enter("cross-entropy " + problem.describe());
  }

  Block<Accumulate> forward_without_statistics(bool has_scratch) const {
    CrossEntropyParams p = problem_.cross_entropy();
    Block<Accumulate> losses(problem_.rows());
    RowOutputs<Storage> rows(problem_);
    rows.fill(p);
    p.losses = losses.data();
    run(run_cross_entropy_forward, p, whole(), has_scratch);
    report_.expect(losses.band_untouched(), "wrote past the losses");
    return losses;
  }

  Outputs forward(bool with_gradient, const Execution& execution, bool has_scratch) const {
    CrossEntropyParams p = problem_.cross_entropy();
    Outputs outputs(problem_, new_gradient());
    outputs.rows.fill(p);
    p.losses = outputs.losses.data();
    p.statistics = outputs.statistics.data();
    if (with_gradient) {
      p.gradient = outputs.gradient.block.data();
      p.gradient_strides = outputs.gradient.strides;
    }
    run(run_cross_entropy_forward, p, execution, has_scratch);
    report_.expect(outputs.edges_untouched(), "forward wrote outside its outputs");
    return outputs;
  }

  // Of a forward that keeps nothing for backward.
  Tensor<Storage> gradient_alone(const Execution& execution, bool has_scratch) const {
    CrossEntropyParams p = problem_.cross_entropy();
    Block<Accumulate> losses(problem_.rows());
    Tensor<Storage> gradient = new_gradient();
    p.losses = losses.data();
    p.gradient = gradient.block.data();
    p.gradient_strides = gradient.strides;
    run(run_cross_entropy_forward, p, execution, has_scratch);
    return gradient;
  }

  Tensor<Storage> backward(const Outputs& forward, const Execution& execution,
                           bool in_place) const {
    CrossEntropyParams p = problem_.cross_entropy();
    RowOutputs<Storage> rows = forward.rows;
    rows.fill(p);
    p.metrics = nullptr;
    Block<Accumulate> own_statistics = forward.statistics;
    Tensor<Storage> gradient = in_place ? problem_.logits : new_gradient();
    p.statistics = own_statistics.data();
    p.gradient = gradient.block.data();
    p.gradient_strides = gradient.strides;
    if (in_place) p.logits = p.gradient;
    run(run_cross_entropy_backward, p, execution, false);
    report_.expect(gradient.padding_untouched(), "backward wrote outside its gradient");
    report_.expect(same_numbers(own_statistics, forward.statistics),
                   "backward wrote to the statistics");
    return gradient;
  }

 private:
  Tensor<Storage> new_gradient() const {
    return {problem_.shape(), problem_.strides(2), problem_.options.lead / 2};
  }

  template <class Kernel>
  void run(const Kernel& kernel, const CrossEntropyParams& p, const Execution& execution,
           bool has_scratch) const {
    const std::string wrong = kernel(report_.machine(), p, execution, has_scratch);
    report_.expect(wrong.empty(), wrong);
  }

  const Problem<Storage>& problem_;
  Report& report_;
};

template <class Storage>
class CrossEntropyCheck {
 public:
  using Accumulate = AccumulateOf<Storage>;
  using Outputs = CrossEntropyOutputs<Storage>;

  CrossEntropyCheck(const Problem<Storage>& problem,
                    const CrossEntropyReference<Storage>& reference, Report& report)
      : problem_(problem),
        reference_(reference),
        report_(report),
        runner_(problem, report),
        splits_(splits(problem.shape(), problem.logits.strides)) {}

  // A training step only.
  void check_step() const { check_backward(check_forward_with_gradient(false)); }

  void check() const {
    check_forward(false);
    if (kScratchIsOptional) check_forward(true);
    check_backward(runner_.forward(false, whole(), false));
  }

 private:
  void check_forward(bool has_scratch) const {
    check_losses(runner_.forward_without_statistics(has_scratch));
    const Outputs forward_only = runner_.forward(false, whole(), has_scratch);
    check_losses(forward_only.losses);
    check_statistics(forward_only.statistics);
    forward_only.rows.check(problem_, reference_, report_);
    check_forward_with_gradient(has_scratch);
  }

  Outputs check_forward_with_gradient(bool has_scratch) const {
    const Outputs outputs = runner_.forward(true, whole(), has_scratch);
    check_losses(outputs.losses);
    check_statistics(outputs.statistics);
    outputs.rows.check(problem_, reference_, report_);
    check_gradient("forward gradient", outputs.gradient);
    if (kStatisticsAreOptional) {
      expect_same("without statistics", outputs.gradient,
                  runner_.gradient_alone(whole(), has_scratch));
    }
    for (const Execution& split : splits_) {
      const Outputs other = runner_.forward(true, split, has_scratch);
      report_.expect(outputs.same_as(other), std::string("forward: other bits from ") + split.name);
    }
    return outputs;
  }

  void check_backward(const Outputs& forward) const {
    const Tensor<Storage> gradient = runner_.backward(forward, whole(), false);
    check_gradient("backward gradient", gradient);
    expect_same("working in place", gradient, runner_.backward(forward, whole(), true));
    for (const Execution& split : splits_) {
      expect_same(split.name, gradient, runner_.backward(forward, split, true));
    }
  }

  // Their strides may differ.
  void expect_same(const char* what, const Tensor<Storage>& a, const Tensor<Storage>& b) const {
    bool same = true;
    for (int64_t row = 0; row < problem_.rows(); ++row) {
      for (int64_t j = 0; j < problem_.classes(); ++j) {
        same = same && same_number(a.at(row, j), b.at(row, j));
      }
    }
    report_.expect(same, std::string("backward: other bits from ") + what);
  }

  void check_losses(const Block<Accumulate>& losses) const {
    for (int64_t i = 0; i < problem_.rows(); ++i) {
      report_.expect_close(losses[i], reference_.rows[i].loss, "loss", i, 0);
    }
  }

  // Unspecified for ignored rows and, but for one that is NaN, for rows that become NaN.
  void check_statistics(const Block<Accumulate>& statistics) const {
    const int64_t rows = problem_.rows();
    for (int64_t i = 0; i < rows; ++i) {
      if (problem_.ignored(i)) continue;
      const auto& row = reference_.rows[i];
      report_.expect_close(statistics[kAlphaSumexpM1 * rows + i], row.alpha_sumexp_m1,
                           "alpha_sumexp_m1", i, 0);
      if (row.is_nan) continue;
      report_.expect_close(statistics[kMaximum * rows + i], {row.maximum, 0}, "maximum", i, 0);
      report_.expect_close(statistics[kTargetWeight * rows + i], row.target_weight, "target weight",
                           i, 0);
    }
  }

  void check_gradient(const char* what, const Tensor<Storage>& gradient) const {
    for (int64_t i = 0; i < problem_.rows(); ++i) {
      for (int64_t j = 0; j < problem_.classes(); ++j) {
        report_.expect_close(widen(gradient.at(i, j)), reference_.rows[i].gradient[j], what, i, j);
      }
    }
  }

  const Problem<Storage>& problem_;
  const CrossEntropyReference<Storage>& reference_;
  Report& report_;
  const CrossEntropyRunner<Storage> runner_;
  const std::vector<Execution> splits_;
};

}  // namespace powergrad::test

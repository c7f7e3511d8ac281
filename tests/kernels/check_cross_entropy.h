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
      row.loss = B::sum(loss);
      row.sumexp_m1 = B::sum(softmax.sumexp_m1);
      row.alpha_sumexp_m1 = B::sum(softmax.alpha_sumexp_m1);
      row.target_weight = B::sum(total);
      Row gradient = softmax.gradient(target);
      for (long double& g : gradient) g *= problem.scale(i);
      row.gradient = B::gradient(gradient);
      for (int64_t j = 0; j < problem.classes(); ++j) {
        // A masked class without a target has a gradient of exactly 0.
        if (z[j] == -kInfinity && gradient[j] == 0) row.gradient[j].tolerance = 0;
      }
    }
  }
};

template <class Storage>
struct CrossEntropyOutputs {
  using Accumulate = AccumulateOf<Storage>;
  Block<Accumulate> losses;
  Block<Accumulate> statistics;
  Tensor<Storage> gradient;

  CrossEntropyOutputs(int64_t rows, Tensor<Storage> its_gradient)
      : losses(rows), statistics(kStatistics * rows), gradient(std::move(its_gradient)) {}
  bool edges_untouched() const {
    return losses.band_untouched() && statistics.band_untouched() && gradient.padding_untouched();
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
    p.losses = losses.data();
    run(run_cross_entropy_forward, p, whole(), has_scratch);
    report_.expect(losses.band_untouched(), "wrote past the losses");
    return losses;
  }

  Outputs forward(bool with_gradient, const Execution& execution, bool has_scratch) const {
    CrossEntropyParams p = problem_.cross_entropy();
    Outputs outputs(problem_.rows(), new_gradient());
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

  Tensor<Storage> backward(const Block<Accumulate>& statistics, const Execution& execution,
                           bool in_place) const {
    CrossEntropyParams p = problem_.cross_entropy();
    Block<Accumulate> own_statistics = statistics;
    Tensor<Storage> gradient = in_place ? problem_.logits : new_gradient();
    p.statistics = own_statistics.data();
    p.gradient = gradient.block.data();
    p.gradient_strides = gradient.strides;
    if (in_place) p.logits = p.gradient;
    run(run_cross_entropy_backward, p, execution, false);
    report_.expect(gradient.padding_untouched(), "backward wrote outside its gradient");
    report_.expect(same_numbers(own_statistics, statistics), "backward wrote to the statistics");
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
    check_backward(runner_.forward(false, whole(), false).statistics);
  }

 private:
  void check_forward(bool has_scratch) const {
    check_losses(runner_.forward_without_statistics(has_scratch));
    const Outputs forward_only = runner_.forward(false, whole(), has_scratch);
    check_losses(forward_only.losses);
    check_statistics(forward_only.statistics);
    check_forward_with_gradient(has_scratch);
  }

  Block<Accumulate> check_forward_with_gradient(bool has_scratch) const {
    const Outputs outputs = runner_.forward(true, whole(), has_scratch);
    check_losses(outputs.losses);
    check_statistics(outputs.statistics);
    check_gradient("forward gradient", outputs.gradient);
    for (const Execution& split : splits_) {
      const Outputs other = runner_.forward(true, split, has_scratch);
      report_.expect(same_numbers(outputs.losses, other.losses) &&
                         same_numbers(outputs.statistics, other.statistics) &&
                         same_numbers(outputs.gradient.block, other.gradient.block),
                     std::string("forward: other bits from ") + split.name);
    }
    return outputs.statistics;
  }

  void check_backward(const Block<Accumulate>& statistics) const {
    const Tensor<Storage> gradient = runner_.backward(statistics, whole(), false);
    check_gradient("backward gradient", gradient);
    expect_same("working in place", gradient, runner_.backward(statistics, whole(), true));
    for (const Execution& split : splits_) {
      expect_same(split.name, gradient, runner_.backward(statistics, split, true));
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

// One cross-entropy problem on one instruction set, in every way that the kernels offer.
#pragma once

#include "problem.h"
#include "report.h"
#include "running.h"

namespace powergrad::test {

struct CrossEntropyReference {
  struct OfRow {
    long double loss = 0;
    long double maximum = 0;
    long double alpha_rest = 0;
    long double mass = 0;
    Row gradient;  // before it is scaled
    long double largest = 0;
  };
  std::vector<OfRow> rows;

  template <class Storage>
  explicit CrossEntropyReference(const Problem<Storage>& problem) : rows(problem.rows()) {
    for (int64_t i = 0; i < problem.rows(); ++i) {
      OfRow& row = rows[i];
      if (problem.ignored(i)) {
        row.gradient.assign(problem.classes(), 0.0L);
        continue;
      }
      const Row z = problem.logits_row(i);
      const Row mass = problem.mass_row(i);
      const SoftmaxReference softmax(z, problem.options.alpha);
      row.maximum = softmax.maximum;
      row.alpha_rest = softmax.alpha_rest;
      row.gradient = softmax.gradient(mass);
      row.largest = largest_magnitude(row.gradient);
      for (int64_t j = 0; j < problem.classes(); ++j) {
        row.mass += mass[j];
        // An index without smoothing names one class; the others do not enter the sum at all.
        if (!problem.options.has_class_mass() && j != problem.target(i)) continue;
        row.loss -= mass[j] * softmax.log_probability(z[j]);
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

  CrossEntropyOutputs(const Shape& shape, const Strides& strides)
      : losses(shape.rows()), statistics(kStatistics * shape.rows()), gradient(shape, strides) {}
  bool edges_untouched() const {
    return losses.band_untouched() && statistics.band_untouched() && gradient.padding_untouched();
  }
};

template <class Storage>
class CrossEntropyCheck {
 public:
  using Accumulate = AccumulateOf<Storage>;
  using Outputs = CrossEntropyOutputs<Storage>;
  using B = Bounds<Storage>;
  static constexpr bool kHalf = !std::is_same_v<Storage, Accumulate>;

  CrossEntropyCheck(const Problem<Storage>& problem, const CrossEntropyReference& reference,
                    Report& report)
      : problem_(problem),
        reference_(reference),
        report_(report),
        table_(report.set().tables[static_cast<int>(Traits<Storage>::dtype)]) {
    report.enter("cross-entropy " + problem.describe());
  }

  // The outputs of forward with gradient.
  Outputs check() const {
    check_losses(forward_without_statistics());
    const Outputs statistics = forward(false, whole(), false);
    check_losses(statistics.losses);
    check_statistics(statistics.statistics);

    Outputs outputs = forward(true, whole(), kHalf);
    check_forward(outputs);
    check_splits("forward with gradient", outputs, kHalf);
    if (kHalf) {
      const Outputs recomputed = forward(true, whole(), false);
      check_forward(recomputed);
      check_splits("forward with gradient, recomputed", recomputed, false);
    }

    const Tensor<Storage> gradient = backward(statistics.statistics, whole(), false);
    check_gradient("backward gradient", gradient);
    const auto in_place = backward(statistics.statistics, whole(), true);
    expect_same("backward in place", gradient, in_place);
    for (const Execution& split : splits(problem_.shape(), problem_.logits.strides)) {
      expect_same(split.name, gradient, backward(statistics.statistics, split, false));
      expect_same(split.name, gradient, backward(statistics.statistics, split, true));
    }
    return outputs;
  }

 private:
  Strides gradient_strides() const { return problem_.strides(2); }

  Block<Accumulate> forward_without_statistics() const {
    CrossEntropyParams p = problem_.cross_entropy();
    Block<Accumulate> losses(problem_.rows());
    p.losses = losses.data();
    run(table_.cross_entropy_forward, p, whole(), false);
    report_.expect(losses.band_untouched(), "wrote past the losses");
    return losses;
  }

  Outputs forward(bool with_gradient, const Execution& execution, bool keeps) const {
    CrossEntropyParams p = problem_.cross_entropy();
    Outputs outputs(problem_.shape(), gradient_strides());
    p.losses = outputs.losses.data();
    p.statistics = outputs.statistics.data();
    if (with_gradient) {
      p.gradient = outputs.gradient.block.data();
      p.gradient_strides = outputs.gradient.strides;
    }
    run(table_.cross_entropy_forward, p, execution, keeps);
    report_.expect(outputs.edges_untouched(), "forward wrote outside its outputs");
    return outputs;
  }

  Tensor<Storage> backward(const Block<Accumulate>& statistics, const Execution& execution,
                           bool in_place) const {
    CrossEntropyParams p = problem_.cross_entropy();
    Block<Accumulate> own_statistics = statistics;
    Tensor<Storage> gradient =
        in_place ? problem_.logits : Tensor<Storage>(problem_.shape(), gradient_strides());
    p.statistics = own_statistics.data();
    p.gradient = gradient.block.data();
    p.gradient_strides = gradient.strides;
    if (in_place) p.logits = p.gradient;
    run(table_.cross_entropy_backward, p, execution, false);
    report_.expect(gradient.padding_untouched(), "backward wrote outside its gradient");
    report_.expect(same_numbers(own_statistics, statistics), "backward wrote to the statistics");
    return gradient;
  }

  void run(const Kernel<CrossEntropyParams>& kernel, const CrossEntropyParams& p,
           const Execution& execution, bool keeps) const {
    const bool inside = execution.run<Accumulate>(kernel, p, keeps);
    report_.expect(inside, "%s: wrote past the workspace", execution.name);
  }

  void check_forward(const Outputs& outputs) const {
    check_losses(outputs.losses);
    check_statistics(outputs.statistics);
    check_gradient("forward gradient", outputs.gradient);
  }

  void check_splits(const char* what, const Outputs& outputs, bool keeps) const {
    for (const Execution& split : splits(problem_.shape(), problem_.logits.strides)) {
      const Outputs other = forward(true, split, keeps);
      report_.expect(same_numbers(outputs.losses, other.losses) &&
                         same_numbers(outputs.statistics, other.statistics) &&
                         same_numbers(outputs.gradient.block, other.gradient.block),
                     "%s: %s changes the bits", what, split.name);
    }
  }

  void expect_same(const char* what, const Tensor<Storage>& a, const Tensor<Storage>& b) const {
    bool same = true;
    for (int64_t row = 0; row < problem_.rows(); ++row) {
      for (int64_t j = 0; j < problem_.classes(); ++j) {
        same = same && same_number(a.at(row, j), b.at(row, j));
      }
    }
    report_.expect(same, "backward: %s changes the bits", what);
  }

  void check_losses(const Block<Accumulate>& losses) const {
    for (int64_t i = 0; i < problem_.rows(); ++i) {
      const long double want = reference_.rows[i].loss;
      report_.expect_close(losses[i], want, B::sum(want), "loss", i, 0);
    }
  }

  // What they are in an ignored row, or besides NaN in a poisoned one, is the kernels' own affair.
  void check_statistics(const Block<Accumulate>& statistics) const {
    const int64_t rows = problem_.rows();
    for (int64_t i = 0; i < rows; ++i) {
      if (problem_.ignored(i)) continue;
      const auto& want = reference_.rows[i];
      report_.expect_close(statistics[kAlphaRest * rows + i], want.alpha_rest,
                           B::sum(want.alpha_rest), "alpha rest", i, 0);
      if (std::isnan(want.alpha_rest)) continue;
      report_.expect(statistics[kMaximum * rows + i] == want.maximum, "wrong maximum in row %lld",
                     static_cast<long long>(i));
      report_.expect_close(statistics[kTargetMass * rows + i], want.mass, B::sum(want.mass),
                           "target mass", i, 0);
    }
  }

  void check_gradient(const char* what, const Tensor<Storage>& gradient) const {
    for (int64_t i = 0; i < problem_.rows(); ++i) {
      const auto& row = reference_.rows[i];
      const long double scale = problem_.scale(i);
      const bool ignored = problem_.ignored(i);
      for (int64_t j = 0; j < problem_.classes(); ++j) {
        const long double want = ignored ? 0 : scale * row.gradient[j];
        const bool masked_out = widen(problem_.logits.at(i, j)) == -kInfinity;
        const bool exact = ignored || (masked_out && want == 0);
        report_.expect_close(widen(gradient.at(i, j)), want,
                             exact ? 0 : B::gradient(want, std::fabs(scale) * row.largest), what, i,
                             j);
      }
    }
  }

  const Problem<Storage>& problem_;
  const CrossEntropyReference& reference_;
  Report& report_;
  const KernelTable& table_;
};

}  // namespace powergrad::test

// Checks one log-softmax problem on one machine.
#pragma once

#include "problem.h"
#include "report.h"
#include "running.h"

namespace powergrad::test {

template <class Storage>
struct LogSoftmaxReference {
  using B = Bounds<Storage>;
  struct OfRow {
    bool is_nan;
    long double maximum;
    Expected alpha_sumexp_m1;
    std::vector<Expected> output;
    std::vector<Expected> gradient;
  };
  std::vector<OfRow> rows;

  LogSoftmaxReference(const Problem<Storage>& problem,
                      const std::vector<SoftmaxReference>& softmax_rows) {
    for (int64_t i = 0; i < problem.rows(); ++i) {
      const SoftmaxReference& softmax = softmax_rows[i];
      OfRow row{softmax.is_nan, softmax.maximum, B::sum(softmax.alpha_sumexp_m1), {}, {}};
      for (const long double z : problem.logits_row(i)) {
        row.output.push_back(B::log_probability(softmax.log_probability(z)));
      }
      // dz = g - p' sum(g): minus cross-entropy's with g for the weighted target.
      Row gradient = softmax.gradient(problem.log_softmax_grad_output_row(i));
      for (long double& g : gradient) g = -g;
      row.gradient = B::gradient(gradient);
      rows.push_back(std::move(row));
    }
  }
};

template <class Storage>
struct LogSoftmaxOutputs {
  Tensor<Storage> output;
  Block<AccumulateOf<Storage>> statistics;
  Tensor<Storage> gradient;

  LogSoftmaxOutputs(const Shape& shape, const Strides& output_strides,
                    const Strides& gradient_strides)
      : output(shape, output_strides),
        statistics(kLogSoftmaxStatistics * shape.rows()),
        gradient(shape, gradient_strides) {}
  bool edges_untouched() const {
    return output.padding_untouched() && statistics.band_untouched() &&
           gradient.padding_untouched();
  }
  bool same_as(const LogSoftmaxOutputs& other) const {
    return same_numbers(output.block, other.output.block) &&
           same_numbers(statistics, other.statistics) &&
           same_numbers(gradient.block, other.gradient.block);
  }
};

// Runs the kernels of one machine on a problem.
template <class Storage>
class LogSoftmaxRunner {
 public:
  using Accumulate = AccumulateOf<Storage>;
  using Outputs = LogSoftmaxOutputs<Storage>;

  LogSoftmaxRunner(const Problem<Storage>& problem, Report& report)
      : problem_(problem), report_(report) {
    report.enter("log-softmax " + problem.describe());
  }

  Outputs forward_and_backward(const Execution& execution, bool has_scratch) const {
    LogSoftmaxParams p = problem_.log_softmax();
    Outputs outputs(problem_.shape(), problem_.strides(2), problem_.strides(1));
    p.output = outputs.output.block.data();
    p.output_strides = outputs.output.strides;
    p.statistics = outputs.statistics.data();
    run(run_log_softmax_forward, p, execution, has_scratch);
    p.gradient = outputs.gradient.block.data();
    p.gradient_strides = outputs.gradient.strides;
    run(run_log_softmax_backward, p, execution, has_scratch);
    report_.expect(outputs.edges_untouched(), "wrote outside its outputs");
    return outputs;
  }

  Tensor<Storage> forward_without_statistics(bool has_scratch) const {
    LogSoftmaxParams p = problem_.log_softmax();
    Tensor<Storage> output(problem_.shape(), problem_.strides(0));
    p.output = output.block.data();
    p.output_strides = output.strides;
    run(run_log_softmax_forward, p, whole(), has_scratch);
    report_.expect(output.padding_untouched(), "wrote outside the output");
    return output;
  }

 private:
  template <class Kernel>
  void run(const Kernel& kernel, const LogSoftmaxParams& p, const Execution& execution,
           bool has_scratch) const {
    const std::string wrong = kernel(report_.machine(), p, execution, has_scratch);
    report_.expect(wrong.empty(), wrong);
  }

  const Problem<Storage>& problem_;
  Report& report_;
};

template <class Storage>
class LogSoftmaxCheck {
 public:
  using Accumulate = AccumulateOf<Storage>;
  using Outputs = LogSoftmaxOutputs<Storage>;

  LogSoftmaxCheck(const Problem<Storage>& problem, const LogSoftmaxReference<Storage>& reference,
                  Report& report)
      : problem_(problem), reference_(reference), report_(report), runner_(problem, report) {}

  void check() const {
    check(false);
    if (kScratchIsOptional) check(true);
  }

 private:
  void check(bool has_scratch) const {
    check_output(runner_.forward_without_statistics(has_scratch));
    const Outputs outputs = runner_.forward_and_backward(whole(), has_scratch);
    check_output(outputs.output);
    check_statistics(outputs.statistics);
    check_gradient(outputs.gradient);
    for (const Execution& split : splits(problem_.shape(), problem_.logits.strides)) {
      report_.expect(outputs.same_as(runner_.forward_and_backward(split, has_scratch)),
                     std::string("other bits from ") + split.name);
    }
  }

  void check_output(const Tensor<Storage>& output) const {
    for (int64_t i = 0; i < problem_.rows(); ++i) {
      for (int64_t j = 0; j < problem_.classes(); ++j) {
        report_.expect_close(widen(output.at(i, j)), reference_.rows[i].output[j], "output", i, j);
      }
    }
  }

  void check_statistics(const Block<Accumulate>& statistics) const {
    const int64_t rows = problem_.rows();
    for (int64_t i = 0; i < rows; ++i) {
      const auto& row = reference_.rows[i];
      report_.expect_close(statistics[kAlphaSumexpM1 * rows + i], row.alpha_sumexp_m1,
                           "alpha_sumexp_m1", i, 0);
      if (row.is_nan) continue;
      report_.expect_close(statistics[kMaximum * rows + i], {row.maximum, 0}, "maximum", i, 0);
    }
  }

  void check_gradient(const Tensor<Storage>& gradient) const {
    for (int64_t i = 0; i < problem_.rows(); ++i) {
      for (int64_t j = 0; j < problem_.classes(); ++j) {
        report_.expect_close(widen(gradient.at(i, j)), reference_.rows[i].gradient[j], "gradient",
                             i, j);
      }
    }
  }

  const Problem<Storage>& problem_;
  const LogSoftmaxReference<Storage>& reference_;
  Report& report_;
  const LogSoftmaxRunner<Storage> runner_;
};

}  // namespace powergrad::test

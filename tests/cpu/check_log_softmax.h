// One log-softmax problem on one instruction set.
#pragma once

#include "problem.h"
#include "report.h"
#include "running.h"

namespace powergrad::test {

struct LogSoftmaxReference {
  struct OfRow {
    long double maximum;
    long double alpha_rest;
    Row output;
    Row gradient;
    long double largest;
  };
  std::vector<OfRow> rows;

  template <class Storage>
  explicit LogSoftmaxReference(const Problem<Storage>& problem) {
    for (int64_t i = 0; i < problem.rows(); ++i) {
      const Row z = problem.logits_row(i);
      const SoftmaxReference softmax(z, problem.options.alpha);
      OfRow row{softmax.maximum, softmax.alpha_rest, {}, {}, 0};
      for (const long double x : z) row.output.push_back(softmax.log_probability(x));
      // dz = g - p' sum(g): the opposite of cross-entropy's with g for the target's masses.
      row.gradient = softmax.gradient(problem.upstream_row(i));
      for (long double& g : row.gradient) g = -g;
      row.largest = largest_magnitude(row.gradient);
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

template <class Storage>
class LogSoftmaxCheck {
 public:
  using Accumulate = AccumulateOf<Storage>;
  using Outputs = LogSoftmaxOutputs<Storage>;
  using B = Bounds<Storage>;

  LogSoftmaxCheck(const Problem<Storage>& problem, const LogSoftmaxReference& reference,
                  Report& report)
      : problem_(problem),
        reference_(reference),
        report_(report),
        table_(report.set().tables[static_cast<int>(Traits<Storage>::dtype)]) {
    report.enter("log-softmax " + problem.describe());
  }

  Outputs check() const {
    const Outputs outputs = forward_and_backward(whole());
    check_output(outputs.output);
    check_statistics(outputs.statistics);
    check_gradient(outputs.gradient);
    for (const Execution& split : splits(problem_.shape(), problem_.logits.strides)) {
      report_.expect(outputs.same_as(forward_and_backward(split)), "%s: other bits", split.name);
    }
    check_output(forward_without_statistics());
    return outputs;
  }

 private:
  Outputs forward_and_backward(const Execution& execution) const {
    LogSoftmaxParams p = problem_.log_softmax();
    Outputs outputs(problem_.shape(), problem_.strides(2), problem_.strides(1));
    p.output = outputs.output.block.data();
    p.output_strides = outputs.output.strides;
    p.statistics = outputs.statistics.data();
    run(table_.log_softmax_forward, p, execution);
    p.gradient = outputs.gradient.block.data();
    p.gradient_strides = outputs.gradient.strides;
    run(table_.log_softmax_backward, p, execution);
    report_.expect(outputs.edges_untouched(), "wrote outside its outputs");
    return outputs;
  }

  Tensor<Storage> forward_without_statistics() const {
    LogSoftmaxParams p = problem_.log_softmax();
    Tensor<Storage> output(problem_.shape(), problem_.strides(0));
    p.output = output.block.data();
    p.output_strides = output.strides;
    run(table_.log_softmax_forward, p, whole());
    report_.expect(output.padding_untouched(), "wrote outside the output");
    return output;
  }

  void run(const Kernel<LogSoftmaxParams>& kernel, const LogSoftmaxParams& p,
           const Execution& execution) const {
    const bool inside = execution.run<Accumulate>(kernel, p, false);
    report_.expect(inside, "%s: wrote past the workspace", execution.name);
  }

  void check_output(const Tensor<Storage>& output) const {
    for (int64_t i = 0; i < problem_.rows(); ++i) {
      for (int64_t j = 0; j < problem_.classes(); ++j) {
        const long double want = reference_.rows[i].output[j];
        report_.expect_close(widen(output.at(i, j)), want, B::log_probability(want), "output", i, j);
      }
    }
  }

  void check_statistics(const Block<Accumulate>& statistics) const {
    const int64_t rows = problem_.rows();
    for (int64_t i = 0; i < rows; ++i) {
      const auto& want = reference_.rows[i];
      report_.expect_close(statistics[kAlphaRest * rows + i], want.alpha_rest,
                           B::sum(want.alpha_rest), "alpha rest", i, 0);
      report_.expect(std::isnan(want.alpha_rest) || statistics[kMaximum * rows + i] == want.maximum,
                     "wrong maximum in row %lld", static_cast<long long>(i));
    }
  }

  void check_gradient(const Tensor<Storage>& gradient) const {
    for (int64_t i = 0; i < problem_.rows(); ++i) {
      const auto& row = reference_.rows[i];
      for (int64_t j = 0; j < problem_.classes(); ++j) {
        report_.expect_close(widen(gradient.at(i, j)), row.gradient[j],
                             B::gradient(row.gradient[j], row.largest), "gradient", i, j);
      }
    }
  }

  const Problem<Storage>& problem_;
  const LogSoftmaxReference& reference_;
  Report& report_;
  const KernelTable& table_;
};

}  // namespace powergrad::test

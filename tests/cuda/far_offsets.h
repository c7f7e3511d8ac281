// Rows and classes that begin more than 2^32 elements after the first one.
#pragma once

#include <sys/mman.h>

#include <cstdlib>

#include "ordinary_problems.h"

namespace powergrad::test {

// Address space that costs memory only where it is touched; full of zeros.
template <class T>
class Expanse {
 public:
  explicit Expanse(int64_t count) : bytes_(count * sizeof(T)) {
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    data_ = static_cast<T*>(memory);
  }
  ~Expanse() { munmap(data_, bytes_); }
  Expanse(const Expanse&) = delete;
  Expanse& operator=(const Expanse&) = delete;

  T* data() const { return data_; }

 private:
  std::size_t bytes_;
  T* data_;
};

// A problem, and its last rows as those of a tensor in which they lie far away. The same bits.
class FarCheck {
 public:
  FarCheck(const Problem<float>& problem, const Shape& shape, const Strides& strides)
      : problem_(problem),
        shape_(shape),
        strides_(strides),
        execution_{"far away", 0},
        count_((shape.outer - 1) * strides.outer + (shape.classes - 1) * strides.classes +
               shape.inner),
        logits_(count_),
        gradient_(count_),
        output_(count_),
        far_grad_output_(count_),
        targets_(shape.rows()),
        losses_(shape.rows()),
        statistics_(kStatistics * shape.rows()) {
    for (int64_t row = 0; row < problem.rows(); ++row) {
      targets_.data()[far_row(row)] = problem.target(row);
      for (int64_t j = 0; j < problem.classes(); ++j) {
        at(logits_, row, j) = problem.logits.at(row, j);
        at(far_grad_output_, row, j) = problem.grad_output.at(row, j);
      }
    }
  }

  void check(Report& report) {
    const CrossEntropyRunner<float> loss(problem_, report);
    const auto near_forward = loss.forward(true, whole(), false);
    const auto near_backward = loss.backward(near_forward, whole(), false);
    const auto near_log_softmax =
        LogSoftmaxRunner<float>(problem_, report).forward_and_backward(whole(), false);
    report.enter("far away: " + problem_.describe());

    CrossEntropyParams p = problem_.cross_entropy();
    p.shape = shape_;
    p.target_index = targets_.data();
    p.logits = logits_.data();
    p.logits_strides = p.gradient_strides = strides_;
    p.losses = losses_.data();
    p.statistics = statistics_.data();
    p.gradient = gradient_.data();
    expect_run(run_cross_entropy_forward(report.machine(), p, execution_, false), report);
    for (int64_t row = 0; row < problem_.rows(); ++row) {
      report.expect(losses_.data()[far_row(row)] == near_forward.losses[row], "another loss");
    }
    expect_same(gradient_, near_forward.gradient, "forward", report);
    expect_run(run_cross_entropy_backward(report.machine(), p, execution_, false), report);
    expect_same(gradient_, near_backward, "backward", report);

    LogSoftmaxParams q = problem_.log_softmax();
    q.shape = shape_;
    q.logits = logits_.data();
    q.grad_output = far_grad_output_.data();
    q.output = output_.data();
    q.gradient = gradient_.data();
    q.statistics = statistics_.data();
    q.logits_strides = q.grad_output_strides = q.output_strides = q.gradient_strides = strides_;
    expect_run(run_log_softmax_forward(report.machine(), q, execution_, false), report);
    expect_same(output_, near_log_softmax.output, "log-softmax forward", report);
    expect_run(run_log_softmax_backward(report.machine(), q, execution_, false), report);
    expect_same(gradient_, near_log_softmax.gradient, "log-softmax backward", report);
  }

 private:
  int64_t far_row(int64_t row) const { return shape_.rows() - problem_.rows() + row; }
  float& at(const Expanse<float>& tensor, int64_t row, int64_t column) const {
    const int64_t far = far_row(row);
    return tensor.data()[far / shape_.inner * strides_.outer + far % shape_.inner * strides_.inner +
                         column * strides_.classes];
  }
  static void expect_run(const std::string& wrong, Report& report) {
    report.expect(wrong.empty(), wrong);
  }
  void expect_same(const Expanse<float>& far, const Tensor<float>& near, const char* what,
                   Report& report) const {
    bool same = true;
    for (int64_t row = 0; row < problem_.rows(); ++row) {
      for (int64_t j = 0; j < problem_.classes(); ++j) {
        same = same && same_number(at(far, row, j), near.at(row, j));
      }
    }
    report.expect(same, std::string(what) + ": other bits");
  }

  const Problem<float>& problem_;
  Shape shape_;
  Strides strides_;
  Execution execution_;
  int64_t count_;
  Expanse<float> logits_;
  Expanse<float> gradient_;
  Expanse<float> output_;
  Expanse<float> far_grad_output_;
  Expanse<int64_t> targets_;
  Expanse<float> losses_;
  Expanse<float> statistics_;
};

inline void check_far_offsets(Reports& reports) {
  Random random(23);
  // Rows far from each other.
  Options rows;
  rows.shape = {3, 5000, 1};
  rows.alpha = 0.7;
  const Problem<float> lines(rows, random, 0.0, 3.0);
  // Classes far from each other, and all rows beside each other.
  Options classes;
  classes.shape = {1, 70, 40};
  classes.arrangement = Arrangement::inner;
  classes.alpha = 0.7;
  const Problem<float> apart(classes, random, 0.0, 3.0);
  for (Report& report : reports) {
    FarCheck(lines, rows.shape, {int64_t{1} << 31, 1, 0}).check(report);
    FarCheck(apart, classes.shape, {0, 1 << 26, 1}).check(report);
  }
}

}  // namespace powergrad::test

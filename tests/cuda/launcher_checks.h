// What the launchers promise besides the equations: sums over rows, an alpha on the device, a
// speculative grad_output, and an assertion for targets that are out of range.
#pragma once

#include "ordinary_problems.h"

namespace powergrad::test {

// The mean's divisor and the reduced loss, of one block and of several.
template <class Storage>
void check_row_sums(Reports& reports) {
  using Accumulate = AccumulateOf<Storage>;
  Random random = random_for<Storage>(20);
  for (const int64_t rows : {int64_t{1}, int64_t{300}, int64_t{301}, int64_t{20000}}) {
    Options options = random_options(random);
    options.row_weighted = rows % 2 == 0;
    options.shape = {rows, 3, 1};
    const Problem<Storage> problem(options, random, 0.0, 3.0);
    Block<Accumulate> losses(rows);
    long double expected_loss = 0;
    long double expected_weight = 0;
    for (int64_t row = 0; row < rows; ++row) {
      losses[row] = static_cast<Accumulate>(random.uniform());
      expected_loss += losses[row];
      if (problem.ignored(row)) continue;
      const long double weight =
          !options.by_index() || !options.weighted
              ? 1.0L
              : static_cast<long double>(problem.weight[problem.target(row)]);
      expected_weight += weight * problem.row_weight_of(row);
    }
    CrossEntropyParams p = problem.cross_entropy();
    p.losses = losses.data();
    for (Report& report : reports) {
      report.enter("sums over rows, " + problem.describe());
      configure(report.machine(), whole());
      Block<double> weight(1);
      Block<double> partials(kSumPartials);
      Block<Accumulate> sum(1);
      Block<Accumulate> mean(1);
      const bool launched =
          launch_total_weight(p, weight.data(), nullptr, partials.data(), nullptr) == cudaSuccess &&
          launch_reduce_losses(p, nullptr, sum.data(), partials.data(), nullptr) == cudaSuccess &&
          launch_reduce_losses(p, weight.data(), mean.data(), partials.data(), nullptr) ==
              cudaSuccess;
      report.expect(launched, host_cuda::failure());
      const long double tolerance = 2 * std::numeric_limits<Accumulate>::epsilon();
      const auto near = [&](long double value) {
        return Expected{value, tolerance * std::fabs(value)};
      };
      report.expect_close(weight[0], {expected_weight, 1e-13L * expected_weight}, "total weight", 0,
                          0);
      report.expect_close(sum[0], near(expected_loss), "sum", 0, 0);
      report.expect_close(mean[0], near(expected_loss / expected_weight), "mean", 0, 0);
    }
  }
}

// The kernel of the divisor sees every row weight.
template <class Storage>
void check_row_weight_assertions(Reports& reports) {
  Random random = random_for<Storage>(26);
  for (const double weight : {-0.5, static_cast<double>(NAN)}) {
    for (const TargetKind target : {TargetKind::index64, TargetKind::probabilities}) {
      Options options;
      options.shape = {4, 5, 1};
      options.target = target;
      options.row_weighted = true;
      Problem<Storage> problem(options, random, 0.0, 3.0);
      problem.row_weight[3] = static_cast<AccumulateOf<Storage>>(weight);
      Block<double> sums(kSumPartials + 1);
      for (Report& report : reports) {
        report.enter("a row weight of " + std::to_string(weight));
        configure(report.machine(), whole());
        const cudaError_t error = launch_total_weight(problem.cross_entropy(), sums.data(), nullptr,
                                                      sums.data() + 1, nullptr);
        report.expect(
            error == cudaErrorAssert &&
                host_cuda::failure().find("a row_weight is negative") != std::string::npos,
            "expected an assertion, got: " + host_cuda::failure());
      }
    }
  }
}

// The same bits whether the host or only the device knows that alpha is 0.7.
template <class Storage>
void check_alpha_on_device(Reports& reports) {
  const Execution on_device{"alpha on the device", 0, true};
  Random random = random_for<Storage>(21);
  for (const Arrangement arrangement : arrangements(99, 0)) {
    Options options = random_options(random);
    options.alpha = 0.7;
    options.arrangement = arrangement;
    options.shape = shape_of(arrangement, 99, 1);
    const Problem<Storage> problem(options, random, 0.0, 3.0);
    for (Report& report : reports) {
      const CrossEntropyRunner<Storage> loss(problem, report);
      const auto known = loss.forward(true, whole(), false);
      const auto unknown = loss.forward(true, on_device, false);
      report.expect(same_numbers(known.losses, unknown.losses) &&
                        same_numbers(known.statistics, unknown.statistics) &&
                        same_numbers(known.gradient.block, unknown.gradient.block),
                    "forward: other bits from an alpha on the device");
      const auto backward = [&](const Execution& execution) {
        return loss.backward(known, execution, false);
      };
      report.expect(same_numbers(backward(whole()).block, backward(on_device).block),
                    "backward: other bits from an alpha on the device");
      const LogSoftmaxRunner<Storage> log_softmax(problem, report);
      report.expect(log_softmax.forward_and_backward(whole(), false)
                        .same_as(log_softmax.forward_and_backward(on_device, false)),
                    "log-softmax: other bits from an alpha on the device");
    }
  }
}

// Nothing checks an alpha on the device before the kernels run: a wrong one makes gradients NaN.
template <class Storage>
void check_wrong_alpha_on_device(Reports& reports) {
  const Execution on_device{"a wrong alpha on the device", 0, true};
  Random random = random_for<Storage>(24);
  for (const double alpha : {0.0, -0.3, static_cast<double>(NAN)}) {
    Options options;
    options.shape = {4, 33, 1};
    Problem<Storage> problem(options, random, 0.0, 3.0);
    problem.options.alpha = alpha;
    for (Report& report : reports) {
      const CrossEntropyRunner<Storage> runner(problem, report);
      const auto outputs = runner.forward(true, on_device, false);
      for (int64_t row = 0; row < problem.rows(); ++row) {
        const bool is_nan = std::isnan(widen(outputs.gradient.at(row, 7)));
        report.expect(is_nan != problem.ignored(row), "a gradient from a wrong alpha");
        report.expect(!std::isnan(outputs.losses[row]), "the loss does not depend on alpha");
      }
    }
  }
}

// Backward leaves a gradient for a speculative grad_output as it is if that one comes; for another
// one it writes the bits of an ordinary backward.
template <class Storage>
void check_speculation(Reports& reports) {
  using Accumulate = AccumulateOf<Storage>;
  Random random = random_for<Storage>(25);
  for (const Arrangement arrangement : arrangements(99, 0)) {
    for (const int64_t classes : {int64_t{5}, int64_t{99}, int64_t{4099}}) {
      Options options = random_options(random);
      options.grad_output = GradOutput::scalar;
      options.arrangement = arrangement;
      options.shape = shape_of(arrangement, classes, 1);
      options.shape.outer *= is_small(classes) ? 64 : 3;  // several row groups for each block
      Problem<Storage> problem(options, random, 0.0, 3.0);
      const auto actual = static_cast<Accumulate>(0.37);
      for (Report& report : reports) {
        problem.row_grad_output[0] = 1;
        const CrossEntropyRunner<Storage> runner(problem, report);
        auto outputs = runner.forward(true, whole(), false);
        problem.row_grad_output[0] = actual;
        const auto expected = runner.backward(outputs, whole(), false);
        report.expect(
            same_numbers(runner.forward(true, whole(), false).gradient.block, expected.block),
            "forward and backward: other bits for the same grad_output");
        // The kernel of the divisor hands the last grad_output to forward.
        Accumulate speculative = -1;
        Accumulate last = 1;
        CrossEntropyParams p = problem.cross_entropy();
        Block<double> sums(kSumPartials + 1);
        p.next_speculation = &last;
        Machine machine = report.machine();
        machine.device.multiprocessors = 1;  // so that blocks loop over row groups
        configure(machine, whole());
        report.expect(launch_total_weight(p, sums.data(), &speculative, sums.data() + 1, nullptr) ==
                              cudaSuccess &&
                          speculative == 1 && last == 1,
                      "nothing to speculate on");

        p.grad_output = problem.row_grad_output.data();
        p.speculative_grad_output = &speculative;
        p.statistics = outputs.statistics.data();
        outputs.rows.fill(p);  // z-loss needs the sums, too
        p.gradient = outputs.gradient.block.data();
        p.gradient_strides = outputs.gradient.strides;
        report.expect(launch_cross_entropy_backward(p, nullptr) == cudaSuccess,
                      host_cuda::failure());
        report.expect(same_numbers(outputs.gradient.block, expected.block) && last == actual,
                      "not validated against another grad_output");

        outputs.gradient.at(0, 0) = narrow<Storage>(7.0);
        const auto untouched = outputs.gradient.block;
        speculative = actual;
        last = 1;
        report.expect(launch_cross_entropy_backward(p, nullptr) == cudaSuccess,
                      host_cuda::failure());
        report.expect(same_numbers(outputs.gradient.block, untouched) && last == 1,
                      "a valid gradient was written again");
      }
    }
  }
}

// Every launcher that reads targets asserts that they are in range before it indexes with them.
template <class Storage>
void check_target_assertions(Reports& reports) {
  Random random = random_for<Storage>(22);
  for (const int64_t target : {int64_t{-1}, int64_t{5}, int64_t{1} << 40}) {
    Options options;
    options.shape = {4, 5, 1};
    options.weighted = true;
    Problem<Storage> problem(options, random, 0.0, 3.0);
    problem.set_target(2, target);
    CrossEntropyParams p = problem.cross_entropy();
    Block<AccumulateOf<Storage>> numbers((kStatistics + 1) * 4);
    Tensor<Storage> gradient(problem.shape(), problem.strides(0));
    Block<double> sums(kSumPartials + 1);
    p.losses = numbers.data();
    p.statistics = numbers.data() + 4;
    p.gradient = gradient.block.data();
    p.gradient_strides = gradient.strides;
    for (Report& report : reports) {
      report.enter("target " + std::to_string(target) + " of 5 classes");
      const auto expect_assertion = [&](cudaError_t error) {
        report.expect(error == cudaErrorAssert &&
                          host_cuda::failure().find("a target is not in") != std::string::npos,
                      "expected an assertion, got: " + host_cuda::failure());
      };
      configure(report.machine(), whole());
      expect_assertion(launch_total_weight(p, sums.data(), nullptr, sums.data() + 1, nullptr));
      expect_assertion(launch_cross_entropy_forward(p, nullptr));
      expect_assertion(launch_cross_entropy_backward(p, nullptr));
    }
  }
}

}  // namespace powergrad::test

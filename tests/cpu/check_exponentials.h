// The stated errors of the exponentials, for every exponent that a row of half precision can have
// and for four in each step of bfloat16 in float32. Gradients of classes without a target are
// p'_j W: an exponential over the kernel's own sum, rounded once or twice on the way.
#pragma once

#include "ordinary_problems.h"

namespace powergrad::test {

// What exponentials.h states: of a power that is `factors` of them, in units of the value.
inline long double full_error(int factors, long double exponent) {
  constexpr long double kEpsilon = 0x1p-23L;
  return (2 * factors + 1.8L * std::fabs(exponent)) * kEpsilon;
}
// What polynomial.h states.
inline constexpr long double kHalfError = 1.1e-4L;

// Exponents from -2^-20 to where exp(alpha t) is no normal number any more, out of order, so that
// no column block has remote ones only. The first class is the largest and the target.
template <class Storage>
std::vector<Storage> exponents(double alpha) {
  Random random(11);
  std::vector<Storage> result;
  const auto add = [&](long double t) {
    if (t >= 0x1p-20L && alpha * t <= 87.0) result.push_back(narrow<Storage>(-t));
  };
  for (int bits = 1; bits < 0x7f80; ++bits) {
    if constexpr (std::is_same_v<Storage, float>) {
      const long double t = widen(BFloat16{static_cast<uint16_t>(bits)});
      for (int i = 0; i < 4; ++i) add(t + random.uniform() * ulp<BFloat16>(t));
    } else {
      add(widen(Storage{static_cast<uint16_t>(bits)}));
    }
  }
  for (std::size_t i = result.size() - 1; i > 0; --i) {
    std::swap(result[i], result[random.below(static_cast<int64_t>(i))]);
  }
  result.insert(result.begin(), narrow<Storage>(0));
  return result;
}

template <class Storage>
class ExponentialsCheck {
 public:
  // The powered exponentials of forward are `factors` exponentials multiplied.
  ExponentialsCheck(double alpha, int factors)
      : factors_(factors), logits_(exponents<Storage>(alpha)), problem_(make(alpha)) {
    for (std::size_t j = 0; j < logits_.size(); ++j) problem_.logits.at(0, j) = logits_[j];
    problem_.set_target(0, 0);
  }

  void check(Report& report) const {
    const CrossEntropyRunner<Storage> runner(problem_, report);
    const auto forward = runner.forward(true, whole(), true);
    const long double sum = 1 + static_cast<long double>(forward.statistics[kAlphaSumexpM1]);
    const auto backward = runner.backward(forward, whole(), false);
    const double alpha = problem_.options.alpha;
    for (std::size_t j = 1; j < logits_.size(); ++j) {
      const long double exponent = alpha * widen(logits_[j]);
      const long double value = kScale * std::exp(exponent) / sum;
      // The sum as float, the quotient, the block's factor and the product.
      const long double roundings = 2 * 0x1p-23L;
      const long double stored = kIsFloat ? 0 : 0.5L * ulp<Storage>(value);
      const long double least = kScale * std::numeric_limits<float>::min();
      const auto expect = [&](const Tensor<Storage>& gradient, long double error,
                              const char* what) {
        const long double tolerance = (error + roundings) * value + 1.01L * stored + least;
        report.expect_close(widen(gradient.at(0, j)), {value, tolerance}, what, 0,
                            static_cast<int64_t>(j));
      };
      expect(forward.gradient, full_error(factors_, exponent), "a kept exponential");
      const long double again = kIsFloat ? full_error(1, exponent) : kHalfError;
      expect(backward, again, "an exponential computed again");
    }
  }

 private:
  static constexpr bool kIsFloat = std::is_same_v<Storage, float>;
  static constexpr double kScale = 0x1p13;  // float16 has few digits where a row's p' are

  Problem<Storage> make(double alpha) const {
    Options options;
    options.shape = {1, static_cast<int64_t>(logits_.size()), 1};
    options.alpha = alpha;
    options.total_weight = 1 / kScale;
    Random random(12);
    return Problem<Storage>(options, random, 0.0, 3.0);
  }

  int factors_;
  std::vector<Storage> logits_;
  Problem<Storage> problem_;
};

template <class Storage>
void check_exponentials(Reports& reports) {
  const auto check = [&](double alpha, int factors) {
    const ExponentialsCheck<Storage> problem(alpha, factors);
    for (Report& report : reports) problem.check(report);
  };
  check(1.0, 1);
  check(0.7, 1);
  check(0.3, 3);
}

}  // namespace powergrad::test

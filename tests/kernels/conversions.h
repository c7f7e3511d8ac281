// Loads and stores of half precision, tested by gradients without arithmetic: all logits but one
// are -infinity, so that p'_j W - target_j is exactly -target_j.
#pragma once

#include "ordinary_problems.h"

namespace powergrad::test {

template <class Storage>
class ConversionCheck {
 public:
  ConversionCheck(TargetKind target, int64_t classes) : problem_(make(target, classes)) {
    for (int64_t j = 0; j < classes; ++j) {
      problem_.logits.at(0, j) = narrow<Storage>(j == 0 ? 0 : -kInfinity);
    }
    problem_.set_one_hot(0, 0);
  }

  Problem<Storage>& problem() { return problem_; }

  // gradient_j is `value(j)`, negated and rounded once, or 0 of the same sign where such small
  // numbers are flushed.
  template <class Value>
  void check(const Value& value, Reports& reports) const {
    for (Report& report : reports) {
      const CrossEntropyRunner<Storage> runner(problem_, report);
      const auto gradient = runner.forward(true, whole(), false).gradient;
      const bool flushes = flushes_denormals(report.machine(), StorageTraits<Storage>::dtype);
      for (int64_t j = 1; j < problem_.classes(); ++j) {
        const long double exact = -value(j);
        const bool flushed = flushes && std::abs(exact) < std::ldexp(1.0L, Format<Storage>::kLeast);
        const long double expected = flushed ? 0 : widen(narrow<Storage>(exact));
        const long double converted = widen(gradient.at(0, j));
        report.expect_close(converted, {expected, 0}, "converted", 0, j);
        report.expect(std::signbit(converted) == std::signbit(exact), "a sign was kept");
      }
    }
  }

 private:
  static Problem<Storage> make(TargetKind target, int64_t classes) {
    Options options;
    options.shape = {1, classes, 1};
    options.target = target;
    Random random(6);
    return Problem<Storage>(options, random, 0.0, 3.0);
  }

  Problem<Storage> problem_;
};

// Every positive finite float16; every bfloat16 below 2^65, so that their sum stays finite.
template <class Half>
void check_half_loads(Reports& reports) {
  constexpr int kFinite = 0x7fff >> (Format<Half>::kDigits - 1) << (Format<Half>::kDigits - 1);
  constexpr int kCount = Format<Half>::kLeast < -100 ? 0x6000 : kFinite;
  ConversionCheck<Half> check(TargetKind::probabilities, kCount);
  Tensor<Half>& q = check.problem().probabilities;
  for (int bits = 1; bits < kCount; ++bits) q.at(0, bits) = {static_cast<uint16_t>(bits)};
  check.check([&](int64_t j) { return widen(q.at(0, j)); }, reports);
}

// Both sides of, and exactly on, the midpoints between neighbours: subnormal, even and odd, at a
// power of two, and where the format overflows.
template <class Half>
void check_half_stores(Reports& reports) {
  std::vector<float> values{0.0f};
  constexpr int kFraction = Format<Half>::kDigits - 1;
  constexpr int kLargest = (0x7fff >> kFraction << kFraction) - 1;
  for (const int bits :
       {0, 1, 2, 3, (1 << kFraction) - 1, 1 << kFraction, 0x3a7e, 0x3a7f, 0x3bff}) {
    const long double low = widen(Half{static_cast<uint16_t>(bits)});
    const float middle = static_cast<float>(low + ulp<Half>(low) / 2);
    for (const float value :
         {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, 1.0f), -middle}) {
      values.push_back(value);
    }
  }
  const long double largest = widen(Half{static_cast<uint16_t>(kLargest)});
  const float overflow = static_cast<float>(largest + ulp<Half>(largest) / 2);
  // One at a time: the sum of the targets has to stay finite.
  for (const float last : {std::nextafter(overflow, 0.0f), overflow}) {
    ConversionCheck<Half> check(TargetKind::wide_probabilities, values.size() + 1);
    for (std::size_t j = 1; j < values.size(); ++j) {
      check.problem().set_probability(0, j, values[j]);
    }
    check.problem().set_probability(0, values.size(), last);
    const auto& q = check.problem().wide_probabilities;
    check.check([&](int64_t j) { return widen(q.at(0, j)); }, reports);
  }
}

inline void check_conversions(Reports& reports) {
  check_half_loads<BFloat16>(reports);
  check_half_loads<Float16>(reports);
  check_half_stores<BFloat16>(reports);
  check_half_stores<Float16>(reports);
}

}  // namespace powergrad::test

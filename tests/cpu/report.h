// Counts what was checked on one instruction set and describes the first failures.
#pragma once

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <string>

#include "cpu/kernels.h"

namespace powergrad::test {

class Report {
 public:
  explicit Report(const InstructionSet& set) : set_(&set) {}

  const InstructionSet& set() const { return *set_; }
  int64_t failures() const { return failures_; }

  // Names the case that the next checks belong to.
  void enter(const std::string& context) { context_ = context; }

  __attribute__((format(printf, 3, 4))) void expect(bool holds, const char* format, ...) {
    ++checks_;
    if (holds) return;
    if (++failures_ > kDescribed) return;
    std::printf("%s: %s: ", set_->name, context_.c_str());
    va_list arguments;
    va_start(arguments, format);
    std::vprintf(format, arguments);
    va_end(arguments);
    std::printf("\n");
  }

  // |got - want| <= tolerance; NaN where NaN is wanted, the same infinity where that is.
  void expect_close(long double got, long double want, long double tolerance, const char* what,
                    int64_t row, int64_t column) {
    bool holds = got == want || (std::isnan(got) && std::isnan(want));
    if (!holds && std::isfinite(got) && std::isfinite(want)) {
      const long double share = std::fabs(got - want) / tolerance;
      worst_ = std::fmax(worst_, static_cast<double>(share));
      holds = share <= 1;
    }
    expect(holds, "%s[%lld, %lld] is %.9Lg, expected %.9Lg within %.3Lg", what,
           static_cast<long long>(row), static_cast<long long>(column), got, want, tolerance);
  }

  void summarize() const {
    std::printf("%s: %lld checks, %lld failures, largest error %.2f of its bound\n", set_->name,
                static_cast<long long>(checks_), static_cast<long long>(failures_), worst_);
  }

 private:
  static constexpr int64_t kDescribed = 20;
  const InstructionSet* set_;
  std::string context_;
  int64_t checks_ = 0;
  int64_t failures_ = 0;
  double worst_ = 0.0;
};

}  // namespace powergrad::test

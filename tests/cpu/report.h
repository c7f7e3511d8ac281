// Counts what was checked on one instruction set and describes the first failures.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <string>

#include "cpu/kernels.h"
#include "reference.h"

namespace powergrad::test {

class Report {
 public:
  explicit Report(const InstructionSet& set) : set_(&set) {}

  const InstructionSet& set() const { return *set_; }
  int64_t failures() const { return failures_; }

  // Names the case that the next checks belong to.
  void enter(const std::string& context) { context_ = context; }

  template <class... Arguments>
  void expect(bool holds, const char* format, Arguments... arguments) {
    ++checks_;
    if (!holds) fail(format, arguments...);
  }

  // Within the tolerance; NaN where NaN is expected, the same infinity where that is.
  void expect_close(long double got, const Expected& expected, const char* what, int64_t row,
                    int64_t column) {
    const long double error = std::fabs(got - expected.value);
    bool holds = got == expected.value || (std::isnan(got) && std::isnan(expected.value));
    if (!holds && std::isfinite(error)) {
      holds = error <= expected.tolerance;
      worst_ = std::fmax(worst_, static_cast<double>(error / expected.tolerance));
    }
    ++checks_;
    if (holds) return;
    fail("%s[%lld, %lld] is %.9Lg, expected %.9Lg within %.3Lg", what, static_cast<long long>(row),
         static_cast<long long>(column), got, expected.value, expected.tolerance);
  }

  void summarize() const {
    std::printf("%s: %lld checks, %lld failures, largest error %.2f of its bound\n", set_->name,
                static_cast<long long>(checks_), static_cast<long long>(failures_), worst_);
  }

 private:
  static constexpr int64_t kDescribed = 20;

  __attribute__((format(printf, 2, 3))) void fail(const char* format, ...) {
    if (++failures_ > kDescribed) return;
    std::printf("%s: %s: ", set_->name, context_.c_str());
    va_list arguments;
    va_start(arguments, format);
    std::vprintf(format, arguments);
    va_end(arguments);
    std::printf("\n");
  }

  const InstructionSet* set_;
  std::string context_;
  int64_t checks_ = 0;
  int64_t failures_ = 0;
  double worst_ = 0.0;
};

}  // namespace powergrad::test

// Counts the checks on one machine (running.h) and describes the first failures.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>

#include "reference.h"
#include "running.h"

namespace powergrad::test {

class Report {
 public:
  explicit Report(const Machine& machine) : machine_(&machine) {}

  const Machine& machine() const { return *machine_; }
  int64_t failures() const { return failures_; }

  // Names the case that the next checks belong to.
  void enter(const std::string& context) { context_ = context; }

  void expect(bool holds, const std::string& what) {
    ++checks_;
    if (!holds) fail(what);
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
    char text[160];
    std::snprintf(text, sizeof(text), "%s[%lld, %lld] is %.9Lg, expected %.9Lg within %.3Lg", what,
                  static_cast<long long>(row), static_cast<long long>(column), got, expected.value,
                  expected.tolerance);
    fail(text);
  }

  void summarize() const {
    std::printf("%s: %lld checks, %lld failures, largest error %.2f of its bound\n", machine_->name,
                static_cast<long long>(checks_), static_cast<long long>(failures_), worst_);
  }

 private:
  static constexpr int64_t kDescribed = 20;

  void fail(const std::string& what) {
    if (++failures_ > kDescribed) return;
    std::printf("%s: %s: %s\n", machine_->name, context_.c_str(), what.c_str());
  }

  const Machine* machine_;
  std::string context_;
  int64_t checks_ = 0;
  int64_t failures_ = 0;
  double worst_ = 0.0;
};

}  // namespace powergrad::test

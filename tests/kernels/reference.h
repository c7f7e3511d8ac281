// The equations of powergrad.h for one row, in long double.
#pragma once

#include <vector>

#include "numbers.h"
#include "running.h"

namespace powergrad::test {

using Row = std::vector<long double>;

struct SoftmaxReference {
  long double maximum;
  int64_t highest;          // the first class that has it
  long double entropy = 0;  // -sum_j p_j log p_j
  long double sumexp_m1 = 0;
  long double alpha_sumexp_m1 = 0;
  Row powered;  // exp(alpha (z - maximum))
  bool is_nan;  // a logit is NaN or +infinity, or all are -infinity

  SoftmaxReference(const Row& z, double alpha) : maximum(z[0]), highest(0), powered(z.size()) {
    bool has_nan = false;
    for (std::size_t j = 0; j < z.size(); ++j) {
      has_nan = has_nan || std::isnan(z[j]);
      if (z[j] > maximum) {
        maximum = z[j];
        highest = static_cast<int64_t>(j);
      }
    }
    is_nan = has_nan || std::isinf(maximum);
    if (is_nan) {
      sumexp_m1 = alpha_sumexp_m1 = entropy = kNaN;
      return;
    }
    for (std::size_t j = 0; j < z.size(); ++j) {
      const long double e = std::exp(z[j] - maximum);
      powered[j] = alpha == 1.0 ? e : std::exp(alpha * (z[j] - maximum));
      if (static_cast<int64_t>(j) == highest) continue;
      sumexp_m1 += e;
      alpha_sumexp_m1 += powered[j];
      if (e > 0) entropy += e * (maximum - z[j]);
    }
    entropy = std::log1p(sumexp_m1) + entropy / (1 + sumexp_m1);
  }

  long double log_probability(long double z) const { return (z - maximum) - std::log1p(sumexp_m1); }

  long double log_sum_of_exponentials() const { return maximum + std::log1p(sumexp_m1); }

  // p'_j (W + more_weight) - target_j with S = sum of powered, rearranged so that nothing cancels
  // where p'_j or target_j / W is close to 1:
  // (powered_j (W - target_j + more_weight) - target_j (S - powered_j)) / S.
  Row gradient(const Row& target, long double more_weight = 0) const {
    Row result(target.size(), kNaN);
    if (is_nan) return result;
    long double total = 0;
    for (const long double m : target) total += m;
    const long double sum = 1 + alpha_sumexp_m1;
    for (std::size_t j = 0; j < target.size(); ++j) {
      const bool is_highest = static_cast<int64_t>(j) == highest;
      const long double others = is_highest ? alpha_sumexp_m1 : sum - powered[j];
      result[j] = (powered[j] * (total - target[j] + more_weight) - target[j] * others) / sum;
    }
    return result;
  }
};

inline long double largest_magnitude(const Row& row) {
  long double largest = 0;
  for (const long double x : row) largest = std::fmax(largest, std::fabs(x));
  return largest;
}

// A number and the largest error that is allowed.
struct Expected {
  long double value;
  long double tolerance;
};

// The errors that kernels may have. Two ulp of the storage type: one for the store, one for
// roundings before it. Exponentials are computed in the accumulate type, where rounding the
// exponent t = alpha (z - maximum) alone can cost a relative error of |t| / 2 ulp, and all classes
// share the errors of the row's sums: hence a share of the row's largest gradient. It is about 34
// ulp of float; 45 ulp of double leave room for |t| = 120 (alpha = 2, confident rows). A loss is a
// sum of terms >= 0, so its error is relative; so are those of a log-probability and of an entropy,
// whose terms all have the same sign. A sum below the least normal number may be flushed to zero.
template <class Storage>
struct Bounds {
  using Accumulate = AccumulateOf<Storage>;
  static constexpr bool kDouble = std::is_same_v<Accumulate, double>;
  static constexpr long double kRelative = kDouble ? 1e-13L : 4e-6L;
  static constexpr long double kShareOfLargest = kDouble ? 1e-14L : 4e-6L;
  static constexpr long double kLeast = std::numeric_limits<Accumulate>::min();

  // Sums of nothing but exponentials of -25 and less have the rounding error of such exponents, for
  // which a machine may need a larger bound (running.h).
  static constexpr long double kRemote = 1e-11L;
  static long double remoteness(long double value) {
    return std::fabs(value) < kRemote ? kRemoteFactor : 1.0L;
  }
  static Expected sum(long double value) {
    return {value, kRelative * remoteness(value) * std::fabs(value) + kLeast};
  }
  // log(1 + r) plus a sum of -t exp(t). Exponentials that are flushed to zero still count there,
  // times their t.
  static Expected entropy(long double value, long double sumexp_m1) {
    return {value, kRelative * remoteness(sumexp_m1) * value + 1000 * kLeast};
  }
  static Expected log_probability(long double value) {
    return {value, sum(value).tolerance + 2 * ulp<Storage>(value)};
  }
  static std::vector<Expected> gradient(const Row& values) {
    const long double magnitude = largest_magnitude(values);
    const long double largest = remoteness(magnitude) * magnitude;
    std::vector<Expected> result;
    for (const long double value : values) {
      result.push_back({value, kShareOfLargest * largest + 2 * ulp<Storage>(value)});
    }
    return result;
  }
};

}  // namespace powergrad::test

// The four storage types as exact long doubles, their rounding steps, and repeatable random
// numbers. Conversions are written from the formats' definitions, not from the kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <type_traits>

#include "powergrad.h"

namespace powergrad::test {

inline constexpr long double kInfinity = std::numeric_limits<long double>::infinity();
inline constexpr long double kNaN = std::numeric_limits<long double>::quiet_NaN();

// Significant binary digits (the hidden one counts) and the exponent of the least normal number.
template <class Storage>
struct Format;
template <>
struct Format<float> {
  static constexpr int kDigits = 24, kLeast = -126;
};
template <>
struct Format<double> {
  static constexpr int kDigits = 53, kLeast = -1022;
};
template <>
struct Format<BFloat16> {
  static constexpr int kDigits = 8, kLeast = -126;
};
template <>
struct Format<Float16> {
  static constexpr int kDigits = 11, kLeast = -14;
};

template <class Storage>
struct Traits;
#define POWERGRAD_TEST_TRAITS(type_name, storage, accumulate) \
  template <>                                                 \
  struct Traits<storage> {                                    \
    using Accumulate = accumulate;                            \
    static constexpr DataType dtype = DataType::type_name;    \
    static constexpr const char* name = #type_name;           \
  };
POWERGRAD_FORALL_TYPES(POWERGRAD_TEST_TRAITS)
#undef POWERGRAD_TEST_TRAITS

template <class Storage>
using AccumulateOf = typename Traits<Storage>::Accumulate;

// The distance between neighbouring numbers of the format around x, subnormal ones included.
template <class Storage>
long double ulp(long double x) {
  using F = Format<Storage>;
  const int exponent = x == 0 ? F::kLeast : std::max(std::ilogb(x), F::kLeast);
  return std::ldexp(1.0L, exponent - (F::kDigits - 1));
}

inline long double widen(float x) { return x; }
inline long double widen(double x) { return x; }
template <class Half>
long double widen(Half x) {
  using F = Format<Half>;
  constexpr int kFraction = F::kDigits - 1;
  const int exponent = (x.bits & 0x7fff) >> kFraction;
  const int fraction = x.bits & ((1 << kFraction) - 1);
  const long double sign = (x.bits & 0x8000) != 0 ? -1.0L : 1.0L;
  if (exponent == 0x7fff >> kFraction) return fraction != 0 ? kNaN : sign * kInfinity;
  if (exponent == 0)
    return sign * std::ldexp(static_cast<long double>(fraction), F::kLeast - kFraction);
  return sign * std::ldexp(static_cast<long double>(fraction | 1 << kFraction),
                           exponent - 1 + F::kLeast - kFraction);
}

// Rounds to the nearest number of the format, ties to even.
template <class Storage>
Storage narrow(long double x) {
  if constexpr (std::is_floating_point_v<Storage>) {
    return static_cast<Storage>(x);
  } else {
    using F = Format<Storage>;
    constexpr int kFraction = F::kDigits - 1;
    constexpr long kInfinite = 0x7fff >> kFraction << kFraction;
    const long sign = std::signbit(x) ? 0x8000 : 0;
    long bits = kInfinite;
    if (std::isnan(x)) {
      bits = kInfinite | 1 << (kFraction - 1);
    } else if (std::isfinite(x)) {
      const long steps = std::lrint(std::fabs(x) / ulp<Storage>(x));
      const int exponent = x == 0 ? F::kLeast : std::max(std::ilogb(x), F::kLeast);
      // The hidden digit of a normal number, or the carry of rounding, adds one to the exponent.
      bits = std::min(kInfinite, (static_cast<long>(exponent - F::kLeast) << kFraction) + steps);
    }
    return {static_cast<uint16_t>(sign | bits)};
  }
}

// The engine's sequence is fixed by the standard; the library's distributions are not.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t below(int64_t n) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(n)); }
  bool one_in(int64_t n) { return below(n) == 0; }
  double uniform() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
  // Near enough: mean 0, variance 1.
  double normal() { return 1.7320508 * (uniform() + uniform() + uniform() + uniform() - 2.0); }

 private:
  std::mt19937_64 engine_;
};

}  // namespace powergrad::test

// Capped logits and their derivative, against their definitions.
#pragma once

#include "buffers.h"
#include "report.h"
#include "running.h"

namespace powergrad::test {

// What softcap.h states of tanh.
template <class Storage>
long double tanh_error() {
  constexpr bool kIsHalf = sizeof(Storage) == 2;
  return kIsHalf ? 1.1e-4L : 6 * std::numeric_limits<AccumulateOf<Storage>>::epsilon();
}

// Of every size, both sides of where the series ends, and the special ones.
template <class Storage>
std::vector<Storage> arguments_of_tanh(int64_t count) {
  std::vector<Storage> result;
  for (const long double x :
       {0.0L, -0.0L, 0.5L, -0.5L, 1e-6L, 88.0L, -2000.0L, kInfinity, -kInfinity, kNaN}) {
    result.push_back(narrow<Storage>(x));
  }
  Random random(21);
  while (static_cast<int64_t>(result.size()) < count) {
    const long double magnitude = std::ldexp(1.0L + random.uniform(), 5 - random.below(16));
    result.push_back(narrow<Storage>(random.one_in(2) ? magnitude : -magnitude));
  }
  result.resize(count);
  return result;
}

template <class Storage>
void check_softcap(Reports& reports, int64_t count, double softcap) {
  using Accumulate = AccumulateOf<Storage>;
  const auto arguments = arguments_of_tanh<Storage>(count);
  for (Report& report : reports) {
    const KernelTable& kernels = *report.machine().tables[static_cast<int>(Traits<Storage>::dtype)];
    report.enter(std::string("softcap, ") + Traits<Storage>::name);
    // Neither is aligned.
    Block<Storage> capped(count, 1), gradient(count, 3);
    std::copy(arguments.begin(), arguments.end(), capped.data());
    kernels.softcap(capped.data(), count, softcap);
    std::copy(arguments.rbegin(), arguments.rend(), gradient.data());
    kernels.softcap_backward(capped.data(), gradient.data(), count, softcap);
    report.expect(capped.band_untouched() && gradient.band_untouched(), "no other element");
    const long double epsilon = std::numeric_limits<Accumulate>::epsilon();
    for (int64_t i = 0; i < count; ++i) {
      const auto expect = [&](Storage got, long double exact, long double error, const char* what) {
        report.expect_close(widen(got), {exact, error + 0.51L * ulp<Storage>(exact)}, what, 0, i);
      };
      const long double value = softcap * std::tanh(widen(arguments[i]));
      expect(capped.data()[i], value, std::fabs(value) * (tanh_error<Storage>() + epsilon),
             "capped");
      const long double tanh = std::tanh(widen(arguments[i]));
      const long double grad_output = widen(arguments[count - 1 - i]);
      const long double slope = (1 - tanh) * (1 + tanh);
      // Of the tanh that is left of a capped logit; it is 1 where that is the cap as stored.
      const long double cap_error = std::fabs(widen(narrow<Storage>(softcap)) - softcap);
      const long double stored =
          tanh_error<Storage>() + (0.51L * ulp<Storage>(value) + cap_error) / softcap;
      const long double error = std::fabs(widen(arguments[i])) > 25 ? 0 : 2 * stored + 3 * epsilon;
      const long double exact = error == 0 && std::isfinite(grad_output) ? 0 : grad_output * slope;
      expect(gradient.data()[i], exact, std::fabs(grad_output) * error, "gradient");
    }
  }
}

template <class Storage>
void check_softcaps(Reports& reports) {
  for (const int64_t count : {0, 1, 15, 33, 4099}) check_softcap<Storage>(reports, count, 30.0);
  // A cap that the type does not have, rounded up and down.
  for (const double softcap : {0.3, 0.7, 1.7, 30.1}) check_softcap<Storage>(reports, 4099, softcap);
}

}  // namespace powergrad::test

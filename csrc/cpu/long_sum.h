// Sums of very many terms. Included inside the target region.
#pragma once

namespace powergrad {
namespace {

// Lane by lane: kRun terms at a time are added plainly, and these sums with compensation (Kahan).
// The error of a plain sum of thousands of terms grows with their number, most if they are equal.
//
// An aggregate, started by start(): GCC compiles an implicit constructor outside the target region,
// where vectors are passed differently.
template <class V>
struct LongSum {
  static constexpr int64_t kRun = 32;
  V run;
  V total;
  V lost;

  static LongSum start() {
    const V zero = V::broadcast(0);
    return {zero, zero, zero};
  }
  void add(V term) { run = run + term; }
  void close_run() {
    const V term = run - lost;
    const V next = total + term;
    const V error = (next - total) - term;
    lost = select(equal(error, error), error, V::broadcast(0));  // an infinite total stays infinite
    total = next;
    run = V::broadcast(0);
  }
};

}  // namespace
}  // namespace powergrad

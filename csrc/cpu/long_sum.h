// Sums of very many terms. Included inside the target region.
#pragma once

namespace powergrad {
namespace {

// Lane by lane: runs of kRun terms are added plainly, and the runs with compensation (Kahan). A
// plain chain of thousands of terms would drift, by most where all of them are equal.
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

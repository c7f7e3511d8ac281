// The CPU kernels against the equations of powergrad.h: `kernel_test [instruction set]`, every
// supported one without an argument. Returns 1 when a check fails, 2 for a bad argument.
#include "check_exponentials.h"
#include "check_softcap.h"
#include "conversions.h"
#include "ordinary_problems.h"
#include "special_values.h"
#include "target_places.h"

namespace powergrad::test {
namespace {

// Built by SIMDe, this program is there for one instruction set only.
#if defined(POWERGRAD_SIMDE)
constexpr const char* kDefault = "avx512";
#else
constexpr const char* kDefault = nullptr;
#endif

// Empty, with a message, when `name` is not to be had.
Reports reports_for(const char* name) {
  Reports reports;
  if (name == nullptr) {
    for (const InstructionSet& set : instruction_sets()) {
      if (set.supported()) {
        reports.emplace_back(set);
      } else {
        std::printf("%s: not supported here, not tested\n", set.name);
      }
    }
    return reports;
  }
  const InstructionSet* set = find_instruction_set(name);
  if (set == nullptr) {
    std::fprintf(stderr, "kernel_test: there is no instruction set named '%s'\n", name);
  } else if (!set->supported()) {
    std::fprintf(stderr, "kernel_test: this processor does not support %s\n", name);
  } else {
    reports.emplace_back(*set);
  }
  return reports;
}

template <class Storage>
void check_all(Reports& reports) {
  check_sizes<Storage>(reports);
  check_confident_rows<Storage>(reports);
  check_many_rows<Storage>(reports);
  check_few_classes<Storage>(reports);
  check_many_neighbours<Storage>(reports);
  check_far_rows<Storage>(reports);
  check_special_values<Storage>(reports);
  check_target_places<Storage>(reports);
  check_nothing_counted<Storage>(reports);
  check_softcaps<Storage>(reports);
}

int run(const char* name) {
  Reports reports = reports_for(name);
  if (reports.empty()) return 2;
#define POWERGRAD_CHECK_ALL(type_name, storage, accumulate) check_all<storage>(reports);
  POWERGRAD_FORALL_TYPES(POWERGRAD_CHECK_ALL)
#undef POWERGRAD_CHECK_ALL
  check_conversions(reports);
  check_exponentials<float>(reports);
  check_exponentials<BFloat16>(reports);
  check_exponentials<Float16>(reports);
  bool failed = false;
  for (const Report& report : reports) {
    report.summarize();
    failed = failed || report.failures() > 0;
  }
  return failed ? 1 : 0;
}

}  // namespace
}  // namespace powergrad::test

int main(int argument_count, char** arguments) {
  return powergrad::test::run(argument_count > 1 ? arguments[1] : powergrad::test::kDefault);
}

// The CUDA kernels, run by the host layer, against the equations of powergrad.h:
// `cuda_kernel_test [architecture]`, every machine without an argument. Returns 1 when a check
// fails, 2 for a bad argument.
#include <cstring>

#include "boundaries.h"
#include "conversions.h"
#include "far_offsets.h"
#include "launcher_checks.h"
#include "ordinary_problems.h"
#include "plan_checks.h"
#include "special_values.h"
#include "target_places.h"

namespace powergrad::test {
namespace {

template <class Storage>
void check_all(Reports& reports) {
  check_sizes<Storage>(reports);
  check_many_rows<Storage>(reports);
  check_few_classes<Storage>(reports);
  check_boundaries<Storage>(reports);
  check_confident_rows<Storage>(reports);
  check_far_rows<Storage>(reports);
  check_special_values<Storage>(reports);
  check_target_places<Storage>(reports);
  check_nothing_counted<Storage>(reports);
  check_row_sums<Storage>(reports);
  check_alpha_on_device<Storage>(reports);
  check_wrong_alpha_on_device<Storage>(reports);
  check_speculation<Storage>(reports);
  check_target_assertions<Storage>(reports);
  check_row_weight_assertions<Storage>(reports);
}

int run(const char* architecture) {
  Reports reports;
  for (const Machine& machine : kMachines) {
    if (std::strstr(machine.name, architecture) != nullptr) reports.emplace_back(machine);
  }
  if (reports.empty()) {
    std::fprintf(stderr, "cuda_kernel_test: there is no machine of architecture '%s'\n",
                 architecture);
    return 2;
  }
#define POWERGRAD_CHECK_ALL(type_name, storage, accumulate) check_all<storage>(reports);
  POWERGRAD_FORALL_TYPES(POWERGRAD_CHECK_ALL)
#undef POWERGRAD_CHECK_ALL
  check_conversions(reports);
  check_far_offsets(reports);
  check_plans(reports.front());
  bool failed = false;
  for (const Report& report : reports) {
    report.summarize();
    failed = failed || report.failures() > 0;
  }
  return failed ? 1 : 0;
}

}  // namespace
}  // namespace powergrad::test

int main(int argc, char** argv) { return powergrad::test::run(argc > 1 ? argv[1] : ""); }

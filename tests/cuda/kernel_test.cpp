// The CUDA kernels, run by the host layer, against the equations of powergrad.h. Returns 1 when a
// check fails.
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

int run() {
  Reports reports;
  for (const Machine& machine : kMachines) reports.emplace_back(machine);
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

int main() { return powergrad::test::run(); }

// Which strategy serves which number of classes: what the README says of plan.h.
#pragma once

#include "cuda/plan.h"
#include "ordinary_problems.h"

namespace powergrad::test {

inline constexpr host_cuda::Device kSm120{12, 188, 99 * 1024};
inline constexpr host_cuda::Device kOldCodeOnSm90{9, 132, 227 * 1024, 8};

inline Plan plan_of(const host_cuda::Device& device, Layout layout, const Shape& shape,
                    DataType dtype, bool is_map = false) {
  host_cuda::configure({device, 0, std::nullopt});
  Work work{};
  work.dtype = dtype;
  work.positions = layout == Layout::tiles ? kMostPositions : 1;
  work.is_map = is_map;
  Plan plan{};
  if (make_plan(layout, shape, work, nullptr, kLargestCluster, &plan) != cudaSuccess) plan = {};
  return plan;
}

// Threads of one block, and blocks, on the rows of up to so many classes.
struct PlannedRow {
  int64_t bfloat16_classes;
  int64_t float32_classes;
  int threads;
  int blocks_with_clusters;
};
inline constexpr PlannedRow kPlannedRows[] = {
    {2000, 1000, 16, 1},     {4600, 2300, 32, 1},      {8600, 4300, 64, 1},
    {65000, 32500, 256, 1},  {104000, 52000, 512, 1},  {130000, 65000, 128, 8},
    {131072, 65536, 128, 8}, {262144, 131072, 256, 8}, {500000, 250000, 256, 16},
};

inline void check_plans(Report& report) {
  for (const PlannedRow& row : kPlannedRows) {
    for (const bool half : {true, false}) {
      const DataType dtype = half ? DataType::bfloat16 : DataType::float32;
      const Shape shape{4096, half ? row.bfloat16_classes : row.float32_classes, 1};
      report.enter("the plan for " + std::to_string(shape.classes) + " classes");
      const auto plan = [&](const host_cuda::Device& device) {
        return plan_of(device, Layout::rows, shape, dtype);
      };
      const Plan sm90 = plan(host_cuda::kSm90);
      report.expect((1 << sm90.row_bits()) == row.threads && sm90.parts == row.blocks_with_clusters,
                    "another share on sm_90: " + std::to_string(1 << sm90.row_bits()) +
                        " threads of " + std::to_string(sm90.parts) + " blocks");
      report.expect(sm90.rounds == 1, "read twice on sm_90");
      const bool fits_sm120 = shape.classes <= (half ? 49000 : 24500);
      report.expect(!fits_sm120 || plan(kSm120).rounds == 1, "read twice on sm_120");
      const Plan sm80 = plan(host_cuda::kSm80);
      report.expect(sm80.parts == 1, "clusters on sm_80");
      const bool fits_sm80 = shape.classes <= (half ? 80000 : 40000);
      report.expect((sm80.rounds == 1) == fits_sm80, "residence on sm_80");
      report.expect(plan(kOldCodeOnSm90).parts == 1, "clusters for code that knows none");
      const Plan map = plan_of(host_cuda::kSm90, Layout::rows, shape, dtype, true);
      report.expect(map.rounds == 1 && !map.is_cluster, "a map whose blocks meet");
    }
  }
  for (const DataType dtype : {DataType::bfloat16, DataType::float32}) {
    report.enter("the plan for 16 million classes");
    const Plan plan = plan_of(host_cuda::kSm90, Layout::rows, {64, 1 << 24, 1}, dtype);
    report.expect(plan.parts == 16 && plan.rounds > 1, "they do not fit");
  }
  for (const int64_t classes : {2, 19, 21, 150, 1000}) {
    report.enter("the plan for tiles of " + std::to_string(classes) + " classes");
    const Plan plan =
        plan_of(host_cuda::kSm90, Layout::tiles, {16, classes, 1 << 16}, DataType::bfloat16);
    report.expect(plan.rounds == 1 && plan.tensor_bytes <= 64 * 1024, "few blocks fit");
  }
  report.enter("the plan for few rows");
  const Plan few = plan_of(host_cuda::kSm90, Layout::rows, {4, 100000, 1}, DataType::bfloat16);
  report.expect(few.parts == 8, "a few rows are not spread");
  report.enter("the plan for 2^31 classes");
  const Plan none =
      plan_of(host_cuda::kSm90, Layout::rows, {1, int64_t{1} << 31, 1}, DataType::float32);
  report.expect(none.threads == 0, "accepted");
}

}  // namespace powergrad::test

// Which strategy serves which number of classes: what the README says of row_plan.h.
#pragma once

#include "cuda/row_plan.h"
#include "ordinary_problems.h"

namespace powergrad::test {

inline constexpr host_cuda::Device kSm120{12, 188, 99 * 1024};
inline constexpr host_cuda::Device kOldCodeOnSm90{9, 132, 227 * 1024, 8};

inline RowPlan plan_of(const host_cuda::Device& device, DataType dtype, int64_t classes,
                       RowWork work, int64_t rows = 4096) {
  host_cuda::configure({device, 0, std::nullopt});
  RowPlan plan{};
  const Shape shape{rows, classes, 1};
  if (plan_rows(shape, {classes, 1, 0}, dtype, work, 20, nullptr, &plan) != cudaSuccess) plan = {};
  return plan;
}

// Lanes of one block, and blocks, on the rows of up to so many classes.
struct PlannedRow {
  int64_t bfloat16_classes;
  int64_t float32_classes;
  int lanes;
  int blocks_with_clusters;
};
inline constexpr PlannedRow kPlannedRows[] = {
    {120, 60, 4, 1},          {248, 124, 8, 1},       {504, 252, 16, 1},
    {4088, 2044, 32, 1},      {8184, 4092, 64, 1},    {16376, 8188, 128, 1},
    {32760, 16380, 256, 1},   {65000, 32500, 256, 4}, {131000, 65500, 256, 8},
    {900000, 450000, 256, 8},
};

inline void check_plans(Report& report) {
  for (const PlannedRow& row : kPlannedRows) {
    for (const bool half : {true, false}) {
      const DataType dtype = half ? DataType::bfloat16 : DataType::float32;
      const int64_t classes = half ? row.bfloat16_classes : row.float32_classes;
      report.enter("the plan for " + std::to_string(classes) + " classes");
      const auto plan = [&](const host_cuda::Device& device, RowWork work, int64_t rows = 4096) {
        return plan_of(device, dtype, classes, work, rows);
      };
      const RowPlan sm90 = plan(host_cuda::kSm90, RowWork::reduce_and_map);
      report.expect(sm90.lanes == row.lanes && sm90.parts == row.blocks_with_clusters,
                    "another share on sm_90: " + std::to_string(sm90.lanes) + " lanes of " +
                        std::to_string(sm90.parts) + " blocks");
      report.expect(sm90.is_resident, "read twice on sm_90");
      const bool fits_sm120 = classes <= (half ? 400000 : 200000);
      report.expect(!fits_sm120 || plan(kSm120, RowWork::reduce_and_map).is_resident,
                    "read twice on sm_120");
      const RowPlan sm80 = plan(host_cuda::kSm80, RowWork::reduce_and_map);
      report.expect(sm80.lanes == row.lanes && sm80.parts == 1, "another share on sm_80");
      report.expect(sm80.is_resident == (classes <= (half ? 80000 : 40000)), "residence on sm_80");
      report.expect(plan(kOldCodeOnSm90, RowWork::reduce_and_map).parts == 1,
                    "clusters for code that knows none");
      report.expect(plan(host_cuda::kSm90, RowWork::reduce).parts == 1, "blocks without need");
      const int few = plan(host_cuda::kSm90, RowWork::reduce, 1).parts;
      report.expect((few > 1) == (row.blocks_with_clusters > 1), "a single row is not spread");
    }
  }
  for (const DataType dtype : {DataType::bfloat16, DataType::float32}) {
    report.enter("the plan for 16 million classes");
    const RowPlan plan = plan_of(host_cuda::kSm90, dtype, 1 << 24, RowWork::reduce_and_map);
    report.expect(plan.parts == 8 && !plan.is_resident, "they do not fit");
  }
  report.enter("the plan for 2^31 classes");
  RowPlan plan{};
  report.expect(plan_rows({1, int64_t{1} << 31, 1}, {0, 1, 0}, DataType::float32, RowWork::map, 0,
                          nullptr, &plan) == cudaErrorInvalidValue,
                "accepted");
}

}  // namespace powergrad::test

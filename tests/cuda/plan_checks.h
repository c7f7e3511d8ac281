// What every plan has to fulfil: rows are loaded once where they fit.
#pragma once

#include "cuda/plan.h"
#include "ordinary_problems.h"

namespace powergrad::test {

inline constexpr host_cuda::Device kSm120{12, 188, 99 * 1024};
inline constexpr host_cuda::Device kOldCodeOnSm90{9, 132, 227 * 1024, 8};

inline Plan plan_of(const host_cuda::Device& device, RowLayout layout, const Shape& shape,
                    DataType dtype, bool is_elementwise = false) {
  host_cuda::configure({device, 0, std::nullopt});
  Work work{};
  work.dtype = dtype;
  work.positions = layout == RowLayout::strided ? kMostPositions : 1;
  work.is_elementwise = is_elementwise;
  Plan plan{};
  if (make_plan(layout, shape, work, nullptr, kLargestCluster, &plan) != cudaSuccess) plan = {};
  return plan;
}

inline constexpr int64_t kPlannedBytes[] = {4000,   9200,   17200,  130000, 208000,
                                            260000, 262144, 524288, 1000000};

inline void check_plans(Report& report) {
  for (const int64_t bytes : kPlannedBytes) {
    for (const bool half : {true, false}) {
      const DataType dtype = half ? DataType::bfloat16 : DataType::float32;
      const Shape shape{4096, bytes / (half ? 2 : 4), 1};
      report.enter("the plan for " + std::to_string(shape.classes) + " classes");
      const auto plan = [&](const host_cuda::Device& device) {
        return plan_of(device, RowLayout::contiguous, shape, dtype);
      };
      const Plan sm90 = plan(host_cuda::kSm90);
      report.expect(sm90.passes == 1, "loaded twice on sm_90");
      const bool fits_sm120 = shape.classes <= (half ? 49000 : 24500);
      report.expect(!fits_sm120 || plan(kSm120).passes == 1, "loaded twice on sm_120");
      const Plan sm80 = plan(host_cuda::kSm80);
      report.expect(sm80.blocks_per_row == 1, "clusters on sm_80");
      const bool fits_sm80 = shape.classes <= (half ? 80000 : 40000);
      report.expect((sm80.passes == 1) == fits_sm80, "loaded once or twice on sm_80");
      report.expect(plan(kOldCodeOnSm90).blocks_per_row == 1, "clusters for code without them");
      const Plan elementwise = plan_of(host_cuda::kSm90, RowLayout::contiguous, shape, dtype, true);
      report.expect(elementwise.passes == 1 && !elementwise.is_cluster,
                    "clusters for an elementwise kernel");
    }
  }
  for (const DataType dtype : {DataType::bfloat16, DataType::float32}) {
    report.enter("the plan for 16 million classes");
    const Plan plan = plan_of(host_cuda::kSm90, RowLayout::contiguous, {64, 1 << 24, 1}, dtype);
    report.expect(plan.blocks_per_row == 16 && plan.passes > 1, "they do not fit");
  }
  for (const int64_t classes : {2, 19, 21, 150, 1000}) {
    report.enter("the plan for strided rows of " + std::to_string(classes) + " classes");
    const Plan plan =
        plan_of(host_cuda::kSm90, RowLayout::strided, {16, classes, 1 << 16}, DataType::bfloat16);
    report.expect(plan.passes == 1 && plan.tensor_bytes <= 64 * 1024,
                  "few blocks fit on a multiprocessor");
  }
  report.enter("the plan for few rows");
  const Plan few =
      plan_of(host_cuda::kSm90, RowLayout::contiguous, {4, 100000, 1}, DataType::bfloat16);
  report.expect(few.blocks_per_row > 1, "a few rows leave multiprocessors idle");
  report.enter("the plan for 2^31 classes");
  const Plan none =
      plan_of(host_cuda::kSm90, RowLayout::contiguous, {1, int64_t{1} << 31, 1}, DataType::float32);
  report.expect(none.threads == 0, "accepted");
}

}  // namespace powergrad::test

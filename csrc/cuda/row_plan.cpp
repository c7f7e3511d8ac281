#include "cuda/row_plan.h"

#include <algorithm>
#include <limits>

namespace powergrad {
namespace {

constexpr int kMostBlocksOfCluster = 8;  // more are not portable between devices
constexpr int kFewPacksOfLane = 4;       // up to a warp, and where lanes do not have to meet
constexpr int kManyPacksOfLane = 16;     // before a row gets more warps
constexpr int kMostLanesOfBlock = 256;
constexpr int kThreadsOfSmallRows = 128;  // of a block with several rows
constexpr int kShareOfBlock = 32 * 1024;  // bytes of a row that leave room for several blocks

struct Device {
  int major = 0;
  int multiprocessors = 0;
  int shared_bytes = 0;  // the most that a block may have

  cudaError_t read() {
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    const auto attribute = [&](int* value, cudaDeviceAttr which) {
      if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, which, device);
    };
    attribute(&major, cudaDevAttrComputeCapabilityMajor);
    attribute(&multiprocessors, cudaDevAttrMultiProcessorCount);
    attribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    return error;
  }
  // Code that was compiled for an architecture without clusters takes them for blocks on their own.
  cudaError_t has_clusters(const void* kernel, bool* result) const {
    *result = false;
    if (major < 9) return cudaSuccess;
    cudaFuncAttributes attributes{};
    const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    *result = error == cudaSuccess && attributes.ptxVersion >= 90;
    return error;
  }
};

int element_bytes(DataType dtype) {
  switch (dtype) {
#define POWERGRAD_BYTES(name, storage, accumulate) \
  case DataType::name:                             \
    return sizeof(storage);
    POWERGRAD_FORALL_TYPES(POWERGRAD_BYTES)
#undef POWERGRAD_BYTES
  }
  return 0;
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The least power of two that is at least x, within bounds that are powers of two.
int power_of_two(int64_t x, int least, int most) {
  int result = least;
  while (result < x && result < most) result *= 2;
  return result;
}

// Contiguous rows that are reduced.
cudaError_t share_out(RowWork work, const Device& device, int pack_bytes, const void* kernel,
                      RowPlan* plan) {
  // Up to a warp, few packs per lane; from there a lane takes more of them, and once it has many,
  // rows get more warps.
  plan->lanes = power_of_two(divide_up(plan->packs, kFewPacksOfLane), 4, kWarp);
  if (plan->lanes == kWarp) {
    plan->lanes = power_of_two(divide_up(plan->packs, kManyPacksOfLane), kWarp, kMostLanesOfBlock);
  }
  // No block has two rows of several warps.
  plan->threads = plan->lanes > kWarp ? plan->lanes : kThreadsOfSmallRows;
  const int64_t blocks_worth = divide_up(plan->packs, int64_t{plan->lanes} * kManyPacksOfLane);
  if (blocks_worth == 1) return cudaSuccess;
  bool has_clusters = false;
  const cudaError_t error = device.has_clusters(kernel, &has_clusters);
  if (!has_clusters) return error;
  // A row that stays in shared memory is spread until a block's share is small; any other only
  // until there is work for every multiprocessor.
  const int64_t idle = device.multiprocessors / std::max<int64_t>(plan->rows, 1);
  const int64_t wanted = work == RowWork::reduce_and_map
                             ? divide_up(int64_t{plan->packs} * pack_bytes, kShareOfBlock)
                             : std::min(idle, blocks_worth);
  plan->parts = power_of_two(wanted, 1, kMostBlocksOfCluster);
  return cudaSuccess;
}

}  // namespace

cudaError_t plan_rows(const Shape& shape, const Strides& strides, DataType dtype, RowWork work,
                      int state_bytes, const void* kernel, RowPlan* plan) {
  Device device;
  cudaError_t error = device.read();
  if (error != cudaSuccess) return error;
  const bool contiguous = strides.classes == 1;
  const int pack_bytes = contiguous ? kVectorBytes : element_bytes(dtype);
  const int64_t elements = pack_bytes / element_bytes(dtype);
  // A row may start in the middle of a vector.
  const int64_t packs = contiguous ? divide_up(shape.classes, elements) + 1 : shape.classes;
  // Pack and class numbers are ints, also of those just past a row's end.
  if (packs * elements > std::numeric_limits<int>::max() / 2) return cudaErrorInvalidValue;
  *plan = RowPlan{};
  plan->rows = shape.rows();
  plan->packs = static_cast<int>(packs);
  plan->parts = 1;
  if (!contiguous) {
    // Threads across rows; with enough classes for it, 8 of them on one row.
    plan->lanes = packs >= 64 ? 8 : 1;
    plan->threads = plan->lanes == 1 ? kThreadsOfSmallRows : kMostLanesOfBlock;
  } else if (work == RowWork::map) {
    plan->lanes = power_of_two(packs, 1, kWarp);
    if (packs > kWarp) {
      plan->lanes = power_of_two(divide_up(packs, kFewPacksOfLane), kWarp, kMostLanesOfBlock);
    }
    plan->threads = std::max(plan->lanes, kThreadsOfSmallRows);
  } else {
    error = share_out(work, device, pack_bytes, kernel, plan);
    if (error != cudaSuccess) return error;
  }
  if (work == RowWork::map) {
    const int64_t packs_of_lane = contiguous ? kFewPacksOfLane : kManyPacksOfLane;
    plan->parts = static_cast<int>(divide_up(packs, plan->lanes * packs_of_lane));
  } else {
    plan->is_cluster = plan->parts > 1;
    int meeting = 0;
    if (plan->lanes > (contiguous ? kWarp : 1)) {
      meeting = contiguous ? plan->threads / kWarp + 1 : plan->threads;
    }
    plan->scratch_bytes = static_cast<int>(divide_up(int64_t{meeting} * state_bytes, 16) * 16);
  }
  plan->steps = static_cast<int>(divide_up(packs, int64_t{plan->lanes} * plan->parts));
  const int64_t kept = int64_t{plan->steps} * plan->threads * pack_bytes;
  plan->is_resident =
      work == RowWork::reduce_and_map && plan->scratch_bytes + kept <= device.shared_bytes;
  plan->row_blocks = divide_up(plan->rows, plan->threads / plan->lanes);
  return cudaSuccess;
}

}  // namespace powergrad

// Launches a kernel over the rows of a call, instantiated for its layout, type and kind of alpha.
#pragma once

#include <limits>
#include <type_traits>

#include "alpha.h"
#include "cuda/contiguous_rows.cuh"
#include "cuda/exponentials.cuh"
#include "cuda/packed_rows.cuh"
#include "cuda/plan.h"
#include "cuda/strided_rows.cuh"

namespace powergrad {
namespace {

template <class Storage>
inline constexpr int kMostThreadsOf = std::is_same_v<Storage, double> ? 256 : kMostThreads;

// Blocks per multiprocessor, which limits the registers of a thread: room for 1024 threads. Three
// kinds of kernels may use more registers: float64, which is bound by arithmetic; dense targets;
// threads with several rows, which have as many loads in flight.
template <class Rows, bool kDenseTarget>
inline constexpr int kLeastBlocks =
    std::is_same_v<typename Rows::Element, double> || kDenseTarget || Rows::kRows > 1 ? 1 : 2;

template <class T>
struct Tag {
  using Type = T;
};

// Calls function(Tag<Rows>) with the class of the layout that plan.h chooses for a call.
template <class Storage, class Function>
cudaError_t with_layout(const LayoutChoice& choice, const Function& function) {
  switch (choice.layout) {
    case RowLayout::contiguous:
      return function(Tag<ContiguousRows<Storage>>{});
    case RowLayout::packed:
      return function(Tag<PackedRows<Storage, 1>>{});
    case RowLayout::strided:
      if constexpr (sizeof(Storage) <= 4) {
        if (choice.positions == kMostPositions) {
          return function(Tag<StridedRows<Storage, kMostPositions>>{});
        }
      }
      return function(Tag<StridedRows<Storage, 1>>{});
  }
  return cudaErrorInvalidValue;
}
template <class Function>
cudaError_t with_rows(const Shape& shape, DataType dtype, std::initializer_list<Extent> tensors,
                      const Function& function) {
  const LayoutChoice choice = choose_layout(shape, dtype, tensors);
  switch (dtype) {
#define POWERGRAD_CASE(name, storage, accumulate) \
  case DataType::name:                            \
    return with_layout<storage>(choice, function);
    POWERGRAD_FORALL_TYPES(POWERGRAD_CASE)
#undef POWERGRAD_CASE
  }
  return cudaErrorInvalidValue;
}

// Calls function(rows, has_dense_target) with the layout's class for a call's target: without a
// dense one, whose probabilities may lie beside the logits, halves can be read in pairs.
template <class Rows, class Function>
cudaError_t with_target(const CrossEntropyParams& p, Tag<Rows>, const Function& function) {
  if (has_dense_target(p)) return function(Tag<Rows>{}, std::true_type{});
  return function(Tag<typename InPairs<Rows>::Type>{}, std::false_type{});
}

// The kind of alpha (alpha.h) that a kernel uses: one exponential for both sums where that is
// cheaper, in long rows. Not for 3/10: the tenth power raises the error of fast_exp2 to 4.1e-6, and
// two exponentials took the same time in a step.
template <class Rows, bool kDenseTarget, class Kind>
struct KindInKernels {
  using Type = AnyAlpha;
};
template <class Rows, bool kDenseTarget>
struct KindInKernels<Rows, kDenseTarget, NoAlpha> {
  using Type = NoAlpha;
};
template <class Rows, int kDenominator>
struct KindInKernels<Rows, false, RationalAlpha<1, kDenominator>> {
  static constexpr bool kPays =
      !std::is_same_v<typename Rows::Element, double> &&
      (kDenominator == 1 || (kDenominator == 4 && Rows::kLayout == RowLayout::contiguous));
  using Type = std::conditional_t<kPays, RationalAlpha<1, kDenominator>, AnyAlpha>;
};

// Calls function(kind) for a call's alpha. One on the device may have any value.
template <class Rows, bool kDenseTarget, class Params, class Function>
cudaError_t with_kind(const Params& p, const Function& function) {
  const bool has_backward = p.statistics != nullptr;
  if (has_backward && p.alpha_on_device != nullptr) return function(AnyAlpha{});
  using Scalar = AccumulateOf<typename Rows::Element>;
  return with_alpha_kind<Scalar>(p.alpha, has_backward, [&](auto kind) {
    return function(typename KindInKernels<Rows, kDenseTarget, decltype(kind)>::Type{});
  });
}

template <class Rows>
Work work_of() {
  Work work{};
  work.dtype = StorageTraits<typename Rows::Element>::dtype;
  work.positions = Rows::kRows;
  work.classes = Rows::kElements / Rows::kRows;
  work.tensors = 1;
  return work;
}

// A plan as a launch configuration, with the opt-ins that the kernel needs for it.
struct Configuration {
  cudaLaunchConfig_t launch{};
  cudaLaunchAttribute cluster{};

  cudaError_t set(const void* kernel, const Plan& plan, const Work& work, cudaStream_t stream) {
    launch.gridDim = dim3(static_cast<unsigned>(plan.blocks));
    launch.blockDim = dim3(static_cast<unsigned>(plan.threads));
    launch.dynamicSmemBytes =
        static_cast<size_t>(plan.scratch_bytes) + size_t(work.tensors) * plan.tensor_bytes;
    launch.stream = stream;
    cudaError_t error = cudaSuccess;
    constexpr size_t kWithoutOptIn = 48 * 1024;
    if (launch.dynamicSmemBytes > kWithoutOptIn) {
      // Always for the maximum: another thread of the host may be launching it for longer rows.
      int most = 0;
      error = most_shared_bytes(&most);
      if (error != cudaSuccess) return error;
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
      if (error != cudaSuccess) return error;
    }
    if (!plan.is_cluster) return cudaSuccess;
    if (plan.blocks_per_row > kPortableCluster) {
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
      if (error != cudaSuccess) return error;
    }
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(plan.blocks_per_row);
    cluster.val.clusterDim.y = 1;
    cluster.val.clusterDim.z = 1;
    launch.attrs = &cluster;
    launch.numAttrs = 1;
    return cudaSuccess;
  }
};

// One kernel over all rows of a call.
template <class Rows, class Params, class Scalar>
cudaError_t launch_rows(void (*kernel)(Params, Plan, Alpha<Scalar>), const Params& params,
                        const Work& work, cudaStream_t stream) {
  const void* address = reinterpret_cast<const void*>(kernel);
  for (int largest = kLargestCluster;; largest = kPortableCluster) {
    Plan plan;
    cudaError_t error = make_plan(Rows::kLayout, params.shape, work, address, largest, &plan);
    if (error != cudaSuccess) return error;
    Configuration configuration;
    error = configuration.set(address, plan, work, stream);
    if (error != cudaSuccess) return error;
    if (plan.is_cluster && plan.blocks_per_row > kPortableCluster) {
      // A device, or a MIG instance, may have no room for such a cluster.
      int clusters = 0;
      error = cudaOccupancyMaxActiveClusters(&clusters, address, &configuration.launch);
      if (error != cudaSuccess) return error;
      if (clusters == 0) continue;
    }
    return cudaLaunchKernelEx(&configuration.launch, kernel, Params(params), Plan(plan),
                              Alpha<Scalar>(params));
  }
}

}  // namespace
}  // namespace powergrad

// Launching a kernel over the rows of a call, and what of it has to be known when compiling.
#pragma once

#include <limits>
#include <type_traits>

#include "alpha.h"
#include "cuda/exponentials.cuh"
#include "cuda/plan.h"
#include "cuda/resident.cuh"

namespace powergrad {
namespace {

template <class Storage>
inline constexpr int kMostThreadsOf = std::is_same_v<Storage, double> ? 256 : kMostThreads;

// Blocks of so many on a multiprocessor that the compiler has to leave registers for: 1024
// threads. float64, which is bound by its arithmetic, masses of every class and threads with
// several rows, which are as many in flight, take more of them.
template <class Rows, bool kDenseTarget>
inline constexpr int kLeastBlocks =
    std::is_same_v<typename Rows::Element, double> || kDenseTarget || Rows::kRows > 1 ? 1 : 2;

template <class T>
struct Tag {
  using Type = T;
};

// Calls function(Tag<Layout>) for how a call's tensors lie in memory: see plan.h.
template <class Storage, class Function>
cudaError_t with_arrangement(const Arrangement& arrangement, const Function& function) {
  switch (arrangement.layout) {
    case Layout::rows:
      return function(Tag<ResidentRows<Storage>>{});
    case Layout::chunks:
      return function(Tag<ResidentChunks<Storage>>{});
    case Layout::tiles:
      if constexpr (sizeof(Storage) <= 4) {
        if (arrangement.positions == kMostPositions) {
          return function(Tag<ResidentTiles<Storage, kMostPositions>>{});
        }
      }
      return function(Tag<ResidentTiles<Storage, 1>>{});
  }
  return cudaErrorInvalidValue;
}
template <class Function>
cudaError_t with_rows(const Shape& shape, DataType dtype, std::initializer_list<Extent> tensors,
                      const Function& function) {
  const Arrangement arrangement = arrangement_of(shape, dtype, tensors);
  switch (dtype) {
#define POWERGRAD_CASE(name, storage, accumulate) \
  case DataType::name:                            \
    return with_arrangement<storage>(arrangement, function);
    POWERGRAD_FORALL_TYPES(POWERGRAD_CASE)
#undef POWERGRAD_CASE
  }
  return cudaErrorInvalidValue;
}

template <class Function>
cudaError_t with_bool(bool value, const Function& function) {
  return value ? function(std::true_type{}) : function(std::false_type{});
}

// What the kernels make of a kind of alpha (alpha.h): one exponential for both where it is cheap to
// have, over long rows. Not for 3/10: its tenth power multiplies the special function unit's error
// to 4.1e-6, and two exponentials took the same time in a step.
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
      (kDenominator == 1 || (kDenominator == 4 && Rows::kLayout == Layout::rows));
  using Type = std::conditional_t<kPays, RationalAlpha<1, kDenominator>, AnyAlpha>;
};

// Calls function(kind) for this call's alpha; one that only the device knows may be anything.
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
  work.tensors = 1;
  return work;
}

// How a kernel is launched by a plan, and what it has to be allowed for that.
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
    constexpr size_t kWithoutAsking = 48 * 1024;
    if (launch.dynamicSmemBytes > kWithoutAsking) {
      // Never less than all there is, as other threads launch this kernel for longer rows.
      int most = 0;
      error = most_shared_bytes(&most);
      if (error != cudaSuccess) return error;
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
      if (error != cudaSuccess) return error;
    }
    if (!plan.is_cluster) return cudaSuccess;
    if (plan.parts > kPortableCluster) {
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
      if (error != cudaSuccess) return error;
    }
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(plan.parts);
    cluster.val.clusterDim.y = 1;
    cluster.val.clusterDim.z = 1;
    launch.attrs = &cluster;
    launch.numAttrs = 1;
    return cudaSuccess;
  }
};

// One kernel over all rows of a call.
template <class Rows, class Params, class Scalar>
cudaError_t launch_rows(void (*kernel)(Params, Plan, Exponent<Scalar>), const Params& params,
                        const Work& work, cudaStream_t stream) {
  const void* address = reinterpret_cast<const void*>(kernel);
  for (int largest = kLargestCluster;; largest = kPortableCluster) {
    Plan plan;
    cudaError_t error = make_plan(Rows::kLayout, params.shape, work, address, largest, &plan);
    if (error != cudaSuccess) return error;
    Configuration configuration;
    error = configuration.set(address, plan, work, stream);
    if (error != cudaSuccess) return error;
    if (plan.is_cluster && plan.parts > kPortableCluster) {
      // Not every device whose architecture knows such clusters has room for one, and fewer have a
      // part of a device.
      int clusters = 0;
      error = cudaOccupancyMaxActiveClusters(&clusters, address, &configuration.launch);
      if (error != cudaSuccess) return error;
      if (clusters == 0) continue;
    }
    return cudaLaunchKernelEx(&configuration.launch, kernel, Params(params), Plan(plan),
                              Exponent<Scalar>(params));
  }
}

}  // namespace
}  // namespace powergrad

// Launching a kernel over the rows of a call, and what of it has to be known when compiling.
#pragma once

#include <limits>
#include <type_traits>

#include "alpha.h"
#include "cuda/primitives.cuh"
#include "cuda/row_plan.h"

namespace powergrad {
namespace {

inline constexpr int kMostThreads = 256;

// Blocks per multiprocessor that the compiler has to leave registers for: any number. Where nothing
// is said it aims at five, and spills for it.
inline constexpr int kLeastBlocks = 1;

template <class Storage>
struct StorageTag {
  using Type = Storage;
};

// Calls function(StorageTag<Storage>) for the logits' type.
template <class Function>
cudaError_t with_storage(DataType dtype, const Function& function) {
  switch (dtype) {
#define POWERGRAD_CASE(name, storage, accumulate) \
  case DataType::name:                            \
    return function(StorageTag<storage>{});
    POWERGRAD_FORALL_TYPES(POWERGRAD_CASE)
#undef POWERGRAD_CASE
  }
  return cudaErrorInvalidValue;
}

// Calls function(std::integral_constant<int, kPack>): see row_plan.h.
template <class Storage, class Function>
cudaError_t with_pack(const Strides& logits_strides, const Function& function) {
  if (logits_strides.classes == 1) {
    return function(std::integral_constant<int, kVectorBytes / sizeof(Storage)>{});
  }
  return function(std::integral_constant<int, 1>{});
}

template <class Function>
cudaError_t with_bool(bool value, const Function& function) {
  return value ? function(std::true_type{}) : function(std::false_type{});
}

// What the kernels make of a kind of alpha (alpha.h). One exponential for both pays where loads are
// wide and the special function unit is what limits: not in float64, nor where a load brings one
// class. A fraction of larger numbers is left out, as its powers would multiply that unit's error.
template <class Storage, int kPack, class Kind>
struct KindInKernels {
  using Type = AnyAlpha;
};
template <class Storage, int kPack>
struct KindInKernels<Storage, kPack, NoAlpha> {
  using Type = NoAlpha;
};
template <class Storage, int kPack, int kDenominator>
struct KindInKernels<Storage, kPack, RationalAlpha<1, kDenominator>> {
  static constexpr bool kPays =
      !std::is_same_v<Storage, double> && (kPack > 1 || kDenominator == 1);
  using Type = std::conditional_t<kPays, RationalAlpha<1, kDenominator>, AnyAlpha>;
};

// Calls function(kind) for this call's alpha; one that only the device knows may be anything.
template <class Storage, int kPack, class Params, class Function>
cudaError_t with_kind(const Params& p, const Function& function) {
  const bool has_backward = p.statistics != nullptr;
  if (has_backward && p.alpha_on_device != nullptr) return function(AnyAlpha{});
  return with_alpha_kind<AccumulateOf<Storage>>(p.alpha, has_backward, [&](auto kind) {
    return function(typename KindInKernels<Storage, kPack, decltype(kind)>::Type{});
  });
}

// One kernel over all rows of a call. `state_bytes`: what a thread brings to a meeting.
template <class Params>
cudaError_t launch_rows(void (*kernel)(Params, RowPlan), const Params& params, RowWork work,
                        int state_bytes, int pack_bytes, cudaStream_t stream) {
  RowPlan plan;
  cudaError_t error = plan_rows(params.shape, params.logits_strides, params.dtype, work,
                                state_bytes, reinterpret_cast<const void*>(kernel), &plan);
  if (error != cudaSuccess) return error;
  const int64_t blocks = plan.row_blocks * plan.parts;
  if (blocks > std::numeric_limits<int>::max()) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(plan.threads));
  config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes(pack_bytes));
  config.stream = stream;
  constexpr size_t kWithoutAsking = 48 * 1024;
  if (config.dynamicSmemBytes > kWithoutAsking) {
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(config.dynamicSmemBytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute cluster{};
  if (plan.is_cluster) {
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(plan.parts);
    cluster.val.clusterDim.y = 1;
    cluster.val.clusterDim.z = 1;
    config.attrs = &cluster;
    config.numAttrs = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, Params(params), RowPlan(plan));
}

}  // namespace
}  // namespace powergrad

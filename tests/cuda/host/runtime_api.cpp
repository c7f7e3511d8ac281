#include "runtime_api.h"

#include <map>
#include <set>

#include "machine.h"

namespace powergrad::host_cuda {
namespace {

constexpr int kSharedMemoryWithoutOptIn = 48 * 1024;

Options options;
std::map<const void*, int> opted_in;          // bytes of shared memory of each kernel
std::set<const void*> large_cluster_kernels;  // that have opted in to non-portable sizes
cudaError_t last_error = cudaSuccess;

cudaError_t refuse(cudaError_t error, const std::string& why) {
  machine().set_failure(why);
  return last_error = error;
}

uint64_t volume(const dim3& size) { return uint64_t{size.x} * size.y * size.z; }

bool is_grid(const dim3& size) {
  constexpr unsigned kMaximumX = 0x7fffffff;
  constexpr unsigned kMaximumYZ = 0xffff;
  return volume(size) > 0 && size.x <= kMaximumX && size.y <= kMaximumYZ && size.z <= kMaximumYZ;
}

bool is_cluster(const dim3& size, bool has_asked) {
  const bool is_power_of_two = size.x != 0 && (size.x & (size.x - 1)) == 0;
  const unsigned most = has_asked ? kMaximumClusterSize : kPortableClusterSize;
  return is_power_of_two && size.x <= most && size.y == 1 && size.z == 1;
}

std::size_t shared_memory_limit(const void* kernel) {
  const auto found = opted_in.find(kernel);
  return found == opted_in.end() ? kSharedMemoryWithoutOptIn : found->second;
}

}  // namespace

void configure(const Options& new_options) {
  options = new_options;
  opted_in.clear();
  large_cluster_kernels.clear();
}

const std::string& failure() { return machine().failure(); }

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                   const std::function<void()>& call) {
  if (kernel == nullptr) return refuse(cudaErrorInvalidDeviceFunction, "the kernel is null");
  if (!is_grid(config.gridDim)) {
    return refuse(cudaErrorInvalidConfiguration, "invalid size of the grid");
  }
  const uint64_t threads = volume(config.blockDim);
  if (threads < 1 || threads > kWarpSize * kMaximumWarps) {
    return refuse(cudaErrorInvalidConfiguration, "a block has 1 to 1024 threads");
  }
  if (config.dynamicSmemBytes > shared_memory_limit(kernel)) {
    return refuse(cudaErrorInvalidValue, "the kernel has not opted in to " +
                                             std::to_string(config.dynamicSmemBytes) +
                                             " bytes of shared memory");
  }
  dim3 cluster;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id != cudaLaunchAttributeClusterDimension) {
      return refuse(cudaErrorNotSupported, "a launch attribute other than the cluster's size");
    }
    if (options.device.code < 9 && options.device.major >= 9) {
      return refuse(cudaErrorNotSupported, "this code takes a cluster's blocks for lone ones");
    }
    if (options.device.major < 9) {
      return refuse(cudaErrorNotSupported, "this device has no clusters");
    }
    const auto& size = attribute.val.clusterDim;
    if (static_cast<int>(size.x) > options.device.largest_cluster) {
      return refuse(cudaErrorLaunchOutOfResources, "this device has no room for such a cluster");
    }
    cluster = {size.x, size.y, size.z};
  }
  if (!is_cluster(cluster, large_cluster_kernels.count(kernel) > 0)) {
    return refuse(cudaErrorInvalidClusterSize,
                  "a cluster has 1, 2, 4 or 8 blocks along x, or 16 when the kernel asks for it");
  }
  if (config.gridDim.x % cluster.x != 0) {
    return refuse(cudaErrorInvalidConfiguration, "the grid is not a multiple of the cluster");
  }
  if (options.only_block && *options.only_block >= volume(config.gridDim)) {
    return refuse(cudaErrorInvalidValue, "the only block is not in the grid");
  }
  const Launch launch{config.gridDim, config.blockDim, cluster.x, config.dynamicSmemBytes, call};
  const cudaError_t error = machine().run(launch, options.seed, options.only_block);
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace powergrad::host_cuda

// In place of the runtime library's.
using powergrad::host_cuda::large_cluster_kernels;
using powergrad::host_cuda::last_error;
using powergrad::host_cuda::opted_in;
using powergrad::host_cuda::options;
using powergrad::host_cuda::refuse;

extern "C" {

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed && options.device.major >= 9) {
    if (value != 0) large_cluster_kernels.insert(kernel);
    return cudaSuccess;
  }
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) {
    return refuse(cudaErrorInvalidValue, "cudaFuncSetAttribute: an attribute that is not known");
  }
  if (value < 0 || value > options.device.shared_memory) {
    return refuse(cudaErrorInvalidValue, "cudaFuncSetAttribute: more shared memory than there is");
  }
  opted_in[kernel] = value;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->ptxVersion = 10 * options.device.code;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*,
                                           const cudaLaunchConfig_t* config) {
  const auto size = static_cast<int>(config->attrs->val.clusterDim.x);
  *clusters = size <= options.device.largest_cluster ? 1 : 0;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = options.device.major;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = options.device.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = options.device.shared_memory;
      return cudaSuccess;
    default:
      return refuse(cudaErrorInvalidValue,
                    "cudaDeviceGetAttribute: an attribute that is not known");
  }
}

cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : powergrad::host_cuda::failure().c_str();
}

}  // extern "C"

#include "runtime_api.h"

#include <map>

#include "machine.h"

namespace powergrad::host_cuda {
namespace {

constexpr int kSharedMemoryWithoutOptIn = 48 * 1024;
constexpr unsigned kMaximumGridYZ = 65535;

Options options;
std::map<const void*, int> opted_in;  // bytes of shared memory, by kernel
cudaError_t last_error = cudaSuccess;

cudaError_t keep(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t refuse(cudaError_t error, const std::string& why) {
  machine().set_failure(why);
  return keep(error);
}

bool is_valid(const dim3& grid) {
  constexpr unsigned kMaximumX = 0x7fffffff;
  return grid.x >= 1 && grid.x <= kMaximumX && grid.y >= 1 && grid.y <= kMaximumGridYZ &&
         grid.z >= 1 && grid.z <= kMaximumGridYZ;
}

}  // namespace

void configure(const Options& its_options) {
  options = its_options;
  opted_in.clear();
}

const std::string& failure() { return machine().failure(); }

cudaError_t launch(const cudaLaunchConfig_t& config, const void* function,
                   const std::function<void()>& call) {
  const dim3& grid = config.gridDim;
  const dim3& block = config.blockDim;
  if (function == nullptr) return refuse(cudaErrorInvalidDeviceFunction, "the kernel is null");
  if (!is_valid(grid)) return refuse(cudaErrorInvalidConfiguration, "invalid size of the grid");
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads < 1 || threads > kWarpSize * kMaximumWarps) {
    return refuse(cudaErrorInvalidConfiguration, "a block has 1 to 1024 threads");
  }

  dim3 cluster(1, 1, 1);
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id != cudaLaunchAttributeClusterDimension) {
      return refuse(cudaErrorNotSupported, "a launch attribute other than the cluster's size");
    }
    const auto& size = config.attrs[i].val.clusterDim;
    cluster = dim3(size.x, size.y, size.z);
    if (options.device.major < 9) {
      return refuse(cudaErrorNotSupported, "this device has no clusters");
    }
  }
  const bool power_of_two = cluster.x != 0 && (cluster.x & (cluster.x - 1)) == 0;
  if (!power_of_two || cluster.x > kMaximumClusterSize || cluster.y != 1 || cluster.z != 1) {
    return refuse(cudaErrorInvalidClusterSize, "a cluster has 1, 2, 4 or 8 blocks along x");
  }
  if (grid.x % cluster.x != 0) {
    return refuse(cudaErrorInvalidConfiguration, "the grid is not a multiple of the cluster");
  }

  const auto limit = opted_in.find(function);
  const int bytes = limit == opted_in.end() ? kSharedMemoryWithoutOptIn : limit->second;
  if (config.dynamicSmemBytes > static_cast<std::size_t>(bytes)) {
    return refuse(cudaErrorInvalidValue, "the kernel has not opted in to " +
                                             std::to_string(config.dynamicSmemBytes) +
                                             " bytes of shared memory");
  }
  machine().set_failure({});
  return keep(machine().run({grid, block, cluster.x, config.dynamicSmemBytes, call}, options.seed,
                            options.only_block));
}

}  // namespace powergrad::host_cuda

// These take the place of the runtime library's.
using powergrad::host_cuda::last_error;
using powergrad::host_cuda::opted_in;
using powergrad::host_cuda::options;
using powergrad::host_cuda::refuse;

extern "C" {

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) {
    return refuse(cudaErrorInvalidValue, "cudaFuncSetAttribute: an attribute that is not known");
  }
  if (value < 0 || value > options.device.shared_memory) {
    return refuse(cudaErrorInvalidValue, "cudaFuncSetAttribute: more shared memory than there is");
  }
  opted_in[function] = value;
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

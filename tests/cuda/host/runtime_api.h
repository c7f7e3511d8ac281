// Launches of kernels, and the device that a test emulates.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace powergrad::host_cuda {

// The device attributes that launchers read.
struct Device {
  int major;  // compute capability; clusters from 9 on
  int multiprocessors;
  int shared_memory;  // the most that a block can opt in to, bytes
  int code = major;   // the major version that kernels were compiled for
  int largest_cluster = 16;
};
inline constexpr Device kSm80{8, 108, 163 * 1024};
inline constexpr Device kSm90{9, 132, 227 * 1024};

struct Options {
  Device device = kSm90;
  // Of the order of threads: 0 forward, 1 backward, any other random.
  uint64_t seed = 0;
  // Run no other block, but the rest of its cluster; numbered along x first.
  std::optional<uint64_t> only_block;
};

// For the launches that follow. Forgets what kernels have opted in to.
void configure(const Options& options);

// Why the last launch failed, or what the last call refused; empty after a launch without an error.
const std::string& failure();

cudaError_t launch(const cudaLaunchConfig_t& config, const void* function,
                   const std::function<void()>& call);

template <class... Parameters, class... Arguments>
cudaError_t launch(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                   Arguments... arguments) {
  return launch(*config, reinterpret_cast<const void*>(kernel), [&] { kernel(arguments...); });
}

}  // namespace powergrad::host_cuda

// The toolkit's own forgets the types of the arguments.
#define cudaLaunchKernelEx powergrad::host_cuda::launch

// The toolkit has this only for its own compiler.
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute,
                                 int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

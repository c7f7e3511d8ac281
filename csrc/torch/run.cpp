#include "torch/run.h"

#include <c10/util/Exception.h>

namespace powergrad {

const DeviceFunctions& functions_of(c10::Device device) {
  if (device.is_cpu()) return cpu_functions();
#if defined(POWERGRAD_WITH_CUDA)
  if (device.is_cuda()) return cuda_functions();
#endif
  TORCH_CHECK_NOT_IMPLEMENTED(false, "powergrad_ext was built without kernels for ", device,
                              "; move the tensors to the CPU, or install a build with CUDA kernels",
                              " (python -m powergrad_ext shows what was built)");
}

}  // namespace powergrad

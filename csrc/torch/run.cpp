#include "torch/run.h"

#include <c10/util/Exception.h>

namespace powergrad {

const DeviceFunctions& functions_of(c10::Device device) {
  if (device.is_cpu()) return cpu_functions();
  if (device.is_cuda()) return cuda_functions();
  TORCH_CHECK_NOT_IMPLEMENTED(false, "powergrad_ext has no kernels for ", device,
                              "; move the tensors to the CPU or to a CUDA device");
}

}  // namespace powergrad

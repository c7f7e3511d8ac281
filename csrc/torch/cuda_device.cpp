#include "torch/cuda_device.h"

#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include "torch/libraries.h"

namespace powergrad {

void check_cuda(int error) {
  if (error == 0) return;
  const CudaLibrary& cuda = cuda_library();
  throw c10::AcceleratorError(
      {__func__, __FILE__, static_cast<uint32_t>(__LINE__)}, error,
      c10::str("CUDA error: ", cuda.error_string(error), " (", cuda.error_name(error), ")"));
}

OnCudaDevice::OnCudaDevice(c10::Device device) : guard_(device) {
  check_cuda(cuda_library().set_device(device.index()));
  stream_ = c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
}

}  // namespace powergrad

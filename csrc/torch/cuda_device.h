// Work on a GPU, for which torch is asked through its interface of any device: neither a header of
// CUDA nor a build of torch with it is needed.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/DeviceGuard.h>

namespace powergrad {

// Raises torch.AcceleratorError for a cudaError_t that is not success.
void check_cuda(int error);

// Makes a device the current one, of torch and of the kernels, and asks for torch's stream there.
class OnCudaDevice {
 public:
  explicit OnCudaDevice(c10::Device device);
  void* stream() const { return stream_; }  // cudaStream_t

 private:
  c10::DeviceGuard guard_;
  void* stream_;
};

}  // namespace powergrad

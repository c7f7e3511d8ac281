// The launcher boundary: a filled struct goes to the kernels of a device. The operators above it
// are the same for every device; run_cpu.cpp is the CPU's half (the CUDA half is the sources'
// group torch_cuda).
#pragma once

#include <c10/core/Device.h>

#include "powergrad.h"

namespace powergrad {

void run_cross_entropy_forward(const CrossEntropyParams& params, c10::Device device);
void run_cross_entropy_backward(const CrossEntropyParams& params, c10::Device device);
void run_log_softmax_forward(const LogSoftmaxParams& params, c10::Device device);
void run_log_softmax_backward(const LogSoftmaxParams& params, c10::Device device);

// NotImplementedError where the device has no kernels in this build.
void check_device_has_kernels(c10::Device device);

}  // namespace powergrad

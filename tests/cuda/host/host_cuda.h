// Makes the CUDA kernels' source ordinary C++17 that runs on the CPU. Force-included by the
// compiler's command line.
#pragma once

#define POWERGRAD_HOST_CUDA

#include <cuda_runtime.h>

#include "device_functions.h"
#include "kernel_indices.h"
#include "runtime_api.h"

#define __launch_bounds__(...)

// In plain C++ each thread would have its own.
#undef __shared__
#define __shared__ _Pragma("GCC error \"only dynamic shared memory is supported\"")

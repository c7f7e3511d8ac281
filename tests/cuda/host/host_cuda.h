// Lets the CUDA kernels' source run on the CPU: included by the compiler's command line before the
// first line of a file that is compiled as ordinary C++17.
#pragma once

#define POWERGRAD_HOST_CUDA

#include <cuda_runtime.h>

#include "device_functions.h"
#include "kernel_indices.h"
#include "runtime_api.h"

#define __launch_bounds__(...)

// As plain C++ it would be each thread's own.
#undef __shared__
#define __shared__ _Pragma("GCC error \"only dynamic shared memory is supported\"")

// The libraries of kernels, which lie beside this one. Each is opened on first use.
#pragma once

#include "cpu/library.h"
#include "cuda/library.h"

namespace powergrad {

// RuntimeError where it cannot be opened or was not built from the sources of this binding.
const CpuLibrary& cpu_library();
// The same, and NotImplementedError where it cannot be opened, as in builds without CUDA kernels.
const CudaLibrary& cuda_library();

}  // namespace powergrad

// The kernels for any processor.
#include "cpu/standard.h"
#include "cpu/vector_portable.h"
#include "cpu/algorithm.h"

POWERGRAD_DEFINE_KERNELS(scalar_kernels)
